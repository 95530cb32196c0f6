"""The device mesh and the sharding of arrays by logical axis names.

Mesh axes: `data` (replicas), `fsdp` (replicas that share parameters out between them),
`tensor` (heads, MLP and vocabulary split), `sequence` (rows split along their length). The rules
table in config.mesh.rules maps logical names to mesh axes.
"""

import collections
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from looped_jax.errors import UserError, nearest
from looped_jax.parallel.numerics import stated_numerics

AXES = ("data", "fsdp", "tensor", "sequence")
# Axes whose devices hold different rows of the batch.
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of config.mesh over these devices, by default all there are (or the first so many).

    Several TPU slices share out the `data` axis, hosts of GPUs do where they can: see _layout.
    UserError if the mesh needs more devices than there are, a rule names an axis that is not there,
    or config.train.batch_size (or one of its grad_accumulation parts) does not divide over the
    batch axes.
    """
    sizes = {axis: int(config.mesh[axis]) for axis in AXES}
    devices = jax.devices() if devices is None else list(devices)
    for name, where in config.mesh.rules:
        for axis in where if isinstance(where, tuple) else (where,):
            if axis is not None and axis not in AXES:
                raise UserError(
                    f"config.mesh.rules: {name!r} goes to {axis!r}, which is not one of "
                    f"{', '.join(AXES)}{nearest(str(axis), AXES)}"
                )
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
    return Mesh(_layout(sizes, devices[:count]), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _layout(sizes: dict[str, int], devices: Sequence[Any]) -> np.ndarray:
    """The devices of a mesh of these sizes, in its shape.

    The network is slow between TPU slices, and between the hosts of GPUs, which XLA numbers as
    slices too (from JAX 0.11 on also those of CPUs). Slices share out `data` and nothing else.
    Hosts do so where they can; where they cannot, devices keep their order, host by host: the last
    axes stay within a host, and `fsdp` may reach over several.
    """
    groups = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    several, alike = len(groups) > 1, len(set(groups.values())) == 1
    if several and alike and sizes["data"] % len(groups) == 0:
        return mesh_utils.create_hybrid_device_mesh(
            (sizes["data"] // len(groups), *(sizes[axis] for axis in AXES[1:])),
            (len(groups), *(1 for _ in AXES[1:])),
            devices,
            allow_split_physical_axes=True,
        )
    if several and devices[0].platform == "tpu":
        counts = " and ".join(str(count) for count in groups.values())
        raise UserError(
            f"config.mesh {_show(sizes)} takes {counts} devices of {len(groups)} slices, which "
            "share out data evenly; set config.mesh.data to a multiple of the slices (-1: what "
            "remains)"
        )
    return mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices, allow_split_physical_axes=True
    )


@contextlib.contextmanager
def mesh_context(mesh: Mesh, rules: tuple[tuple[str, Any], ...], dtype: Any) -> Iterator[None]:
    """Where a model that computes in ``dtype`` is traced and run: logical constraints inside refer
    to ``mesh`` through ``rules``, and products have the precision of ``dtype``."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules), stated_numerics(dtype):
        yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the batch axes, everything else replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that this process's devices hold, in order: int [rows].

    Processes whose devices differ only in `tensor` or `sequence` hold the same rows.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    starts = {part[0].indices(batch_size) for part in parts if part is not None}
    return np.unique(np.concatenate([np.arange(*start) for start in starts]))


def put_batch(
    rows: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """This process's rows of a batch (local_rows) as arrays of the whole batch, sharded.

    batch_size: rows of the whole batch; None where this process has them all.
    """
    sharding = batch_sharding(mesh)
    size = len(next(iter(rows.values()))) if batch_size is None else batch_size
    mine = local_rows(mesh, size)

    def put(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(size)
            here = np.searchsorted(mine, start)
            return array[here : here + stop - start]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, part)

    return {name: put(array) for name, array in rows.items()}


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


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _show(sizes: dict[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items())
