"""With what parameters a looped model begins that has the layers of a pretrained one.

What config.loop adds begins where the loop is the plain one, or nearer to the source where a kind
of loop can be:

injection=concat   [I; 0]: the stream as it is, the input not yet
per_loop=step      a = 1 in the first loop, 0 in later ones: with all of the source's layers in the
                   plan this is the source
per_loop=lora      where loops x layers of the looped segment are as many as the layers that it
                   chooses from, B_t A_t is what layer (t, i) of the source has beside the shared
                   layer i, by singular values: U S V^T = W_source - W_shared cut at lora_rank
                   (Relaxed Recursive Transformers, arXiv 2410.20672, section 2.3, with A = V_r^T
                   and B = U_r S_r); at full rank this is the source. Norms' scales are in the
                   matrices behind them, and are 1.
"""

import dataclasses
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from looped_jax.errors import UserError
from looped_jax.interop.imported import imported, layer_shapes, mean_layer, reader_of
from looped_jax.interop.layer_choice import Choice, parts_of
from looped_jax.interop.source import Source
from looped_jax.interop.weights import Layer, input_axes
from looped_jax.models.config import ModelConfig
from looped_jax.models.loops.base import PER_LOOP

# The norm whose scale multiplies what a projection is given.
NORM_OF = {
    **{f"attention/{name}/kernel": "attention_norm/scale" for name in ("query", "key", "value")},
    **{f"mlp/{name}/kernel": "mlp_norm/scale" for name in ("gate", "up")},
}


def start(source: Source, config: ModelConfig, depth: int, choice: Choice, fresh: Any) -> Any:
    """All parameters, of ``fresh`` ones those that the source has not. UserError as `imported`, and
    for what the source has and the run does not."""
    source = dataclasses.replace(source, taken=set())  # Of what is read from here on.
    flat = flatten_dict(fresh, sep="/")
    known = flatten_dict(imported(source, config, choice), sep="/")
    if lost := sorted(set(known) - set(flat)):
        raise UserError(
            f"{source.path} has {lost[0]}, for which plan {config.plan} with config.loop of "
            f"{dict(config.loop)} has no place: leave config.loop as the source has it"
        )
    flat |= known
    options = dict(config.loop)
    for index in config.plan.looped:
        here = f"segment_{index}"
        if options.get("injection") == "concat":
            width = config.d_model
            flat[f"{here}/injection/kernel"] = np.eye(2 * width, width, dtype=np.float32)
        if options.get("per_loop") == "step":
            size_LD = np.zeros(flat[f"{PER_LOOP}/{here}/per_loop/size"].shape, np.float32)
            size_LD[0] = 1.0
            flat[f"{PER_LOOP}/{here}/per_loop/size"] = size_LD
    if options.get("per_loop") == "lora":
        _add_lora(flat, source, config, depth, choice)
    source.refuse_unread()
    return unflatten_dict(flat, sep="/")


def _add_lora(
    flat: dict[str, Any], source: Source, config: ModelConfig, depth: int, choice: Choice
) -> None:
    """Puts what the source's layers have beside the shared ones in ``flat``, where they are as many
    as layers that pass; otherwise LoRA begins at 0, the plain loop."""
    _, pool, _ = parts_of(config.plan, depth)
    if len(config.plan.looped) != 1:
        return
    (index,) = config.plan.looped
    segment = config.plan.segments[index]
    if segment.layers * segment.loops != len(pool):
        return
    first = sum(s.layers for s in config.plan.segments[:index])
    shapes = layer_shapes(config)[first]
    reader, here = reader_of(source), f"segment_{index}/layers/layer"
    if config.bias or config.qk_norm or config.norms != "pre":
        raise UserError(
            f"{source.path}: config.loop.per_loop='lora' shares biases and norms of heads and of "
            "branches between loops, which this source has of every layer; per_loop='step' can "
            "begin as it"
        )
    for path in flat:
        if path.startswith(f"{PER_LOOP}/{here}/"):
            flat[path] = np.array(flat[path])  # To write in.
    read = {number: _folded(reader.read_layer(source, number, shapes)) for number in pool}
    for layer in range(segment.layers):
        shared = mean_layer([read[number] for number in choice[first + layer]])
        for path, array in shared.items():
            flat[f"{here}/{path}"][layer] = array
            if not path.endswith("/kernel"):
                continue
            name = path.removesuffix("/kernel")
            for loop in range(segment.loops):
                own = read[pool[loop * segment.layers + layer]][path]
                a, b = thin(own - array, config.lora_rank, path)
                place = f"{PER_LOOP}/{here}/{name}"
                flat[f"{place}/lora_a"][loop, layer] = a
                flat[f"{place}/lora_b"][loop, layer] = b


def _folded(layer: Layer) -> Layer:
    """The same layer with scales of 1 in its norms."""
    layer = dict(layer)
    for path, norm in NORM_OF.items():
        if path in layer:
            kernel = layer[path]
            layer[path] = kernel * layer[norm].reshape(-1, *(1,) * (kernel.ndim - 1))
    for norm in set(NORM_OF.values()):
        layer[norm] = np.ones_like(layer[norm])
    return layer


def thin(difference: np.ndarray, rank: int, path: str) -> tuple[np.ndarray, np.ndarray]:
    """A [in …, rank] and B [rank, out …], the product of which is nearest to ``difference``
    [in …, out …] of all of that rank."""
    inputs = input_axes(path)
    shape = difference.shape
    flat = difference.reshape(int(np.prod(shape[:inputs])), -1)
    u, s, vt = np.linalg.svd(flat, full_matrices=False)
    count = min(rank, len(s))
    a = np.zeros((len(flat), rank), np.float32)
    b = np.zeros((rank, flat.shape[1]), np.float32)
    a[:, :count], b[:count] = u[:, :count], s[:count, None] * vt[:count]
    return a.reshape(*shape[:inputs], rank), b.reshape(rank, *shape[inputs:])
