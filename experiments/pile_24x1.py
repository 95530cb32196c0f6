"""The paper's 1B-scale 24⊗1 on the Pile: table 3. See experiments/pile.py for the family, its sizes
and what it needs.

    python -m looped_jax.main --config=experiments/pile_24x1.py --config.data.path=$PREPARED_DIR

On a laptop the same with `pile_24x1.py:small`.
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config(preset: str = "") -> ConfigDict:
    return pile.get_config(f"24x1_{preset}" if preset else "24x1")
