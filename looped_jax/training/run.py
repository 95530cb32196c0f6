"""A run on disk, opened again: its config, model and the parameters of one checkpoint."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from looped_jax import config as config_lib
from looped_jax.config.places import expanded
from looped_jax.data.pipeline import check_same_vocabulary
from looped_jax.errors import UserError
from looped_jax.training.checkpoint import evaluated_part, read_meta, read_params, saved_steps
from looped_jax.training.job import Job, make_job
from looped_jax.training.stacking import stage_at

# Keys that say what is evaluated when, or how much at a time, and not what comes out.
WITHOUT_EFFECT = ("eval.tasks", "eval.every", "eval.loops", "eval.batch_size")


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """A run made concrete on these devices, and one of its checkpoints."""

    workdir: epath.Path
    step: int
    job: Job
    # What was changed when it was opened, by key, of what changes numbers.
    overridden: dict[str, Any]

    @property
    def checkpoint(self) -> epath.Path:
        return self.workdir / "checkpoints" / str(self.step)

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """See training/checkpoint.py. UserError if its vocabulary is not the config's."""
        meta = read_meta(self.checkpoint)
        check_same_vocabulary(meta["data"], self.job.data.vocabulary_fingerprint)
        return meta

    def parameters(self) -> Any:
        """The checkpoint's parameters, or their average (config.optimizer.ema), without its
        optimizer; UserError and RunError as training/checkpoint.py."""
        _ = self.meta  # Refused before anything large is read.
        return read_params(self.checkpoint, self.job.layout)

    @property
    def changed_model(self) -> dict[str, Any]:
        """What was overridden of the model, and not of what it is asked."""
        return {k: v for k, v in self.overridden.items() if not k.startswith("eval.")}

    def identity(self, loops: int | None = None, policy: str = "") -> str:
        """Equal for equal answers: of the parameters' content, the numerics, what was overridden,
        the loop count and, where it is not the exact one, the policy of cache and exit."""
        part = f"{evaluated_part(self.job.layout)}/"
        sums = {k: v for k, v in self.meta["checksums"].items() if k.startswith(part)}
        known = [sums, self.meta["format"], self.changed_model, loops]
        known += [policy] if policy else []
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def open_run(
    workdir: str,
    step: int | None = None,
    overrides: Mapping[str, str] | None = None,
) -> OpenRun:
    """Opens a run at a checkpoint (the newest if ``step`` is None); nothing is read yet.

    ``overrides`` change its config as on the command line. UserError if there is no such run or
    checkpoint. The run's data need not be there, nor the devices that it was trained on.
    """
    if not workdir:
        raise UserError("say --workdir=DIR of a run")
    folder = epath.Path(expanded(str(workdir)))
    steps = saved_steps(folder)
    if not (folder / "config.json").exists() or not steps:
        raise UserError(f"{folder} holds no run with a checkpoint")
    step = steps[-1] if step is None else step
    if step not in steps:
        there = ", ".join(map(str, steps))
        raise UserError(f"{folder} has no checkpoint of step {step}; it has {there}")
    trained = config_lib.read_config(folder / "config.json")
    config, changed = _for_reading(trained), ConfigDict(trained.to_dict())
    for one in (config, changed):
        config_lib.apply_overrides(one, overrides or {})
    config_lib.validate(config)
    overridden = {
        key: config_lib.get_key(changed, key)
        for key in config_lib.differing_keys(changed, trained)
        if key not in WITHOUT_EFFECT
    }
    job = make_job(stage_at(config.lock(), step).config, needs_data=False)
    return OpenRun(folder, step, job, overridden)


def reading(config: ConfigDict) -> Job:
    """The job of a run's config for looking at it, on whatever devices are here and without its
    data. Its batches are as large as suits these, so its FLOPs of a step are not the run's:
    planned_step_flops says those."""
    return make_job(_for_reading(config).lock(), needs_data=False)


def _for_reading(config: ConfigDict) -> ConfigDict:
    """A run's config, unlocked, for whatever devices are here: on a mesh of rows alone, in batches
    that divide over it."""
    here = ConfigDict(config.to_dict())
    here.mesh = config_lib.default_config().mesh
    here.model.update(attention="auto", gather="layer")
    devices = jax.device_count()
    size = config.eval.batch_size or config.train.batch_size
    here.eval.batch_size = here.train.batch_size = devices * -(-size // devices)
    here.train.grad_accumulation = 1
    return here
