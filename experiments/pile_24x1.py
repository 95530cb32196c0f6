"""The paper's 1B-scale 24⊗1 on the Pile: table 4. See experiments/pile.py for the family.

python -m looped_jax.main --config=experiments/pile_24x1.py --config.data.path=$PILE_DIR
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config() -> ConfigDict:
    return pile.get_config("24x1")
