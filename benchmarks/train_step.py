"""Seconds per training step of a 4x3 model, against what a researcher would otherwise write.

The model: 4 layers looped 3 times, d 256, 8 heads, ff 1024 GELU, tied vocabulary of 8192, RoPE,
RMSNorm, 8 x 256 tokens, float32, AdamW. Peers: hand-written JAX (a `lax.scan` over loops and one
over layers, and the same unrolled), hand-written PyTorch eager, and Hugging Face's Llama with
12 distinct layers of equal FLOPs (its gated MLP with two thirds of the width).

    python -m benchmarks.train_step --rounds=15      # needs pip install -e '.[bench]'
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
import transformers

from benchmarks.common import interleaved, report
from looped_jax.config import default_config
from looped_jax.models.config import ModelConfig
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.parallel.mesh import make_mesh, mesh_context
from looped_jax.training.optimizer import make_optimizer
from looped_jax.training.state import init_state, parameter_axes, state_layout
from looped_jax.training.train_step import make_train_step

K, L, D, H, FF, V, B, T = 4, 3, 256, 8, 1024, 8192, 8, 256
RATE, B1, B2, EPS, DECAY = 1e-3, 0.9, 0.95, 1e-8, 0.1
Step = Callable[[], Any]


def looped_jax_step(tokens: np.ndarray, **model_fields: Any) -> Step:
    """This project's train step, as the trainer compiles it."""
    config = default_config()
    config.model.update(plan=f"{K}x{L}", d_model=D, num_heads=H, d_ff=FF, vocab_size=V)
    config.model.update(model_fields)
    config.optimizer.update(name="adamw", learning_rate=RATE, weight_decay=DECAY, clip_norm=0.0)
    config.train.batch_size = B
    model = LoopedTransformer(ModelConfig.from_config(config, vocab_size=V, max_length=T))
    optimizer = make_optimizer(config.optimizer, 1000, parameter_axes(model))
    mesh = make_mesh(config)
    layout = state_layout(model, optimizer, mesh, config.mesh.rules)
    state = init_state(model, optimizer, 0, layout)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": np.ones((B, T), np.float32),
        "segment_ids": np.ones((B, T), np.int32),
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
    }
    step = jax.jit(make_train_step(model, optimizer), donate_argnums=0)

    def run() -> None:
        nonlocal state
        with mesh_context(mesh, config.mesh.rules, model.config.dtype):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run


def plain_jax_step(tokens: np.ndarray, unroll: bool) -> Step:
    """Minimal JAX as one would write it by hand."""
    keys = iter(jax.random.split(jax.random.key(0), 16))
    init = lambda *shape: jax.random.normal(next(keys), shape) * shape[-2] ** -0.5  # noqa: E731
    params = {
        "embed": init(V, D) * 0.02,
        "final": jnp.ones(D),
        "layers": {
            "norm1": jnp.ones((K, D)),
            "norm2": jnp.ones((K, D)),
            "qkv": init(K, D, 3 * D),
            "out": init(K, D, D),
            "up": init(K, D, FF),
            "down": init(K, FF, D),
        },
    }
    half = D // H // 2
    angle = jnp.arange(T)[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    mask = jnp.tril(jnp.ones((T, T), bool))

    def rms(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale

    def rotate(x: jax.Array) -> jax.Array:
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def layer(x: jax.Array, p: dict[str, jax.Array]) -> jax.Array:
        q, k, v = (y.reshape(B, T, H, -1) for y in jnp.split(rms(x, p["norm1"]) @ p["qkv"], 3, -1))
        scores = jnp.einsum("bthk,bshk->bhts", rotate(q), rotate(k)) * (D // H) ** -0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30))
        x = x + jnp.einsum("bhts,bshk->bthk", weights, v).reshape(B, T, D) @ p["out"]
        return x + jax.nn.gelu(rms(x, p["norm2"]) @ p["up"]) @ p["down"]

    def loss(params: Any) -> jax.Array:
        x = params["embed"][tokens[:, :-1]]
        if unroll:
            for _ in range(L):
                for i in range(K):
                    x = layer(x, jax.tree.map(lambda p, i=i: p[i], params["layers"]))
        else:

            def block(x: jax.Array, _: None) -> tuple[jax.Array, None]:
                return jax.lax.scan(lambda x, p: (layer(x, p), None), x, params["layers"])[0], None

            x, _ = jax.lax.scan(block, x, None, length=L)
        logits = rms(x, params["final"]) @ params["embed"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    optimizer = optax.adamw(RATE, b1=B1, b2=B2, eps=EPS, weight_decay=DECAY)
    state = (params, optimizer.init(params))

    def step(state: Any) -> Any:
        params, moments = state
        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    jitted = jax.jit(step, donate_argnums=0)

    def run() -> None:
        nonlocal state
        state, value = jitted(state)
        jax.block_until_ready((state, value))

    return run


class TorchLooped(torch.nn.Module):
    """The same model in plain PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        linear = lambda i, o: torch.nn.Linear(i, o, bias=False)  # noqa: E731
        self.embed = torch.nn.Embedding(V, D)
        torch.nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "norm1": torch.nn.RMSNorm(D),
                    "norm2": torch.nn.RMSNorm(D),
                    "qkv": linear(D, 3 * D),
                    "out": linear(D, D),
                    "up": linear(D, FF),
                    "down": linear(FF, D),
                }
            )
            for _ in range(K)
        )
        self.final = torch.nn.RMSNorm(D)
        half = D // H // 2
        angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", torch.cos(angle))
        self.register_buffer("sin", torch.sin(angle))

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for _ in range(L):
            for p in self.layers:
                qkv = p["qkv"](p["norm1"](x)).view(B, T, 3, H, D // H).permute(2, 0, 3, 1, 4)
                q, k, v = self.rotate(qkv[0]), self.rotate(qkv[1]), qkv[2]
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                x = x + p["out"](mixed.transpose(1, 2).reshape(B, T, D))
                x = x + p["down"](F.gelu(p["up"](p["norm2"](x)), approximate="tanh"))
        return F.linear(self.final(x), self.embed.weight)


def torch_step(model: torch.nn.Module, tokens: np.ndarray) -> Step:
    """One eager step of a module that maps tokens to logits."""
    read, predict = (torch.from_numpy(t.astype(np.int64)) for t in (tokens[:, :-1], tokens[:, 1:]))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(B1, B2), eps=EPS, weight_decay=DECAY
    )

    def run() -> None:
        optimizer.zero_grad()
        out = model(read)
        logits = out if isinstance(out, torch.Tensor) else out.logits
        F.cross_entropy(logits.flatten(0, 1), predict.flatten()).backward()
        optimizer.step()

    return run


def llama(**more: Any) -> torch.nn.Module:
    """Hugging Face's Llama, 12 layers, with the FLOPs of the model above."""
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=K * L,
        num_attention_heads=H,
        intermediate_size=round(FF * 2 / 3),
        tie_word_embeddings=True,
        **more,
    )
    return transformers.LlamaForCausalLM(config)


def main() -> None:
    """Builds every peer, times them in turn, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    tokens = np.random.default_rng(0).integers(3, V, size=(B, T + 1)).astype(np.int32)
    steps = {
        "looped_jax": looped_jax_step(tokens),
        "looped_jax, unroll=layers": looped_jax_step(tokens, unroll="layers"),
        "looped_jax, unroll=none": looped_jax_step(tokens, unroll="none"),
        "plain JAX, lax.scan": plain_jax_step(tokens, unroll=False),
        "plain JAX, unrolled": plain_jax_step(tokens, unroll=True),
        "PyTorch eager": torch_step(TorchLooped(), tokens),
        "Hugging Face Llama": torch_step(llama(use_cache=False), tokens),
    }
    report("train_step", interleaved(steps, rounds), reference="PyTorch eager")


if __name__ == "__main__":
    main()
