"""How the network is executed: laid out over devices, kept for the backward pass, multiplied.

Nothing here changes what is computed; the mathematics is in models/layers.py. Shapes in names as
there.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from looped_jax.config import ACTIVATION_NAMES
from looped_jax.models.config import ModelConfig
from looped_jax.parallel.per_device import split_axes

Array = jax.Array
# Of a layer's kernels: their logical axes.
KERNELS = {
    "query": ("embed", "heads", "head_dim"),
    "key": ("embed", "kv_heads", "head_dim"),
    "value": ("embed", "kv_heads", "head_dim"),
    "out_gate": ("embed", "heads", "head_dim"),
    "output": ("heads", "head_dim", "embed"),
    "up": ("embed", "mlp"),
    "gate": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}
SHOWN = "intermediates"  # Flax leaves it out of what `init` makes.
# Of activations whose layout over devices is fixed: their logical axes.
LAYOUTS = {
    "stream": ("batch", "length", "activation_embed"),
    "query": ("batch", "length", "activation_heads", "head_dim"),
    "out_gate": ("batch", "length", "activation_heads", "head_dim"),
    "mlp": ("batch", "length", "activation_mlp"),
    "logits": ("batch", "length", "activation_vocab"),
}


def laid_out(x: Array, layout: str) -> Array:
    """x, split over devices as the rules in use say of one of LAYOUTS."""
    return nn.with_logical_constraint(x, LAYOUTS[layout])


@struct.dataclass
class NamedAxes(nn.LogicallyPartitioned):
    """A parameter with its logical axis names.

    Flax's own box constrains the sharding whenever it is opened, also where DenseGeneral holds a
    kernel flattened and the names do not fit. Shardings are set from outside here.
    """

    def unbox(self, apply_constraint: bool = True) -> Any:
        return super().unbox(apply_constraint=False)


def partitioned(init: Callable[..., Array], *logical_axes: str | None) -> Callable[..., Any]:
    """An initialiser whose parameter carries logical axis names."""
    return lambda *args: NamedAxes(init(*args), logical_axes)


def show(module: nn.Module, name: str, make: Callable[[], Array]) -> None:
    """Leaves what ``make`` makes in Flax's collection `intermediates` of a pass that is asked for
    it (models/inside.py); otherwise nothing is made."""
    if module.is_mutable_collection(SHOWN):
        module.sow(SHOWN, name, make(), reduce_fn=lambda _, new: new, init_fn=lambda: None)


def placed(config: ModelConfig, x: Array, name: str) -> Array:
    """The activation x [B, T, …] of this name, which LAYOUTS and config.saved_names refer to: laid
    out, and kept for the backward pass, as they say.

    It is kept as [B, T, HK]: a TPU pads a head's size of 64 to 128.
    """
    if name in LAYOUTS:
        x = laid_out(x, name)
    if config.remat != "names" or name not in ACTIVATION_NAMES:
        return x
    return checkpoint_name(x.reshape(*x.shape[:2], -1), name).reshape(x.shape)


def looked_up(x_BTD: Array) -> Array:
    """Rows of the embedding table. Each device looks all rows of its group up in its part of the
    table, and only then do the rows go to their devices: asked for both at once, XLA gathers the
    whole table."""
    if not split_axes(("fsdp",)):
        return x_BTD
    return nn.with_logical_constraint(x_BTD, ("embedded_batch", "length", "embed"))


def flat_dot_general(
    x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **kwargs: Any
) -> Array:
    """`lax.dot_general` of x [..., contracted] with a kernel [contracted, features], as one
    product of two matrices: for CPUs.

    The same numbers; but from a product of three-dimensional arrays JAX derives a weight gradient
    for which XLA's CPU backend writes the other operand out transposed, with all the element-wise
    work before it done again in that order: an MLP takes 1.7 times as long (docs/performance.md).
    """
    (x_axes, kernel_axes), _ = dimension_numbers
    count = len(kernel_axes)
    assert tuple(kernel_axes) == tuple(range(count))
    assert tuple(x_axes) == tuple(range(x.ndim - count, x.ndim))
    inner = math.prod(kernel.shape[:count])
    out = jax.lax.dot_general(
        x.reshape(-1, inner),
        kernel.reshape(inner, -1),
        (((1,), (0,)), ((), ())),
        precision=precision,
        **kwargs,
    )
    return out.reshape(*x.shape[: x.ndim - count], *kernel.shape[count:])


def _dot_general(config: ModelConfig) -> Callable[..., Array] | None:
    """None is `lax.dot_general`. A length split over devices must stay a dimension of its own:
    merged with the rows it has no tiled sharding, and each device would compute all of it."""
    flat = config.backend.flat_products and not split_axes(("sequence",))
    return flat_dot_general if flat else None


def dense(
    config: ModelConfig,
    name: str,
    features: int | tuple[int, ...],
    contracted: int = 1,
) -> nn.DenseGeneral:
    """A projection over the last ``contracted`` dimensions by a kernel of KERNELS."""
    axes = KERNELS[name]
    out_axes = axes[contracted:]
    return nn.DenseGeneral(
        features,
        axis=tuple(range(-contracted, 0)),
        use_bias=config.bias,
        dtype=config.dtype,
        kernel_init=partitioned(nn.initializers.lecun_normal(), *axes),
        bias_init=partitioned(nn.initializers.zeros_init(), *out_axes),
        dot_general=_dot_general(config),
        name=name,
    )


def storing_derivative(activation: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """An element-wise function which computes its derivative in the forward pass.

    A scan then keeps one array per call for the backward pass, the derivative, instead of every
    intermediate: less memory, and on CPU a sixth off an MLP's time (docs/performance.md).
    """

    @jax.custom_vjp
    def function(x: Array) -> Array:
        return activation(x)

    def forward(x: Array) -> tuple[Array, Array]:
        return jax.jvp(activation, (x,), (jnp.ones_like(x),))

    function.defvjp(forward, lambda derivative, gradient: (gradient * derivative,))
    return function
