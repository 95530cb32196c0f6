"""Training, evaluating and understanding looped transformers in JAX.

From Python: ``looped_jax.load(DIR)`` opens a trained model, ``looped_jax.train(config, DIR)``
trains one (docs/python.md).
"""

from typing import Any


def load(workdir: Any, step: int | None = None, loops: int | None = None, **keys: Any) -> Any:
    """See looped_jax.inside.opened.load."""
    from looped_jax.inside import opened  # JAX takes a second; `import looped_jax` does not.

    return opened.load(workdir, step, loops, **keys)


def train(config: Any, workdir: Any) -> Any:
    """Trains a config (looped_jax.config) in ``workdir``, or goes on with it, and opens the model.
    UserError, RunError and Preempted as looped_jax.training.trainer.train."""
    from etils import epath

    from looped_jax.training import job, trainer

    trainer.train(job.make_job(config), epath.Path(workdir))
    return load(workdir)
