"""Tokens generated per second by a 4x3 model, against Hugging Face transformers with its cache.

The model of benchmarks/train_step.py: 4 layers looped 3 times, d 256, 8 heads, ff 1024 GELU,
vocabulary 8192 tied, RoPE, float32. Greedy, prompts of 128 tokens, 128 new ones, 1 and 16 rows. The
peer's cache is keyed by layer, so it is a Llama with 12 distinct layers of equal FLOPs; without
a cache each of ours and theirs reads the whole text again for every token.

    python -m benchmarks.decode --rounds=5      # needs pip install -e '.[bench]'
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.common import interleaved, machine, save
from benchmarks.train_step import FF, D, H, K, L, V, llama
from looped_jax.config import default_config
from looped_jax.inference.generator import Generator
from looped_jax.models.config import ModelConfig
from looped_jax.models.transformer import LoopedTransformer, forward, logits
from looped_jax.parallel.mesh import make_mesh
from looped_jax.training.optimizer import make_optimizer
from looped_jax.training.state import init_state, parameter_axes, state_layout

PROMPT, NEW = 128, 128
# Without a cache only so many tokens are timed: each takes the same whole pass.
NEW_WITHOUT_CACHE = 8


def ours() -> tuple[LoopedTransformer, Any, Any, Any]:
    """Model, parameters, mesh and rules."""
    config = default_config()
    config.model.update(plan=f"{K}x{L}", d_model=D, num_heads=H, d_ff=FF, vocab_size=V)
    model = LoopedTransformer(
        ModelConfig.from_config(config, vocab_size=V, max_length=PROMPT + NEW)
    )
    mesh = make_mesh(config)
    optimizer = make_optimizer(config.optimizer, 1, parameter_axes(model))
    layout = state_layout(model, optimizer, mesh, config.mesh.rules)
    return model, init_state(model, optimizer, 0, layout).params, mesh, config.mesh.rules


def ways(rows: int, model: Any, params: Any, mesh: Any, rules: Any, peer: Any) -> dict[str, Any]:
    """What is timed, and how many tokens each call makes."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, V, size=(rows, PROMPT)).astype(np.int32)
    generator = Generator(model, params, mesh, rules, batch_size=rows)
    texts = prompts.tolist()
    whole_pass = jax.jit(lambda p, t: logits(model.config, forward(model, p, t)))
    whole = np.pad(prompts, ((0, 0), (0, NEW)))
    theirs = torch.from_numpy(prompts.astype(np.int64))

    def with_cache() -> None:
        made = generator.generate(texts, NEW, chunk=NEW)
        assert all(len(row.tokens) == NEW or row.ended for row in made)

    def without_cache() -> None:
        for i in range(NEW_WITHOUT_CACHE):
            logits_BV = whole_pass(params, whole)[:, PROMPT - 1 + i]
            whole[:, PROMPT + i] = np.asarray(logits_BV).argmax(-1)

    def huggingface(use_cache: bool, count: int) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                peer.generate(
                    theirs,
                    attention_mask=torch.ones_like(theirs),
                    max_new_tokens=count,
                    min_new_tokens=count,
                    do_sample=False,
                    use_cache=use_cache,
                )

        return run

    return {
        "looped_jax": (with_cache, NEW),
        "Hugging Face Llama": (huggingface(True, NEW), NEW),
        "looped_jax, no cache": (without_cache, NEW_WITHOUT_CACHE),
        "Hugging Face Llama, no cache": (
            huggingface(False, NEW_WITHOUT_CACHE),
            NEW_WITHOUT_CACHE,
        ),
    }


def main() -> None:
    """Times all in turn and prints tokens per second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    # Never ends by itself.
    parts, peer = ours(), llama(eos_token_id=None, pad_token_id=0).eval()
    results: dict[str, Any] = {"machine": machine(), "tokens_per_second": {}}
    for rows in (1, 16):
        timed = ways(rows, *parts, peer)
        seconds = interleaved({name: call for name, (call, _) in timed.items()}, rounds)
        print(f"{rows} rows: tokens per second, median")
        for name, (_, count) in timed.items():
            rates = [rows * count / value for value in seconds[name]]
            results["tokens_per_second"].setdefault(str(rows), {})[name] = rates
            print(f"  {name:30} {statistics.median(rates):8.1f}")
    save("decode", results)


if __name__ == "__main__":
    main()
