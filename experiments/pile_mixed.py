"""Books, code, mathematics and web text at stated rates, which change at two thirds of the steps.

pile_mini.py's model as 2⊗3, over 120 steps of 16 x 256 bytes: half of the rows are books, then half
are code. $SOURCES_DIR has a prepared folder for each source; docs/data.md ("Mixtures") says how to
make them of Pile-format shards, and what came of a run. 4 minutes on 2 busy CPU cores.

    python -m looped_jax.main --config=experiments/pile_mixed.py
"""

import os

from experiments import pile_mini
from looped_jax.config import ConfigDict

SOURCES = ("books", "code", "math", "web")


def get_config() -> ConfigDict:
    config = pile_mini.get_config("2x3")
    folder = os.environ.get("SOURCES_DIR", "prepared")
    config.data.path = ""
    config.data.sources = tuple((name, f"{folder}/{name}") for name in SOURCES)
    config.data.rates = (
        (0, (("books", 0.5), ("code", 0.1), ("math", 0.2), ("web", 0.2))),
        (80, (("books", 0.2), ("code", 0.5), ("math", 0.2), ("web", 0.1))),
    )
    config.train.steps = 120
    config.eval.update(every=40, examples=64)
    config.checkpoint.every = 40
    return config
