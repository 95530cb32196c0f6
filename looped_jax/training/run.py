"""A run on disk, opened again: its config, model and the parameters of one checkpoint."""

import dataclasses
from collections.abc import Mapping

from etils import epath

from looped_jax import config as config_lib
from looped_jax.config import UserError
from looped_jax.training.checkpoint import restore, saved_steps
from looped_jax.training.stacking import stage_at
from looped_jax.training.state import TrainState
from looped_jax.training.trainer import Job, prepare


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """A run made concrete on these devices, and one of its checkpoints."""

    workdir: epath.Path
    step: int
    job: Job

    def restore(self) -> TrainState:
        """The checkpoint's state; UserError and RunError as training/checkpoint.py."""
        return restore(self.workdir / "checkpoints" / str(self.step), self.job.layout)


def open_run(
    workdir: str,
    step: int | None = None,
    overrides: Mapping[str, str] | None = None,
) -> OpenRun:
    """Opens a run at a checkpoint (the newest if ``step`` is None); nothing is read yet.

    ``overrides`` change its config as on the command line. UserError if there is no such run or
    checkpoint. The run's data need not be there.
    """
    if not workdir:
        raise UserError("say --workdir=DIR of a run")
    folder = epath.Path(workdir)
    steps = saved_steps(folder)
    if not (folder / "config.json").exists() or not steps:
        raise UserError(f"{folder} holds no run with a checkpoint")
    step = steps[-1] if step is None else step
    if step not in steps:
        there = ", ".join(map(str, steps))
        raise UserError(f"{folder} has no checkpoint of step {step}; it has {there}")
    config = config_lib.from_json((folder / "config.json").read_text())
    config.unlock()
    config_lib.apply_overrides(config, overrides or {})
    config_lib.validate(config)
    of_step = stage_at(config.lock(), step).config
    return OpenRun(folder, step, prepare(of_step, needs_data=False))
