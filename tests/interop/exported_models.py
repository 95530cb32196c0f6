"""Language models with random weights, nowhere on disk, as looped_jax.export takes them."""

import functools
import pathlib
from typing import Any

from etils import epath
from helpers import random_params, small_config

from looped_jax.interop.exported import export
from looped_jax.training.identity import code_version
from looped_jax.training.job import make_job
from looped_jax.training.run import OpenRun

LENGTH = 24
FORMAT = 0  # Of numerics; nothing reads these weights as a checkpoint.


class RandomRun(OpenRun):
    """A run that was never written: checkpoint 0 with the weights of `random_params`."""

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        return {"code": code_version(), "format": FORMAT}

    def parameters(self) -> Any:
        return random_params(self.job.model)

    def identity(self, loops: int | None = None, policy: str = "") -> str:
        return "none"


def random_run(**overrides: Any) -> RandomRun:
    """Of a Llama over bytes, 259 ids and five that pad, of 2x3 layers with grouped queries; keys as
    `model__plan`."""
    text = {"data__task": "text", "data__vocabulary": "bytes", "data__length": LENGTH}
    model = {"model__plan": "2x3", "model__mlp": "swiglu", "model__num_kv_heads": 2}
    config = small_config(**{**text, **model, **overrides})
    job = make_job(config, needs_data=False)
    return RandomRun(epath.Path("runs/none"), 0, job, {})


def exported(out: pathlib.Path, layout: str, **overrides: Any) -> RandomRun:
    """Writes one in the folder ``out``."""
    run = random_run(**overrides)
    export(run, epath.Path(out), layout)
    return run
