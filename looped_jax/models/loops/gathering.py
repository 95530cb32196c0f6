"""config.model.gather = segment: fsdp-sharded weights brought together once for all loops."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

from looped_jax.models.layers import Array
from looped_jax.models.loops.base import LoopContext, LoopOutput, LoopState, init_keys
from looped_jax.parallel.mesh import BATCH_AXES
from looped_jax.parallel.per_device import gather, per_device, spec_of, split_axes


def gathered_once(
    bound: Any, state: LoopState, context: LoopContext
) -> tuple[LoopState, LoopOutput]:
    """All loops of a bound LoopedSegment whose fsdp-sharded weights are brought together once, in
    the compute dtype, for all of them, and whose gradients are summed over devices once, after all
    of them.

    Brought together in the compute type are the kernels, which every layer would cast to it: a
    norm's scale, say, is multiplied in float32 here too.

    The price is a copy of the segment's weights on each device, and one of their gradients.
    """
    config, segment = bound.config, bound.segment
    variables = {kind: tree for kind, tree in bound.variables.items() if tree}
    run = type(bound)(config, segment, bound.wanted, parent=None)
    axes = split_axes(BATCH_AXES)
    if not axes:
        found: Any = run.apply(variables, state, context, method="all_loops")
        return found
    as_trained = dataclasses.replace(segment, loops=segment.trained_loops)
    boxed = jax.eval_shape(
        type(bound)(config, as_trained, parent=None).init,
        init_keys(jax.random.key(0)),
        context.x0_BTD,
        context.inputs,
    )
    specs = jax.tree.map(
        lambda names: spec_of(names, axes),
        nn.get_partition_spec(boxed),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    rows = spec_of(("batch",), axes)

    def type_of(path: Any, array: Array) -> Any:
        is_kernel = jax.tree_util.keystr(path[-1:], simple=True) == "kernel"
        return config.dtype if is_kernel else array.dtype

    def on_device(variables: Any, state: LoopState, context: LoopContext) -> Any:
        whole = jax.tree_util.tree_map_with_path(
            lambda path, p, spec: gather(p.astype(type_of(path, p)), spec), variables, specs
        )
        return run.apply(whole, state, context, method="all_loops")

    def of_arrays(tree: Any) -> Any:
        return jax.tree.map(lambda array: rows if array.ndim else PartitionSpec(), tree)

    in_specs = (specs, of_arrays(state), of_arrays(context))
    # What each loop leaves has the loops in front of the rows.
    out_specs = (of_arrays(state), PartitionSpec(None, *rows))
    return per_device(on_device, axes, in_specs, out_specs)(variables, state, context)
