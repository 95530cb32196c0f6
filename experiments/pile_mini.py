"""A small language model on real text: 4⊗3 over bytes, from Pile-format shards.

Trains on $PILE_DIR/train-*.jsonl.zst and evaluates on $PILE_DIR/val.jsonl.zst (docs/data.md says
where to get or how to make such shards). The argument is the plan, `experiments/pile_mini.py:12x1`.

    python -m looped_jax.main --config=experiments/pile_mini.py --config.data.path=$PILE_DIR
"""

import os

from looped_jax.config import ConfigDict, default_config


def get_config(plan: str = "4x3") -> ConfigDict:
    config = default_config()
    config.model.update(plan=plan, d_model=128, num_heads=4, d_ff=512)
    config.data.update(task="text", path=os.environ.get("PILE_DIR", ""), length=256)
    config.optimizer.update(
        name="adamw", learning_rate=3e-3, schedule="cosine", warmup_steps=100, weight_decay=0.1
    )
    config.train.update(steps=400, batch_size=16, log_every=20)
    config.checkpoint.update(every=100, keep=3)
    config.eval.update(every=100, examples=128)
    return config
