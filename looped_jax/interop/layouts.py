"""The forms in which a model is written for others: --layout of looped_jax.export."""

from collections.abc import Callable
from typing import Any, NamedTuple

from looped_jax.interop import dory, gguf_file, gpt2, hrm_text, llama, ouro, shared, starcoder2
from looped_jax.interop.weights import Tensors
from looped_jax.models.config import ModelConfig
from looped_jax.models.loop_plan import LoopPlan

NAMES = ("unrolled", "shared", "hrm_text", "dory", "ouro", "gguf")


class Layout(NamedTuple):
    """check: UserError for a model that it cannot express. describe: the fields of config.json
    that say what the model is. tensors: of the parameters, all tensors by name. own_layers: where
    the distinct layers are found in these, for those that are read back (interop/imported.py)."""

    check: Callable[[ModelConfig], None]
    describe: Callable[[ModelConfig], dict[str, Any]]
    tensors: Callable[[ModelConfig, Any], Tensors]
    own_layers: tuple[int, ...] | None = None


def layout_of(name: str, config: ModelConfig) -> Layout:
    """The layout of this name for a model, which it can express; UserError says what it cannot.
    `unrolled` takes the class that has the model's options, and `gguf` has the tensors of
    `unrolled`."""
    unrolled = llama
    if config.norm == "layernorm":
        unrolled = gpt2 if config.positions == "learned" else starcoder2
    kinds: dict[str, Any] = {
        "unrolled": unrolled,
        "gguf": llama,
        "shared": shared,
        "hrm_text": hrm_text,
        "dory": dory,
        "ouro": ouro,
    }
    kind = kinds[name]
    check = gguf_file.check if name == "gguf" else kind.check
    layout = Layout(check, kind.describe, kind.tensors)
    layout.check(config)
    is_read = (name, kind) in (("unrolled", llama), ("ouro", ouro))
    if is_read and "per_loop" not in dict(config.loop):
        layout = layout._replace(own_layers=own_layers(name, config.plan))
    return layout


def own_layers(name: str, plan: LoopPlan) -> tuple[int, ...]:
    """The numbers of a plan's distinct layers among the tensors of a layout: one after the other
    where each is stored once, else those of their first loop among all layers."""
    if name == "ouro":
        return tuple(range(plan.distinct_layers))
    return tuple(sorted(set(shared.stored_layers(plan))))
