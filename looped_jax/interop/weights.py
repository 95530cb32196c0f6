"""How the arrays of a model here and the tensors of the same model elsewhere correspond.

A layer is a dict from the path of an array within it (`attention/query/kernel`) to the array, as
models/layers.py makes it. Elsewhere, as in PyTorch, a matrix is [out, in] with heads merged, and a
tensor's name has the layer's number in it. Which path has which name, a table in each format's file
says.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from looped_jax.config import KEYS
from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.loops.base import PER_LOOP, rows_of

Layer = dict[str, np.ndarray]
Tensors = dict[str, np.ndarray]


def layers(config: ModelConfig, params: Any, distinct: bool = False) -> Iterator[Layer]:
    """The layers that a token passes through, in order: segment by segment, loop by loop. What
    LoRA (config.loop.per_loop) adds to a matrix in a loop is in it. ``distinct``: those of one loop
    of each segment only."""
    for index, segment in enumerate(config.plan.segments):
        stack = flatten_dict(params[f"segment_{index}"]["layers"]["layer"], sep="/")
        own = params.get(PER_LOOP, {}).get(f"segment_{index}", {}).get("layers", {})
        loops = 1 if distinct else segment.loops
        rows = {
            path: np.asarray(rows_of(array, loops, config.beyond_trained))
            for path, array in flatten_dict(own.get("layer", {}), sep="/").items()
        }
        for loop in range(loops):
            for layer in range(segment.layers):
                of_loop = {path: array[loop, layer] for path, array in rows.items()}
                yield {
                    path: np.asarray(array[layer]) + _added(path, of_loop)
                    for path, array in stack.items()
                }


def _added(path: str, own: Mapping[str, np.ndarray]) -> np.ndarray | float:
    """B A of a kernel (models/loops/lora.py), in its shape."""
    module, _, leaf = path.rpartition("/")
    if leaf != "kernel" or f"{module}/lora_a" not in own:
        return 0.0
    return np.tensordot(own[f"{module}/lora_a"], own[f"{module}/lora_b"], axes=1)


def input_axes(path: str) -> int:
    """How many axes of a kernel, [in …, out …], are those of its input."""
    return 2 if path.startswith("attention/output/") else 1


def theirs(path: str, array: np.ndarray) -> np.ndarray:
    """An array of a layer as PyTorch has it: a matrix [out, in], anything else a vector."""
    if not path.endswith("/kernel"):
        return array.reshape(-1)
    rows = math.prod(array.shape[: input_axes(path)])
    return np.ascontiguousarray(array.reshape(rows, -1).T)


def ours(path: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `theirs`; ``shape`` is the array's here."""
    return (tensor.T if path.endswith("/kernel") else tensor).reshape(shape)


def shape_of_theirs(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `theirs` of an array of this shape."""
    if not path.endswith("/kernel"):
        return (math.prod(shape),)
    inputs = input_axes(path)
    return math.prod(shape[inputs:]), math.prod(shape[:inputs])


def named(layer: Mapping[str, np.ndarray], table: Mapping[str, str], prefix: str) -> Tensors:
    """A layer's tensors by their names elsewhere; the table has every path."""
    return {prefix + table[path]: theirs(path, array) for path, array in layer.items()}


def embedded(config: ModelConfig, params: Any) -> np.ndarray:
    """The table of what tokens are as they enter the first layer, [ids in use, D]: multiplied by
    sqrt(D), which models/transformer.py does for itself, and without the ids that only pad."""
    table_VD = np.asarray(params["embed"]["embedding"])[: config.ids_in_use or None]
    return table_VD * np.float32(config.d_model**0.5)


def projected(config: ModelConfig, params: Any) -> np.ndarray:
    """The output projection, [ids in use, D]."""
    kernel = params["embed"]["embedding"] if config.tied_output else params["output"]["kernel"].T
    return np.ascontiguousarray(np.asarray(kernel)[: config.ids_in_use or None])


def stacked(config: ModelConfig, of_layers: list[Layer]) -> dict[str, Any]:
    """`segment_<i>` -> parameters, of the distinct layers of a plan in order."""
    trees, first = {}, 0
    for index, segment in enumerate(config.plan.segments):
        own = of_layers[first : first + segment.layers]
        tree = {path: np.stack([layer[path] for layer in own]) for path in own[0]}
        trees[f"segment_{index}"] = {"layers": {"layer": unflatten_dict(tree, sep="/")}}
        first += segment.layers
    return trees


def refuse_all_but(
    layout: str,
    config: ModelConfig,
    allowed: Mapping[str, tuple[Any, ...]],
    loop: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """UserError, which names the key, for what ``layout`` cannot express: a field of ``config``
    with another value than the allowed ones, or an option of config.loop other than those that
    ``loop`` allows, beside its default."""
    for field, values in allowed.items():
        found = getattr(config, field)
        if found not in values:
            key = f"loop.{field}" if f"loop.{field}" in KEYS else f"model.{field}"
            raise UserError(
                f"--layout={layout} cannot express config.{key}={found!r}, only "
                f"{' or '.join(map(repr, values))}"
            )
    for option, name in config.loop:
        if name not in (loop or {}).get(option, ()):
            raise UserError(f"--layout={layout} cannot express config.loop.{option}={name!r}")
