"""Compiles a run's training step for a TPU topology, on a machine without a TPU.

python -m looped_jax.compile --config=experiments/pile_12x2.py --topology=v5e:8x8
python -m looped_jax.compile --config=experiments/pile_12x2.py --topology=v5e:16x16 --slices=2 \
    --config.mesh.data=2

Prints one JSON object: whether it fits, and what a step costs each device. The data need not be
there.
"""

import json
import re
import time
from typing import Any

import jax

from looped_jax.config import cli, load_experiment
from looped_jax.cost import compiled, tpu
from looped_jax.errors import UserError
from looped_jax.models.attention_kernels import splash_flops
from looped_jax.training.job import Job, abstract_batch, jitted_train_step, make_job
from looped_jax.training.loop_counts import mean_counts

_FLAGS = cli.Flags()
_CONFIG = _FLAGS.path("config", "", "Experiment: FILE.py or FILE.py:ARGUMENT.")
_TOPOLOGY = _FLAGS.string("topology", "", "VERSION:AxB[xC], e.g. v5e:8x8 or v5p:4x4x4.")
_SLICES = _FLAGS.integer("slices", 1, "Slices of that topology, joined by the network.")


def main(overrides: dict[str, str]) -> None:
    """Compiles and prints."""
    for name, value in (("config", _CONFIG.value), ("topology", _TOPOLOGY.value)):
        if not value:
            raise UserError(f"say --{name}, e.g. --config=experiments/pile.py --topology=v5e:8x8")
    jax.config.update("jax_platforms", "cpu")  # A TPU that is there is left alone.
    config = load_experiment(_CONFIG.value, overrides)
    devices = tpu.describe(_TOPOLOGY.value, _SLICES.value)
    job = make_job(config, needs_data=False, devices=devices)
    print(json.dumps(describe(job, _TOPOLOGY.value, _SLICES.value), indent=1))


def describe(job: Job, topology: str, slices: int = 1) -> dict[str, Any]:
    """What is printed; see docs/scale.md for the fields."""
    chip, device = tpu.chip_of(topology), job.mesh.devices.flat[0]
    model, batch_size = job.model.config, job.config.train.batch_size
    start = time.perf_counter()
    with job.context():
        lowered = jitted_train_step(job).lower(job.layout.abstract, abstract_batch(job))
    what = {
        "name": job.config.name,
        "plan": str(model.plan),
        "topology": topology,
        "slices": slices,
        "device_kind": device.device_kind,
        "devices": job.mesh.size,
        "mesh": dict(job.mesh.shape),
        "batch_size": batch_size,
        "length": model.max_length,
        "parameters": job.layout.parameter_count,
        "parameter_bytes": _bytes(job.layout.abstract.params),
        "optimizer_bytes": _bytes((job.layout.abstract.optimizer, job.layout.abstract.average)),
        "attention": model.attention,
        "gather": model.gather,
        "remat": model.remat,
    }
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"Used ([\d.]+)([MGT]) of [\d.]+[MGT] hbm", str(error))
        if found is None:
            raise
        needed = float(found[1]) * {"M": 2**20, "G": 2**30, "T": 2**40}[found[2]]
        memory = {"peak": needed, "hbm": chip.hbm}
        return what | {"compile_seconds": _since(start), "bytes_per_device": memory, "fits": False}
    seconds = _since(start)
    memory = program.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    shards = job.mesh.shape["sequence"]
    counts, losses = mean_counts(job.config), job.losses
    short = None if losses is None else losses.mean_short_loops
    cost = compiled.cost(
        program.as_text(),
        lambda call: splash_flops(call.name, [s.dims for s in call.shapes], model, shards),
        None if counts is None else counts[0] - counts[1],
        # Of the steps that a short trajectory may have, those that it has.
        1.0 if losses is None or short is None else short / (losses.loops - 1),
    )
    roofline = tpu.estimate(cost, chip, device.device_kind)
    model_flops = job.mean_step_flops / job.mesh.size
    peak_flops = tpu.PEAK_BF16_FLOPS[device.device_kind]
    return what | {
        "compile_seconds": seconds,
        "bytes_per_device": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "peak": peak,
            "hbm": chip.hbm,
        },
        "fits": peak < chip.hbm,
        "flops_per_device": cost.flops,
        "model_flops_per_device": model_flops,
        "hbm_bytes_per_device": cost.hbm_bytes,
        "collective_bytes_per_device": cost.collective_bytes,
        "collectives_per_step": cost.collective_count,
        "wire_bytes_per_device": cost.wire_bytes,
        "bytes_between_slices_per_device": cost.bytes_between_slices,
        "estimate": {
            "note": "a roofline, not a measurement: from all resources at full rate and at the "
            "same time to one after another",
            "compute_seconds": roofline.compute,
            "hbm_seconds": roofline.hbm,
            "interconnect_seconds": roofline.interconnect,
            "between_slices_seconds": roofline.between_slices,
            "step_seconds": [roofline.overlapped, roofline.serial],
            "mfu": [
                model_flops / peak_flops / seconds
                for seconds in (roofline.overlapped, roofline.serial)
            ],
        },
    }


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 1)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    cli.run(main, _FLAGS)
