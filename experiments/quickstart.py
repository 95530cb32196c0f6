"""Quick start: does depth by looping do what depth by parameters does?

Three models learn to compose seven permutations of three points (the group S3, the paper's
section 5.1): 1⊗1, 1⊗3 with the same parameters, and 3⊗1 with the same FLOPs. The targets are
the running products at every position; the exact match counts the last one, on examples that
no model was trained on.

Expected: base at most 50%, looped at least 95% and within 3 points of iso-FLOP, for each of
the seeds in docs/quickstart.md; under 3 minutes of training in all on 2 CPU cores.

    python -m looped_jax.main --config=experiments/quickstart.py
"""

from experiments import group
from looped_jax.config import ConfigDict


def get_config() -> ConfigDict:
    config = group.get_config()
    config.variants = (
        ("base", (("model.plan", "1x1"),)),
        ("looped", (("model.plan", "1x3"),)),
        ("iso_flop", (("model.plan", "3x1"),)),
    )
    config.comparison.update(
        metric="eval/group_s3_n7/accuracy", base="base", looped="looped", iso_flop="iso_flop"
    )
    return config
