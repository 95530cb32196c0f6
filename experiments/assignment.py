"""Variable assignment in text: a small language model, then the same one fine-tuned to it.

`experiments/assignment.py:base` trains 2⊗2 on the Pile; `experiments/assignment.py` goes on from
there with documents of programs (python -m benchmarks.variable_assignment), and is evaluated on
the paper's reasoning primitives as any language model is. About 30 minutes on 2 CPU cores, a
tenth of it for the base; results in docs/evaluate.md.

    python -m benchmarks.variable_assignment --out=runs/programs
    python -m looped_jax.main --config=experiments/assignment.py:base \\
        --config.data.path=$PILE_DIR --workdir=runs/assignment_base
    python -m looped_jax.main --config=experiments/assignment.py \\
        --config.data.path=runs/programs --workdir=runs/assignment \\
        --config.train.start_from=runs/assignment_base/checkpoints/400
"""

from experiments import pile_mini
from looped_jax.config import ConfigDict, UserError


def get_config(stage: str = "tuned") -> ConfigDict:
    if stage not in ("base", "tuned"):
        raise UserError(f"experiments/assignment.py: {stage!r} is not base or tuned")
    config = pile_mini.get_config("2x2")
    # Positions matter over a few characters: all of a head's 16 dimensions turn within a row.
    config.model.update(d_model=64, d_ff=256, rope_theta=100.0)
    if stage == "tuned":
        config.data.path = ""  # Not the Pile of the environment: it must be said.
        config.optimizer.learning_rate = 5e-3
        config.train.update(steps=3000, batch_size=32)
        config.checkpoint.every = 250
        config.eval.update(every=250, style="line", shots=0)
        config.eval.tasks = ("text", "varassign_depth0_math", "varassign_depth1_math")
    return config
