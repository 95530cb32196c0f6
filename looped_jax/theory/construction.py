"""Explicit weights: named places in the residual stream, layers made neuron by neuron, and the
LoopedTransformer that they are the parameters of.

The class of the theorems (paper, section 5): causal softmax attention, ReLU MLP, residual
connections, no normalisation, biases.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from looped_jax.errors import UserError
from looped_jax.models import transformer
from looped_jax.models.config import ModelConfig
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.parallel.numerics import stated_numerics

# Scores that differ by so much have weights 1 and exactly 0 after the softmax: exp(-128) is less
# than the smallest float32, and the largest bfloat16 exponent is the same.
GAP = 128.0


class Slots:
    """Named ranges of the residual stream's coordinates."""

    def __init__(self, **widths: int):
        self.size = 0
        self._at: dict[str, np.ndarray] = {}
        for name, width in widths.items():
            self._at[name] = np.arange(self.size, self.size + width)
            self.size += width

    def __getitem__(self, name: str) -> np.ndarray:
        return self._at[name]


def binary_code(numbers: np.ndarray, bits: int) -> np.ndarray:
    """±1 codes, [..., bits]: two different numbers' codes have a product of at most bits - 2."""
    return 2.0 * (np.asarray(numbers)[..., None] >> np.arange(bits) & 1) - 1.0


def code_bits(count: int) -> int:
    """Bits that tell ``count`` things apart, at least one."""
    return max(1, int(np.ceil(np.log2(count))))


@dataclasses.dataclass
class LayerWeights:
    """One layer's parameters; shapes as in models/layers.py, without the stack's axis."""

    query_DHK: np.ndarray
    key_DHK: np.ndarray
    value_DHK: np.ndarray
    output_HKD: np.ndarray
    query_HK: np.ndarray
    key_HK: np.ndarray
    value_HK: np.ndarray
    output_D: np.ndarray
    up_DF: np.ndarray
    up_F: np.ndarray
    down_FD: np.ndarray
    down_D: np.ndarray

    @classmethod
    def zeros(cls, d: int, heads: int, size: int, d_ff: int = 0) -> "LayerWeights":
        projection, bias = (d, heads, size), (heads, size)
        return cls(
            query_DHK=np.zeros(projection),
            key_DHK=np.zeros(projection),
            value_DHK=np.zeros(projection),
            output_HKD=np.zeros((heads, size, d)),
            query_HK=np.zeros(bias),
            key_HK=np.zeros(bias),
            value_HK=np.zeros(bias),
            output_D=np.zeros(d),
            up_DF=np.zeros((d, d_ff)),
            up_F=np.zeros(d_ff),
            down_FD=np.zeros((d_ff, d)),
            down_D=np.zeros(d),
        )

    @property
    def d_ff(self) -> int:
        return len(self.up_F)

    def lookup(
        self,
        head: int,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        into: np.ndarray,
    ) -> None:
        """A head that goes where the ±1 code in ``key`` equals that in ``query``, and adds what
        is there in ``value`` to ``into``."""
        size = self.query_HK.shape[1]
        bits, width = np.arange(len(query)), np.arange(len(value))
        self.query_DHK[query, head, bits] = GAP / 2 * np.sqrt(size)
        self.key_DHK[key, head, bits] = 1
        self.value_DHK[value, head, width] = 1
        self.output_HKD[head, width, into] = 1

    def neurons(self, reads_ND: np.ndarray, bias_N: np.ndarray, writes_ND: np.ndarray) -> None:
        """Adds neurons: writes_ND^T relu(reads_ND x + bias_N)."""
        self.up_DF = np.concatenate([self.up_DF, reads_ND.T], axis=1)
        self.up_F = np.concatenate([self.up_F, bias_N])
        self.down_FD = np.concatenate([self.down_FD, writes_ND])

    def add(self, source: np.ndarray, into: np.ndarray, factor: float, signed: bool = True) -> None:
        """into += factor x source, with relu(z) - relu(-z) = z; for a ``source`` that is never
        negative half of the neurons do."""
        d, count = len(self.down_D), len(source)
        for sign in (1, -1) if signed else (1,):
            reads, writes = np.zeros((count, d)), np.zeros((count, d))
            reads[np.arange(count), source] = sign
            writes[np.arange(count), into] = sign * factor
            self.neurons(reads, np.zeros(count), writes)

    def move(self, source: np.ndarray, into: np.ndarray, signed: bool = True) -> None:
        """into := source, source := 0."""
        self.add(into, into, -1, signed)
        d, count = len(self.down_D), len(source)
        for sign in (1, -1) if signed else (1,):
            reads, writes = np.zeros((count, d)), np.zeros((count, d))
            reads[np.arange(count), source] = sign
            writes[np.arange(count), into] = sign
            writes[np.arange(count), source] = -sign
            self.neurons(reads, np.zeros(count), writes)

    def padded(self, d_ff: int) -> "LayerWeights":
        """With neurons that do nothing, so that layers can be stacked."""
        more = d_ff - self.d_ff
        return dataclasses.replace(
            self,
            up_DF=np.pad(self.up_DF, ((0, 0), (0, more))),
            up_F=np.pad(self.up_F, (0, more)),
            down_FD=np.pad(self.down_FD, ((0, more), (0, 0))),
        )


@dataclasses.dataclass(frozen=True)
class Construction:
    """A model, its parameters, and where to read them."""

    model: LoopedTransformer
    params: Any
    slots: Slots
    claimed: dict[str, str]  # Sizes that the theorem states.
    used: dict[str, str]
    # Of the numbers in it; empty where it reproduces another model's float32.
    precision: "Precision | None" = None

    def logits(self, tokens_BT: np.ndarray) -> np.ndarray:
        """logits_BTV."""
        return forward(self.model, self.params, tokens_BT)

    def states(self, tokens_BT: np.ndarray) -> list[np.ndarray]:
        """x_BTD after 1, 2, … loops."""
        (segment,) = self.model.config.plan.segments
        return [
            forward(self.model, self.params, tokens_BT, loops, hidden=True)
            for loops in ([None] if segment.loops == 1 else range(1, segment.loops + 1))
        ]


def forward(
    model: LoopedTransformer,
    params: Any,
    tokens_BT: np.ndarray,
    loops: int | None = None,
    hidden: bool = False,
) -> np.ndarray:
    """logits_BTV, or x_BTD if ``hidden``: on every backend in products of full float32, without
    which a construction's digits are lost."""
    with stated_numerics(jnp.float32):
        return np.asarray(_forward(model, loops, hidden, params, tokens_BT))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _forward(
    model: LoopedTransformer, loops: int | None, hidden: bool, params: Any, tokens_BT: Any
) -> Any:
    output = transformer.forward(model, params, tokens_BT, loops=loops)
    return output.x_BTD if hidden else transformer.logits(model.config, output)


def exact_width(minimum: int, dtype: str) -> int:
    """The least width of a model, from ``minimum``, in which an embedded 1 is exactly 1: the model
    multiplies embeddings by the square root of its width."""
    one, kind = np.ones(1), jnp.dtype(dtype)
    return next(
        d
        for d in range(minimum, minimum + 256)
        if embeddable(one, d, dtype).astype(kind) * _root(d, kind) == one.astype(kind)
    )


def _root(d: int, kind: Any) -> Any:
    return np.asarray(d**0.5).astype(kind)


def embeddable(values: np.ndarray, d: int, dtype: str) -> np.ndarray:
    """What to put into the embedding for these values: numbers whose product with the square root
    of the width is the value, or next to it, in the compute type."""
    kind = jnp.dtype(dtype)
    spacing = float(jnp.finfo(kind).eps)
    wanted = np.asarray(values).astype(kind).astype(np.float64)
    best, best_error = None, None
    for step in (0, -0.5, 0.5, -1, 1):
        found = (wanted / d**0.5 * (1 + step * spacing)).astype(kind)
        error = np.abs((found * _root(d, kind)).astype(np.float64) - wanted)
        if best is None or best_error is None:
            best, best_error = found, error
        best, best_error = (
            np.where(error < best_error, found, best),
            np.minimum(error, best_error),
        )
    assert best is not None
    return best.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Precision:
    """What a construction asks of its compute type: every integer up to ``integers``, and attention
    scores of up to ``gaps`` GAPs told apart, in heads of a ``size``."""

    integers: float
    gaps: float
    size: int
    largest: float = 1.0  # Number in it, exact or not.

    def check(self, dtype: str) -> None:
        """UserError if a type is too coarse."""
        info = jnp.finfo(jnp.dtype(dtype))
        exact = 2.0 ** (info.nmant + 1)
        if self.integers > exact:
            raise UserError(
                f"{dtype} is too coarse for this construction: it needs every integer up to "
                f"{self.integers:,.0f}, and {dtype} holds them up to {exact:,.0f}"
            )
        largest = max(self.largest, self.gaps * GAP) * self.size**0.5
        if largest > float(info.max):
            raise UserError(
                f"{dtype} is too small for this construction: it needs numbers up to {largest:.1e}"
            )
        if 8 * self.gaps > exact:
            raise UserError(
                f"{dtype} is too coarse for this construction: its attention scores span "
                f"{self.gaps:,.0f} steps that must stay apart (float32 has enough)"
            )

    def enough(self, dtype: str) -> bool:
        """Whether a type is fine enough."""
        try:
            self.check(dtype)
        except UserError:
            return False
        return True

    def __str__(self) -> str:
        types = [t for t in ("float32", "bfloat16", "float16") if self.enough(t)]
        return (
            f"integers to {self.integers:,.0f}, scores over {self.gaps:,.0f} steps; enough: "
            + ", ".join(types)
        )


def construct(
    layers: list[LayerWeights],
    loops: int,
    tokens_VD: np.ndarray,
    positions_TD: np.ndarray | None,
    output_DV: np.ndarray,
    slots: Slots,
    dtype: str,
    claimed: dict[str, str],
    max_length: int,
) -> Construction:
    """The model of these layers, ``loops`` times; rows of the embeddings are what the residual
    stream is to begin with."""
    d, heads, size = layers[0].query_DHK.shape
    d_ff = max(layer.d_ff for layer in layers)
    config = ModelConfig(
        plan=LoopPlan.parse(f"{len(layers)}x{loops}"),
        vocab_size=len(tokens_VD),
        max_length=max_length,
        d_model=d,
        num_heads=heads,
        num_kv_heads=heads,
        head_size=size,
        d_ff=d_ff,
        mlp="relu",
        bias=True,
        norm="none",
        positions="none" if positions_TD is None else "learned",
        tied_output=False,
        dtype=jnp.dtype(dtype),
        unroll="none",
    )
    params: dict[str, Any] = {
        "embed": {"embedding": embeddable(tokens_VD, d, dtype)},
        "segment_0": {"layers": {"layer": _stacked([layer.padded(d_ff) for layer in layers])}},
        "output": {"kernel": np.asarray(output_DV, np.float32)},
    }
    if positions_TD is not None:
        params["position_embedding"] = embeddable(positions_TD, d, dtype)
    used = {
        "layers x loops": f"{len(layers)} x {loops}",
        "embedding": str(d),
        "FFN": str(d_ff),
        "heads": f"{heads} of size {size}",
    }
    return Construction(LoopedTransformer(config), params, slots, claimed, used)


def _stacked(layers: list[LayerWeights]) -> dict[str, Any]:
    def stack(name: str) -> np.ndarray:
        return np.stack([getattr(layer, name) for layer in layers]).astype(np.float32)

    def dense(kernel: str, bias: str) -> dict[str, np.ndarray]:
        return {"kernel": stack(kernel), "bias": stack(bias)}

    return {
        "attention": {
            "query": dense("query_DHK", "query_HK"),
            "key": dense("key_DHK", "key_HK"),
            "value": dense("value_DHK", "value_HK"),
            "output": dense("output_HKD", "output_D"),
        },
        "mlp": {"up": dense("up_DF", "up_F"), "down": dense("down_FD", "down_D")},
    }


def layers_of(model: LoopedTransformer, params: Any) -> list[LayerWeights]:
    """The distinct layers of a model of the theorems' class, each segment's loops written out.

    UserError if the model is of another class.
    """
    config = model.config
    for key, wanted in (("norm", "none"), ("mlp", "relu")):
        if getattr(config, key) != wanted:
            raise UserError(
                f"the theorems are about models with {key}={wanted!r}; this one has "
                f"{getattr(config, key)!r}"
            )
    if config.loop and config.plan.looped:
        (option, name), *_ = config.loop
        raise UserError(
            f"the theorems are about plain loops; this model has config.loop.{option}={name!r}"
        )
    if config.positions == "rope" or config.num_kv_heads != config.num_heads:
        raise UserError(
            "the theorems are about models with learned positions (or none) and as many key-value "
            "heads as heads"
        )
    layers = []
    for index, segment in enumerate(config.plan.segments):
        stacked = params[f"segment_{index}"]["layers"]["layer"]
        own = [_unstacked(stacked, i) for i in range(segment.layers)]
        layers += own * segment.loops
    return layers


@dataclasses.dataclass(frozen=True)
class Ends:
    """What stands around a model's layers: the residual stream begins as a row of tokens_VD plus,
    with learned positions, one of positions_TD; the logits are what it ends as times output_DV."""

    tokens_VD: np.ndarray
    positions_TD: np.ndarray | None
    output_DV: np.ndarray


def ends_of(model: LoopedTransformer, params: Any) -> Ends:
    """Its embeddings, with the factor of sqrt(d_model) that the model gives them, and output."""
    config = model.config
    embedding_VD = np.asarray(params["embed"]["embedding"], np.float64)
    scale = config.d_model**0.5
    positions_TD = None
    if config.positions == "learned":
        positions_TD = scale * np.asarray(params["position_embedding"], np.float64)
    tied = config.tied_output
    output_DV = embedding_VD.T if tied else np.asarray(params["output"]["kernel"], np.float64)
    return Ends(scale * embedding_VD, positions_TD, output_DV)


def _unstacked(stacked: Any, index: int) -> LayerWeights:
    def parts(dense: Any) -> tuple[np.ndarray, np.ndarray | None]:
        kernel = np.asarray(dense["kernel"][index], np.float64)
        return kernel, np.asarray(dense["bias"][index], np.float64) if "bias" in dense else None

    attention, mlp = stacked["attention"], stacked["mlp"]
    query, key, value, output = (
        parts(attention[name]) for name in ("query", "key", "value", "output")
    )
    up, down = parts(mlp["up"]), parts(mlp["down"])
    d, heads, size = query[0].shape
    weights = LayerWeights.zeros(d, heads, size, up[0].shape[1])
    for name, (kernel, bias) in {
        "query": query,
        "key": key,
        "value": value,
        "output": output,
        "up": up,
        "down": down,
    }.items():
        shapes = {"output": ("HKD", "D"), "up": ("DF", "F"), "down": ("FD", "D")}
        of_kernel, of_bias = shapes.get(name, ("DHK", "HK"))
        setattr(weights, f"{name}_{of_kernel}", kernel)
        if bias is not None:
            setattr(weights, f"{name}_{of_bias}", bias)
    return weights
