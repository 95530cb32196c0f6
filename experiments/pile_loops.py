"""12⊗2 beside 12⊗1 (its parameters) and 24⊗1 (its FLOPs), small, on exactly the same rows.

The comparison of the paper's table 3 at a laptop's size; the argument is a preset of pile.py. Ends
with a table of perplexity and bits per byte for each component of the validation text. About 25
minutes on 2 CPU cores:

    python -m looped_jax.prepare --config=experiments/pile_loops.py --config.data.path=$PILE_DIR \
        --output=$PREPARED_DIR
    python -m looped_jax.main --config=experiments/pile_loops.py --config.data.path=$PREPARED_DIR
"""

from experiments import pile
from looped_jax.config import ConfigDict


def get_config(preset: str = "small") -> ConfigDict:
    config = pile.get_config(f"12x2_{preset}")
    config.variants = tuple(
        (name, (("model.plan", plan),))
        for name, plan in (("base", "12x1"), ("looped", "12x2"), ("iso_flop", "24x1"))
    )
    config.comparison.metric = "eval/text/perplexity"
    return config
