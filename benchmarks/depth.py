"""Compile time and memory as the loop count grows.

Trace and compile time of the train step of 4xL with rolled scans at L = 24 against L = 2, and the
temporary memory (XLA's own figure) per extra loop with `loop` rematerialisation, against the
activations at a loop's boundary: B x T x D x 4 bytes.

    python -m benchmarks.depth
"""

import time

import jax
import numpy as np

from benchmarks.common import machine, save
from looped_jax.config import default_config
from looped_jax.data.pipeline import train_batches
from looped_jax.training.job import make_job
from looped_jax.training.train_step import make_train_step

ROUNDS = 5


def lowered(loops: int, remat: str) -> tuple:
    """(seconds to trace and compile, temporary bytes, boundary bytes) of the train step."""
    config = default_config()
    config.model.update(plan=f"4x{loops}", d_model=128, num_heads=4, d_ff=512)
    config.model.update(remat=remat, unroll="none")
    config.data.task = "phop_p16_n256"
    config.train.batch_size = 16
    job = make_job(config)
    rows = next(train_batches(job.data, config))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rows)
    start = time.perf_counter()
    with job.context():
        step = jax.jit(make_train_step(job.model, job.optimizer), donate_argnums=0)
        compiled = step.lower(job.layout.abstract, batch).compile()
    seconds = time.perf_counter() - start
    boundary = int(np.prod(rows["tokens"].shape)) * config.model.d_model * 4
    return seconds, compiled.memory_analysis().temp_size_in_bytes, boundary


def main() -> None:
    """Measures both and prints them."""
    jax.config.update("jax_enable_compilation_cache", False)
    lowered(3, "none")  # First use of everything.
    seconds: dict[int, list[float]] = {2: [], 24: []}
    for _ in range(ROUNDS):
        for loops in seconds:
            seconds[loops].append(lowered(loops, "none")[0])
    medians = {loops: float(np.median(values)) for loops, values in seconds.items()}
    for loops, value in medians.items():
        print(f"trace + compile at L = {loops:2}: {value:.2f} s")
    print(f"ratio: {medians[24] / medians[2]:.2f}")
    memory: dict[str, dict[int, int]] = {}
    for remat in ("none", "layer", "loop"):
        sizes = {loops: lowered(loops, remat)[1] for loops in (2, 4, 8, 16)}
        boundary = lowered(2, remat)[2]
        grown = (sizes[16] - sizes[2]) / 14
        memory[remat] = sizes
        print(
            f"remat={remat:5}: {sizes[2] / 2**20:7.1f} MiB of temporaries at L = 2, "
            f"+{grown / 2**20:.2f} MiB a loop = {grown / boundary:.2f} boundary activations"
        )
    save(
        "depth",
        {
            "machine": machine(),
            "compile_seconds": seconds,
            "boundary_bytes": boundary,
            "temporary_bytes": memory,
        },
    )


if __name__ == "__main__":
    main()
