"""Work written per device: what the compiler would not lay out well by itself.

Left to itself it brings an FSDP-sharded weight together at each use and reduces its gradient at
each use, in every pass through a loop. Inside `jax.shard_map` over the axes that split the batch
both happen when the program says so. The other axes stay the compiler's.
"""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, PartitionSpec

from looped_jax.parallel.mesh import BATCH_AXES

# Axes whose devices hold different tokens.
TOKEN_AXES = (*BATCH_AXES, "sequence")


def free_axes(among: Iterable[str] | None = None) -> dict[str, int]:
    """Axes of the mesh in use that the compiler lays out: name -> number of devices.

    Empty without a mesh, or where all of them are already written per device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {
        name: size
        for name, size, kind in axes
        if kind == AxisType.Auto and (among is None or name in among)
    }


def split_axes(among: Iterable[str]) -> dict[str, int]:
    """free_axes, empty also where there is only one device along all of them."""
    axes = free_axes(among)
    return axes if any(size > 1 for size in axes.values()) else {}


def only(spec: Any, axes: Iterable[str]) -> PartitionSpec:
    """A PartitionSpec with nothing but these mesh axes in it."""

    def kept(part: Any) -> Any:
        names = part if isinstance(part, tuple) else (part,)
        here = tuple(name for name in names if name in axes)
        return here if len(here) > 1 else (here[0] if here else None)

    return PartitionSpec(*(kept(part) for part in spec))


def spec_of(logical_axes: Iterable[str | None], axes: Iterable[str]) -> PartitionSpec:
    """Where the rules in use put an array of these logical axes, as far as it is on ``axes``."""
    return only(nn.logical_to_mesh_axes(tuple(logical_axes)), axes)


def rules_without(axes: Iterable[str]) -> tuple[tuple[str, Any], ...]:
    """The rules in use, for a function that is itself written per device of ``axes``."""
    rest = set(free_axes()) - set(axes)
    return tuple((name, only((where,), rest)[0]) for name, where in nn.get_logical_axis_rules())


def gather(array: jax.Array, spec: PartitionSpec) -> jax.Array:
    """The whole of an array of which each device holds what ``spec`` says (inside shard_map).

    Its transpose is a reduce-scatter: a gradient is summed over those devices once.
    """
    for dimension, part in enumerate(spec):
        if part is not None:
            array = jax.lax.all_gather(array, part, axis=dimension, tiled=True)
    return array


def scatter_sum(array: jax.Array, spec: PartitionSpec, axes: Iterable[str]) -> jax.Array:
    """The sum over the devices of ``axes``, of which each keeps what ``spec`` says."""
    scattered: set[str] = set()
    for dimension, part in enumerate(spec):
        if part is not None:
            array = jax.lax.psum_scatter(array, part, scatter_dimension=dimension, tiled=True)
            scattered |= set(part if isinstance(part, tuple) else (part,))
    rest = tuple(axis for axis in axes if axis not in scattered)
    return jax.lax.psum(array, rest) if rest else array


def per_device(
    function: Callable[..., Any], axes: Iterable[str], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`jax.shard_map` over ``axes`` of the mesh in use, with rules that fit inside."""
    rules = rules_without(axes)

    def inside(*arguments: Any) -> Any:
        with nn.logical_axis_rules(rules):
            return function(*arguments)

    return jax.shard_map(
        inside, in_specs=in_specs, out_specs=out_specs, axis_names=set(axes), check_vma=False
    )
