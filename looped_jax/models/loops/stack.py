"""k layers one after the other: one `nn.scan` over their stacked parameters, with what a scan does
not say by itself: whether it is laid out straight, and what its backward pass recomputes.
"""

from typing import Any

import flax.linen as nn
import jax

from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import SHOWN, show
from looped_jax.models.layers import Array, KeyValues, Layer, LayerInputs
from looped_jax.models.loop_plan import Segment
from looped_jax.models.loops.base import PER_LOOP


def unrolled_scans(config: ModelConfig, segment: Segment) -> tuple[bool, bool]:
    """Whether the scan over layers and the scan over loops are laid out straight."""
    mode = config.unroll
    if mode == "auto":
        depth = segment.layers * segment.loops
        mode = "full" if depth <= config.backend.unrolled_layers else "none"
    return mode in ("layers", "full"), mode == "full"


def remat(config: ModelConfig, target: Any, at: str, prevent_cse: bool) -> Any:
    """Wraps a module, or a method, so that its inside is recomputed in the backward pass.

    `layer` keeps only layer inputs, `loop` only the inputs of each loop, `dots` keeps matrix
    products without batch dimensions and recomputes the element-wise work, `names` keeps, of each
    layer, what config.saved_names say on the device and what config.offloaded_names say in the
    host's memory.
    """
    policies = jax.checkpoint_policies
    if config.remat == "dots" and at == "layer":
        policy = policies.dots_with_no_batch_dims_saveable
        return nn.remat(target, prevent_cse=prevent_cse, policy=policy)
    if config.remat == "names" and at == "layer":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=config.saved_names,
            names_which_can_be_offloaded=config.offloaded_names,
            offload_src="device",
            offload_dst="pinned_host",
        )
        return nn.remat(target, prevent_cse=prevent_cse, policy=policy)
    if config.remat == at:
        return nn.remat(target, prevent_cse=prevent_cse)
    return target


class LayerStep(nn.Module):
    """A Layer in the form that `nn.scan` takes: (carry, the layer's number, broadcast inputs) ->
    (carry, (the layer's new keys and values, the stream that entered it))."""

    config: ModelConfig
    keep: bool = False
    layer_class: type[Layer] = Layer
    entered: bool = False

    @nn.compact
    def __call__(
        self, x_BTD: Array, layer: Array, loop: Array, inputs: LayerInputs
    ) -> tuple[Array, tuple[KeyValues | None, Array | None]]:
        """One layer; ``loop`` and ``layer`` tell its place in a cache."""
        made = self.layer_class(self.config, self.keep, name="layer")
        entered = x_BTD if self.entered else None
        before_BTD = x_BTD
        x_BTD, kept = made(x_BTD, inputs, (loop, layer))
        if inputs.change is not None:
            x_BTD = inputs.change(before_BTD, x_BTD, loop, layer)
        show(self, "stream", lambda: x_BTD)
        return x_BTD, (kept, entered)


def stack_of(
    config: ModelConfig,
    segment: Segment,
    layer_class: type[Layer],
    keep: bool,
    entered: bool,
    initializing: bool,
) -> Any:
    """k layers one after the other, their parameters stacked: a LayerStep with layer numbers."""
    unroll, _ = unrolled_scans(config, segment)
    return nn.scan(
        # Inside a rolled scan XLA cannot merge the recomputation with the original.
        remat(config, LayerStep, "layer", prevent_cse=unroll),
        variable_axes={"params": 0, PER_LOOP: 0, SHOWN: 0},
        split_rngs={"params": True, PER_LOOP: True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=segment.layers,
        unroll=segment.layers if unroll else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
        # Traces the body once more; where parameters are made, what they draw follows from it.
        check_constancy_invariants=initializing,
    )(config, keep, layer_class, entered)
