"""Variable assignment in text: a small language model that learns to look a value up.

2⊗1, or the plan given, over the bytes of the documents that the first command writes, evaluated on
the paper's reasoning primitives as any language model is, in one line and without exemplars. About
3 minutes on 2 CPU cores; docs/evaluate.md has its results, and how it is looped and fine-tuned to
look up twice.

    python -m looped_jax.data.tasks.assignment_documents --depth=0 --out=runs/programs_depth0
    python -m looped_jax.main --config=experiments/assignment.py \\
        --config.data.path=runs/programs_depth0
"""

from experiments import pile_mini
from looped_jax.config import ConfigDict


def get_config(plan: str = "2x1") -> ConfigDict:
    config = pile_mini.get_config(plan)
    # Positions matter over a few characters: all of a head's 16 dimensions turn within a row.
    config.model.update(d_model=64, d_ff=256, rope_theta=100.0)
    config.data.update(path="", length=168)  # Room for the longest document.
    config.optimizer.update(learning_rate=5e-3, schedule="constant")
    config.train.update(steps=1500, batch_size=32, log_every=50)
    config.checkpoint.every = 250
    config.eval.update(every=250, examples=200, style="line", shots=0)
    config.eval.tasks = ("text", "varassign_depth0_math", "varassign_depth1_math")
    return config
