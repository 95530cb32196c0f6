"""The paper's 1B-scale 12⊗2 on the Pile: table 3. See experiments/pile.py for the family, its sizes
and what it needs.

    python -m looped_jax.main --config=experiments/pile_12x2.py --config.data.path=$PREPARED_DIR

On a laptop the same with `pile_12x2.py:small`.
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config(preset: str = "") -> ConfigDict:
    return pile.get_config(f"12x2_{preset}" if preset else "12x2")
