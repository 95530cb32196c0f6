"""Whether a job's training fits into the memory of its devices, and what would make it fit.

The need of a step is the compiler's own count (docs/scale.md); of what a job keeps, the sum of its
arrays, which needs no compiler.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

import jax

from looped_jax.config import apply_overrides
from looped_jax.config.config_dict import ConfigDict
from looped_jax.errors import UserError, is_out_of_memory
from looped_jax.training.job import Job, abstract_batch, jitted_train_step, make_job

# Other settings that are compiled, to say what they need: each takes as long as the step itself.
TRIED = 4
KEYS = "config.train.batch_size, config.train.grad_accumulation and config.model.remat"


def device_memory(device: Any) -> float:
    """Bytes that a device has for arrays; infinite where it does not say. CPU devices share the
    machine's."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu":
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit /= jax.local_device_count()
    return math.inf if limit is None else float(limit)


def check_state(job: Job) -> None:
    """UserError if what a job keeps on a device, or the activations of one layer, is more than it
    has: known before anything is compiled."""
    config, model = job.config, job.model.config
    limit = device_memory(job.mesh.local_devices[0])
    shards = math.prod(job.mesh.shape[axis] for axis in ("data", "fsdp"))
    tokens = model.max_length / job.mesh.shape["sequence"] / shards
    width = tokens * model.d_model * model.dtype.itemsize
    part = config.train.batch_size // config.train.grad_accumulation
    parts = {
        "parameters and optimizer (of config.model.plan, d_model, d_ff, vocab_size)": sum(
            map(_on_device, _leaves(job))
        ),
        f"rows of config.train.batch_size={config.train.batch_size} by config.data.length="
        f"{model.max_length} tokens": part * width,
        f"rows of config.eval.batch_size={config.eval.batch_size} by config.data.length="
        f"{model.max_length} tokens": config.eval.batch_size * width,
        # All of them are held by the machine at once: tokens, targets, weights, positions, …
        f"rows of config.eval.examples={config.eval.examples} in memory": 20.0
        * config.eval.examples
        * model.max_length,
    }
    for what, needed in parts.items():
        if needed > limit:
            raise UserError(f"{what} need {shown(needed)}; a device has {shown(limit)} of memory")


def _leaves(job: Job) -> list[Any]:
    state = job.layout.abstract
    leaves: list[Any] = jax.tree.leaves(state)
    return leaves + list(jax.tree.leaves(state.params))  # Gradients are as large as parameters.


def _on_device(leaf: Any) -> float:
    return math.prod(map(float, leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def compiled_step(job: Job) -> Any:
    """The training step (state, batch) -> (next state, scalars), compiled. UserError if it needs
    more memory than a device has, which names settings that need less and how much."""
    limit = device_memory(job.mesh.local_devices[0])
    try:
        step = _compiled(job)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(advice(job, "the training step cannot be compiled")) from error
    needed = peak(step)
    if needed > limit:
        raise UserError(advice(job, f"the training step needs {shown(needed)}", needed / limit))
    return step


def _compiled(job: Job) -> Any:
    with job.context():
        lowered = jitted_train_step(job).lower(job.layout.abstract, abstract_batch(job))
        return lowered.compile()


def peak(program: Any) -> float:
    """Bytes that a compiled program needs of a device, by the compiler's count."""
    memory = program.memory_analysis()
    return float(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def advice(job: Job, what: str, times: float = 2.0) -> str:
    """One line on a job without memory: what there is, and what settings that need less need; those
    that may need so many ``times`` less are compiled first."""
    limit = device_memory(job.mesh.local_devices[0])
    there = "" if math.isinf(limit) else f", a device has {shown(limit)}"
    found: list[tuple[float, str]] = []
    for number, changes in enumerate(_smaller(job.config, times)):
        if number == TRIED:
            break
        config = ConfigDict(job.config.to_dict())
        apply_overrides(config, changes)
        try:
            needed = peak(_compiled(make_job(config.lock(), needs_data=False)))
        except Exception as error:
            if not is_out_of_memory(error) and not isinstance(error, UserError):
                raise
            continue
        said = " ".join(f"--config.{key}={value}" for key, value in changes.items())
        found.append((needed, f"{said} needs {shown(needed)}"))
        if needed <= limit:
            return f"out of memory: {what}{there}: {found[-1][1]}"
    least = f"; {min(found)[1]}" if found else ""
    return f"out of memory: {what}{there}{least}: lower {KEYS}, or the model"


def _smaller(config: ConfigDict, times: float) -> Iterator[dict[str, str]]:
    """Settings that may need so many ``times`` less than the config's: parts of a batch in turn,
    recomputing, and both."""
    train = config.train
    rows = train.batch_size // train.grad_accumulation
    parts = [n for n in range(2, rows + 1) if rows % n == 0]
    enough = [n for n in parts if n >= times] or parts[-1:]
    other = {"model.remat": "layer"} if config.model.remat == "none" else {}
    in_parts = [{"train.grad_accumulation": str(train.grad_accumulation * n)} for n in enough]
    yield from in_parts[:2]
    if other:
        yield other
        yield from ({**parts_of, **other} for parts_of in in_parts[:1])
    yield from in_parts[2:]


def shown(size: float) -> str:
    """Bytes as people say them."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.1f} kB"
