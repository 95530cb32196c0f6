"""Parameters here from the tensors of another project's model, and what is lost on the way out.

A factor that one side multiplies by itself (sqrt(D) of embeddings) is in the other side's tensors:
multiplying and dividing again may change a last bit. Where a model of ours goes out, the bits that
would not come back are kept beside it, so that it comes back as it was.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from looped_jax.errors import UserError
from looped_jax.interop import llama, ouro
from looped_jax.interop.source import Source
from looped_jax.interop.weights import Layer, stacked
from looped_jax.models.config import ModelConfig
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.training.state import parameter_shapes

# model_type of config.json -> what reads it.
READERS: dict[str, Any] = {
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "ouro": ouro,
}


def reader_of(source: Source) -> Any:
    """The module that reads a source; UserError for an architecture that there is none for."""
    kind = source.said("model_type")
    if kind not in READERS:
        raise UserError(
            f"{source.path} is of the architecture {kind!r}; those that are read are "
            f"{', '.join(READERS)}"
        )
    return READERS[kind]


def imported(source: Source, config: ModelConfig, chosen: Sequence[Sequence[int]]) -> Any:
    """Parameters of a model of ``config`` as far as the source has them: of each distinct layer of
    its plan the source's layers that are ``chosen``, their mean if there are several. UserError for
    tensors that are missing or of another shape."""
    reader, shapes = reader_of(source), layer_shapes(config)
    read: dict[int, Layer] = {}
    of_layers = []
    for numbers, own in zip(chosen, shapes, strict=True):
        for number in numbers:
            if number not in read:
                read[number] = reader.read_layer(source, number, own)
        of_layers.append(mean_layer([read[number] for number in numbers]))
    tree = flatten_dict(stacked(config, of_layers), sep="/")
    tree |= flatten_dict(reader.read_ends(source, config), sep="/")
    return unflatten_dict(tree, sep="/")


def mean_layer(parts: Sequence[Layer]) -> Layer:
    """The mean of layers, array by array; one is itself."""
    if len(parts) == 1:
        return parts[0]
    return {path: np.mean([part[path] for part in parts], axis=0) for path in parts[0]}


def layer_shapes(config: ModelConfig) -> list[dict[str, tuple[int, ...]]]:
    """Of each distinct layer of a plan, its arrays' shapes by path."""
    params = parameter_shapes(LoopedTransformer(config))
    found = []
    for index, segment in enumerate(config.plan.segments):
        stack = flatten_dict(params[f"segment_{index}"]["layers"]["layer"], sep="/")
        found += [{path: leaf.shape[1:] for path, leaf in stack.items()}] * segment.layers
    return found


def lost_bits(params: Any, back: Any) -> dict[str, np.ndarray]:
    """What differs in bits between parameters and what is read back of them: by `path@` the places
    in the flat array, by `path=` what is there."""
    lost: dict[str, np.ndarray] = {}
    was, came = (flatten_dict(tree, sep="/") for tree in (params, back))
    for path, array in was.items():
        bits = [np.asarray(a, np.float32).reshape(-1).view(np.uint32) for a in (array, came[path])]
        places = np.flatnonzero(bits[0] != bits[1])
        if len(places):
            lost |= {f"{path}@": places, f"{path}=": bits[0][places].view(np.float32)}
    return lost


def restored(back: Any, lost: Mapping[str, np.ndarray]) -> Any:
    """The parameters of which ``lost_bits`` were kept."""
    flat = flatten_dict(back, sep="/")
    tree = {path: np.array(array, np.float32, order="C") for path, array in flat.items()}
    for name, places in lost.items():
        if name.endswith("@"):
            tree[name[:-1]].reshape(-1)[places] = lost[f"{name[:-1]}="]
    return unflatten_dict(tree, sep="/")
