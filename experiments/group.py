"""Group composition at a laptop's size: the product of permutations (the paper's section 5.1).

The argument is the plan, e.g. `experiments/group.py:1x3`. Seven permutations of three points; the
targets are the running products, the exact match counts the last one, on examples that no model
was trained on. Width 64, minutes on 2 CPU cores; the quick start compares three plans.

    python -m looped_jax.main --config=experiments/group.py:1x3
"""

from looped_jax.config import ConfigDict, default_config


def get_config(plan: str = "1x3") -> ConfigDict:
    config = default_config()
    config.data.task = "group_s3_n7"
    config.data.targets = "running"
    config.model.update(plan=plan, d_model=64, num_heads=8, d_ff=256, tied_output=False)
    config.optimizer.update(name="adamw", learning_rate=8e-3, warmup_steps=200)
    config.train.update(steps=2400, batch_size=128, log_every=100)
    config.checkpoint.update(every=1200, keep=1)
    config.eval.update(every=100, examples=2048, batch_size=512)
    return config
