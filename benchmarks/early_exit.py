"""What early exits save when decoding one row, against what their depths promise.

A 2x8 model of d 512, 8 heads, ff 2048, vocabulary 1024 tied, float32, with a gate that says the
same of every token, so that all leave after n loops (`cdf:0.5:n`). 128 new tokens after a
prompt of 8, whose time (it goes through all loops, by the time of a call for one token) is taken
off. From the times of fixed passes with 1 and 8 loops follows what a token costs beside its loops
and in each; n loops promise that line's value. The exit's time may be 15% more.

    python -m benchmarks.early_exit --rounds=5
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.common import interleaved, machine, save
from looped_jax.config import default_config
from looped_jax.inference.generator import Generator
from looped_jax.inference.policy import EXACT, Policy
from looped_jax.models.config import ModelConfig
from looped_jax.models.loops.base import init_keys, parameters
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.parallel.mesh import make_mesh

PROMPT, NEW, LOOPS, VOCABULARY = 8, 128, 8, 1024
DEPTHS = (1, 2, 4, 8)


def model_and_parameters() -> tuple[LoopedTransformer, Any, Any]:
    """The model, its parameters with a sure gate, and the config."""
    config = default_config()
    config.model.update(plan=f"2x{LOOPS}", d_model=512, num_heads=8, d_ff=2048)
    config.loop.gate = "linear"
    model = LoopedTransformer(
        ModelConfig.from_config(config, vocab_size=VOCABULARY, max_length=PROMPT + NEW)
    )
    tokens = np.zeros((1, 2), np.int32)
    boxed = parameters(jax.jit(model.init)(init_keys(jax.random.key(0)), tokens))
    params = jax.tree.map(lambda box: box.unbox(), boxed, is_leaf=lambda x: hasattr(x, "unbox"))
    gate = {**params["segment_0"]["gate"], "bias": np.float32(30.0)}
    return model, {**params, "segment_0": {**params["segment_0"], "gate": gate}}, config


def main() -> None:
    """Times all in turn and prints ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    model, params, config = model_and_parameters()
    prompt = np.random.default_rng(0).integers(3, VOCABULARY, size=PROMPT).tolist()

    timed: dict[str, Callable[[], None]] = {}

    def add(name: str, loops: int, policy: Policy) -> None:
        parts = (model, params, make_mesh(config), config.mesh.rules, loops)
        generator = Generator(*parts, batch_size=1, policy=policy)

        def run(count: int) -> None:
            (row,) = generator.generate([prompt], count, chunk=count)
            assert len(row.tokens) == count, "the model ended by itself"

        timed[name] = functools.partial(run, NEW)
        timed[f"{name}, one token"] = functools.partial(run, 1)

    for n in DEPTHS:
        add(f"fixed {n}", n, EXACT)
        add(f"exit {n}", LOOPS, Policy.parse("per_loop", f"cdf:0.5:{n}"))
    add("last", LOOPS, Policy.parse("last", "none"))
    seconds = interleaved(timed, rounds)
    whole = {name: statistics.median(values) for name, values in seconds.items()}
    ways = [name for name in timed if not name.endswith("one token")]
    median = {name: (whole[name] - whole[f"{name}, one token"]) / (NEW - 1) for name in ways}
    a_loop = (median[f"fixed {LOOPS}"] - median["fixed 1"]) / (LOOPS - 1)
    print("loops  fixed ms/token   exit  promised  exit/promised  gain over 8 loops")
    for n in DEPTHS:
        fixed, left = median[f"fixed {n}"], median[f"exit {n}"]
        promised = median["fixed 1"] + (n - 1) * a_loop
        print(
            f"{n:5}  {1e3 * fixed:14.2f}  {1e3 * left:5.2f}  "
            f"{1e3 * promised:8.2f}  {left / promised:13.2f}  "
            f"{median[f'fixed {LOOPS}'] / left:17.2f}"
        )
    print(f"cache of the last loop: {median['last'] / median['fixed 8']:.2f} of all loops")
    save("early_exit", {"machine": machine(), "seconds": seconds, "seconds_per_token": median})


if __name__ == "__main__":
    main()
