"""ModelConfig: what a model is and how it is executed, resolved for its data and devices."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from looped_jax.config import KEYS
from looped_jax.errors import UserError
from looped_jax.models.attention_kernels import choose_kernel
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.parallel.backend import CPU, Backend


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a model is, hashable. Fields as in config.model; see looped_jax/config/keys.py."""

    plan: LoopPlan
    vocab_size: int
    max_length: int
    d_model: int = 256
    num_heads: int = 8
    num_kv_heads: int = 8
    head_size: int = 0  # 0: d_model / num_heads.
    d_ff: int = 1024
    mlp: str = "gelu"
    bias: bool = False
    norm: str = "rmsnorm"
    norm_eps: float = 1e-6
    qk_norm: bool = False
    attention_gate: bool = False
    norms: str = "pre"
    layer: str = "pre_norm"
    positions: str = "rope"
    rope_theta: float = 10000.0
    tied_output: bool = True
    loop: tuple[tuple[str, str], ...] = ()  # Option of config.loop, variant; see models/loops/.
    beyond_trained: str = "last"
    lora_rank: int = 8
    message_block: int = 6
    message_rank: int = 64
    low_loops: int = 3
    low_gradient_loops: tuple[int, ...] = ()
    selection_weight: float = 1e-3
    balance_weight: float = 0.1
    routed_tokens: str = "masked"
    gradient_loops: int = 0  # Of a pass whose loop counts are data, those with gradients.
    dtype: Any = jnp.float32
    remat: str = "none"
    saved_names: tuple[str, ...] = ()
    offloaded_names: tuple[str, ...] = ()
    unroll: str = "auto"
    attention: str = "xla"
    packed: bool = True  # Rows may hold several documents.
    gather: str = "layer"
    logits_mb: int = 1024
    backend: Backend = CPU  # What it will run on.
    ids_in_use: int = 0  # Ids from here on pad the vocabulary; 0: none does.

    @property
    def head_dim(self) -> int:
        return self.head_size or self.d_model // self.num_heads

    @classmethod
    def from_config(
        cls,
        config: ConfigDict,
        *,
        vocab_size: int,
        max_length: int,
        backend: Backend = CPU,
        length_shards: int = 1,
        packed: bool = True,
        gradient_loops: int = 0,
    ) -> "ModelConfig":
        """Resolves config.model and config.loop for data with this vocabulary and row length,
        on a kind of device and with rows split over so many of them; ``packed``: rows may hold
        several documents.

        UserError if config.model.vocab_size is less than the data's, or config.model.attention
        cannot run there.
        """
        model, loop = config.model, config.loop.to_dict()
        if 0 < model.vocab_size < vocab_size:
            raise UserError(
                f"config.model.vocab_size={model.vocab_size} is less than the data's vocabulary of "
                f"{vocab_size}; 0 takes the data's"
            )
        fields = {**model.to_dict(), "max_length": max_length, "backend": backend}
        fields["packed"] = packed
        fields["gradient_loops"] = gradient_loops
        fields["plan"] = LoopPlan.parse(model.plan)
        numbers = (
            "lora_rank",
            "message_block",
            "message_rank",
            "low_loops",
            "selection_weight",
            "balance_weight",
        )
        others = ("norms", "beyond_trained", "low_gradient_loops", "routed_tokens")
        fields |= {name: loop.pop(name) for name in (*numbers, *others)}
        if fields["routed_tokens"] == "gathered" and length_shards > 1:
            raise UserError(
                "config.loop.routed_tokens='gathered' takes tokens from all of a row, which is "
                f"split over config.mesh.sequence={length_shards} devices; 'masked' can be"
            )
        looped = len(fields["plan"].looped)
        if loop["routing"] != "none" and looped > 1:
            raise UserError(
                f"config.loop.routing={loop['routing']!r} is about one looped segment; plan "
                f"{fields['plan']} has {looped}"
            )
        if loop["nest"] != "none":
            _check_gradient_loops(loop["nest"], **{of: fields[of] for of in _CYCLES})
        plain = {option: KEYS[f"loop.{option}"].default for option in loop}
        fields["loop"] = tuple(sorted((k, name) for k, name in loop.items() if name != plain[k]))
        fields["vocab_size"] = model.vocab_size or 8 * -(-vocab_size // 8)
        fields["ids_in_use"] = vocab_size
        fields["num_kv_heads"] = model.num_kv_heads or model.num_heads
        fields["dtype"] = jnp.dtype(model.dtype)
        fields["attention"] = choose_kernel(
            model.attention,
            backend,
            length=max_length // length_shards,
            head_size=model.head_size or model.d_model // model.num_heads,
            dtype=model.dtype,
            packed=packed,
            split=length_shards > 1,
        )
        return cls(**fields)


_CYCLES = ("plan", "low_loops", "low_gradient_loops")


def _check_gradient_loops(
    nest: str, plan: LoopPlan, low_loops: int, low_gradient_loops: tuple[int, ...]
) -> None:
    """UserError for numbers of more cycles than there are, and where the low stack would never
    learn."""
    for segment in (plan.segments[i] for i in plan.looped):
        cycles, given = segment.loops // (low_loops + 1), len(low_gradient_loops)
        if given > cycles:
            raise UserError(
                f"config.loop.low_gradient_loops has {given} numbers for the {cycles} cycles of "
                f"{segment} (config.loop.low_loops={low_loops})"
            )
        if nest == "two_stacks" and given == cycles and not any(low_gradient_loops):
            raise UserError(
                f"config.loop.low_gradient_loops={low_gradient_loops}: the low stack of {segment} "
                "would not be trained"
            )
