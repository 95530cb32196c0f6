"""Weights & Biases (https://wandb.ai), at once or by a later `wandb sync` (extra `wandb`).

Its own variables say where: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY, WANDB_API_KEY.
"""

import os
import secrets
from collections.abc import Mapping

from looped_jax.config import flatten
from looped_jax.errors import from_extra
from looped_jax.training.trackers.base import Start, known_id, remember_id

with from_extra("wandb", "config.train.log_to=wandb"):
    import wandb

NAME = "wandb"
# What is not sent by then stays on disk, for `wandb sync`.
FINISH_SECONDS = 300.0


class WandbRun:
    """One run there, whatever starts and stops it had here.

    Its steps only rise: what is sent again of those that it has, it leaves out. Offline it does not
    know what it has: each start keeps the run from its first step on.
    """

    def __init__(self, start: Start):
        run_id = known_id(start.workdir, NAME) or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "looped_jax"),
            name=start.config.name,
            id=run_id,
            resume="allow",
            dir=str(start.workdir),
            config=dict(flatten(start.config)),
            allow_val_change=True,  # Of keys that a start may change.
            # Standard output and error stay what they are.
            settings=wandb.Settings(silent=True, console="off", finish_timeout=FINISH_SECONDS),
        )
        remember_id(start.workdir, NAME, run_id)
        self.complete_until = self._run.step - 1  # It says the step that it expects.

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        if step >= self._run.step:
            self._run.log(dict(scalars), step=step)

    def flush(self) -> None:
        """Nothing is left to do: a process of W&B's has it already."""

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
