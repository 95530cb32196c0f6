"""What several tests build."""

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import zstandard
from flax import linen as nn

from looped_jax.config import ConfigDict, default_config, set_key
from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import Layer, LayerInputs
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.models.loops.base import init_keys, parameters
from looped_jax.models.transformer import LoopedTransformer, batch_forward, forward, logits
from looped_jax.parallel.mesh import put_batch
from looped_jax.training.job import make_job
from looped_jax.training.train_step import loss_and_grads

NEEDS_TENSORFLOW = "TensorFlow comes with the extra data: pip install -e '.[data]'"

MESHES = {
    "1": dict(mesh__data=1),
    "8 data": dict(mesh__data=8),
    "8 fsdp": dict(mesh__data=1, mesh__fsdp=8),
    "2 data, 2 fsdp, 2 tensor": dict(mesh__data=2, mesh__fsdp=2, mesh__tensor=2),
    "2 fsdp, 2 tensor, 2 sequence": dict(
        mesh__data=1, mesh__fsdp=2, mesh__tensor=2, mesh__sequence=2
    ),
}
# With the weights of a segment gathered once for all its loops.
for name in list(MESHES)[1:]:
    MESHES[f"{name}, gathered"] = dict(MESHES[name], model__gather="segment")
# Every axis, gathered and not, for what is made of parts that are tried on every mesh.
TWO_MESHES = ("2 data, 2 fsdp, 2 tensor, gathered", "2 fsdp, 2 tensor, 2 sequence")


def small_model(plan: str = "2x2", **fields: Any) -> LoopedTransformer:
    """A model that compiles in a second."""
    defaults = dict(vocab_size=16, max_length=12, d_model=16, num_heads=4, num_kv_heads=4, d_ff=32)
    return LoopedTransformer(ModelConfig(plan=LoopPlan.parse(plan), **{**defaults, **fields}))


def init(model: LoopedTransformer, seed: int = 0) -> Any:
    """Its parameters, plain arrays."""
    tokens = np.zeros((1, 2), np.int32)
    variables = jax.jit(model.init)(init_keys(jax.random.key(seed)), tokens)
    return nn.unbox(parameters(variables))


@functools.cache
def random_params(model: LoopedTransformer, spread: float = 0.3) -> Any:
    """Parameters of which none is what it is where training begins: kinds of loops that begin as
    the plain one differ from it. Nothing is compiled for them."""
    rng = np.random.default_rng(0)

    def drawn(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        middle, width = (1.0, spread) if name == "scale" else (0.0, 0.25)
        return (middle + width * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(drawn, jax.eval_shape(lambda: init(model)))


@functools.partial(jax.jit, static_argnums=0)
def layer_by_hand(config: ModelConfig, weights: Any, x: Any, inputs: LayerInputs) -> Any:
    """A plain layer, compiled once for all that a plain `for` goes through: what is around it is
    run operation by operation, for a whole `for` takes longer to compile than to run."""
    return Layer(config).apply({"params": weights}, x, inputs)[0]


def batch_logits(
    model: LoopedTransformer, params: Any, batch: dict[str, Any], loops: int | None = None
) -> Any:
    """logits_BTV of a batch of rows."""
    return logits(model.config, batch_forward(model, params, batch, loops=loops))


def token_logits(
    model: LoopedTransformer, params: Any, tokens_BT: Any, loops: int | None = None
) -> Any:
    """logits_BTV of rows of one document each."""
    return logits(model.config, forward(model, params, tokens_BT, loops=loops))


def share(process: int, of: int, batch_size: int) -> np.ndarray:
    """The rows of a batch that are one process's of several."""
    return np.arange(batch_size).reshape(of, -1)[process]


def random_rows(rows: int = 8, length: int = 12, vocab: int = 16, seed: int = 0) -> dict[str, Any]:
    """A batch of random rows, each packed from two segments, with random weights."""
    rng = np.random.default_rng(seed)
    cut = rng.integers(2, length - 1, size=(rows, 1))
    at = np.arange(length)
    return {
        "tokens": rng.integers(3, vocab, size=(rows, length)).astype(np.int32),
        "targets": rng.integers(3, vocab, size=(rows, length)).astype(np.int32),
        "loss_weights": rng.integers(0, 2, size=(rows, length)).astype(np.float32),
        "answer": np.zeros((rows, length), bool),
        "segment_ids": (1 + (at >= cut)).astype(np.int32),
        "positions": np.where(at >= cut, at - cut, at).astype(np.int32),
    }


def distinct_tokens(rows: int, length: int) -> np.ndarray:
    """tokens_BT, none of which is in its row twice."""
    ids = np.tile(np.arange(3, 3 + length, dtype=np.int32), (rows, 1))
    return np.random.default_rng(0).permuted(ids, axis=1)


def small_config(**overrides: Any) -> ConfigDict:
    """A run of seconds: composition in Z7; keys as `train__steps`."""
    config = default_config()
    config.name = "small"
    config.data.task = "group_z7_n4"
    config.model.update(plan="1x2", d_model=16, num_heads=4, d_ff=32)
    config.optimizer.update(name="adamw", learning_rate=1e-2, warmup_steps=4)
    config.train.update(steps=12, batch_size=16, log_every=2)
    config.checkpoint.update(every=4, keep=2)
    config.eval.update(every=6, examples=32)
    for key, value in overrides.items():
        set_key(config, key.replace("__", "."), value)
    return config.lock()


def step_on_mesh(config: ConfigDict, rows: dict[str, Any]) -> Any:
    """Metrics and gradients of a training step at ``random_params``, on the config's mesh,
    fetched."""
    job = make_job(config)
    params = jax.device_put(random_params(job.model), job.layout.shardings.params)
    compute = jax.jit(lambda p, b: loss_and_grads(job.model, p, b, losses=job.losses))
    with job.context():
        return jax.device_get(compute(params, put_batch(rows, job.mesh)))


def assert_close(there: Any, here: Any, tolerance: float = 2e-4, share: float = 0.5) -> None:
    """Of two trees of arrays: sums of large numbers have errors of their size, of which a
    ``share`` of the tolerance is let through."""

    def one(a: Any, b: Any) -> None:
        size = max(1.0, float(np.max(np.abs(b))))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * size * share)

    jax.tree.map(one, there, here)


def write_pile(folder: pathlib.Path, documents: int = 60, seed: int = 0) -> None:
    """Pile-format shards: two for training, one each for validation and test."""
    rng = np.random.default_rng(seed)
    words = ["loop", "layer", "und", "тест", "⊗", "x = 1\n", "\t"]

    def record() -> str:
        text = " ".join(rng.choice(words, size=rng.integers(0, 40)))
        name = str(rng.choice(["ArXiv", "Github", "PG-19"]))
        return json.dumps({"text": text, "meta": {"pile_set_name": name}}) + "\n"

    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (
        ("train-00000", documents),
        ("train-00001", documents),
        ("val", documents // 2),
        ("test", 3),
    ):
        content = "".join(record() for _ in range(count)).encode()
        (folder / f"{name}.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(content))


LANGUAGE_MODEL = """
from looped_jax.config import default_config, set_key

def get_config():
    config = default_config()
    config.data.task = "text"
    config.model.update(plan="1x2", d_model=16, num_heads=4, d_ff=32)
    config.optimizer.update(name="adamw", warmup_steps=4)
    config.train.batch_size = 8
    for key, value in {values!r}.items():
        set_key(config, key, value)
    return config
"""


def write_language_model(path: pathlib.Path, **values: Any) -> None:
    """An experiment file of a language model that trains in seconds; keys as `train__steps`."""
    dotted = {key.replace("__", "."): value for key, value in values.items()}
    path.write_text(LANGUAGE_MODEL.format(values=dotted))
