"""Does looping help a language model? 2⊗3 beside 2⊗1 (its parameters) and 6⊗1 (its FLOPs).

The comparison of the paper's table 3 at a laptop's size, on exactly the same rows: pile_mini.py
over 200 steps, evaluated on 512 random held-out rows. Ends with a table of perplexity and bits per
byte for each component of the validation text. README.md has three seeds.

    python -m looped_jax.main --config=experiments/pile_loops.py --config.data.path=$PILE_DIR
"""

from experiments import pile_mini
from looped_jax.config import ConfigDict


def get_config() -> ConfigDict:
    config = pile_mini.get_config("2x3")
    config.train.steps = 200
    config.eval.examples = 512
    config.variants = tuple(
        (name, (("model.plan", plan),))
        for name, plan in (("base", "2x1"), ("looped", "2x3"), ("iso_flop", "6x1"))
    )
    config.comparison.update(
        metric="eval/text/perplexity", base="base", looped="looped", iso_flop="iso_flop"
    )
    return config
