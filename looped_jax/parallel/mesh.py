"""The device mesh and the sharding of arrays by logical axis names.

Mesh axes: `data` (replicas), `fsdp` (replicas that share parameters out between them),
`tensor` (heads, MLP and vocabulary split), `sequence` (reserved). The rules table in
config.mesh.rules maps logical names to mesh axes.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from looped_jax.config import UserError

AXES = ("data", "fsdp", "tensor", "sequence")
# Axes whose devices hold different rows of the batch.
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh of config.mesh over all devices (or the first so many of them).

    UserError if the mesh needs more devices than there are, or config.train.batch_size (or one
    of its grad_accumulation parts) does not divide over the batch axes.
    """
    sizes = {axis: int(config.mesh[axis]) for axis in AXES}
    devices = jax.devices()
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"config.mesh {_show(sizes)}: sizes are positive, and one may be -1")
    if fixed > len(devices):
        raise UserError(
            f"config.mesh {_show(sizes)} needs {fixed} devices; there are {len(devices)}"
        )
    if free:
        if len(devices) % fixed:
            raise UserError(
                f"config.mesh {_show(sizes)}: {len(devices)} devices do not divide by {fixed}"
            )
        sizes[free[0]] = len(devices) // fixed
    count = math.prod(sizes.values())
    shards = math.prod(sizes[axis] for axis in BATCH_AXES)
    rows = config.train.batch_size // config.train.grad_accumulation
    if rows % shards:
        raise UserError(
            f"config.train.batch_size={config.train.batch_size} in "
            f"{config.train.grad_accumulation} part(s) gives {rows} rows, which do not divide "
            f"over data x fsdp = {shards}"
        )
    if config.eval.batch_size % shards:
        raise UserError(
            f"config.eval.batch_size={config.eval.batch_size} does not divide over "
            f"data x fsdp = {shards}"
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[:count],
    )


@contextlib.contextmanager
def mesh_context(mesh: Mesh, rules: tuple[tuple[str, Any], ...]) -> Iterator[None]:
    """Logical constraints inside this context refer to ``mesh`` through ``rules``."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the batch axes, everything else replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def put_batch(rows: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as arrays of the whole batch, sharded."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in rows.items()
    }


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(boxed_params: Any, mesh: Mesh, rules: tuple[tuple[str, Any], ...]) -> Any:
    """NamedShardings for parameters that still carry their logical axis names.

    UserError names a parameter whose dimension does not divide over its mesh axes.
    """
    specs = nn.get_partition_spec(boxed_params)
    shardings = nn.logical_to_mesh_sharding(specs, mesh, rules)
    shapes = nn.unbox(boxed_params)

    def check(path: Any, array: Any, sharding: NamedSharding) -> None:
        try:
            sharding.shard_shape(array.shape)
        except ValueError as error:
            raise UserError(
                f"parameter {_name(path)} of shape {array.shape} does not divide "
                f"over mesh axes {sharding.spec} of {dict(mesh.shape)}"
            ) from error

    jax.tree_util.tree_map_with_path(check, shapes, shardings)
    return shardings


def state_shardings(optimizer_state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings for an optimizer state from those of the parameters it is about.

    A moment has its parameter's shape and sharding. A factored moment (Adafactor) lacks one
    dimension and keeps the sharding of the others. Anything else (counts) is replicated.
    """
    by_path = {
        jax.tree_util.keystr(path): (array.shape, sharding)
        for (path, array), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def of(path: Any, array: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path)
        for suffix, (shape, sharding) in by_path.items():
            if not name.endswith(suffix):
                continue
            spec = tuple(sharding.spec) + (None,) * (len(shape) - len(sharding.spec))
            if array.shape == shape:
                return sharding
            for axis in range(len(shape)):
                if array.shape == shape[:axis] + shape[axis + 1 :]:
                    return NamedSharding(mesh, PartitionSpec(*spec[:axis], *spec[axis + 1 :]))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, optimizer_state)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _show(sizes: dict[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items())
