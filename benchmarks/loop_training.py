"""What drawn loop counts and losses of every loop cost: seconds per training step.

Drawn counts: 4 layers, d 256, 8 x 256 tokens, gradients through the last 4 loops; counts of mean 8
(Poisson-log-normal) against 8 loops in every step, and against the plain 4x8, whose step has
gradients through all loops. A step of drawn counts is as long as its count: a call here is STEPS of
them, one compilation for all.

Losses of every loop: 4x4, d 768, vocabulary 8192, 4 x 256 tokens; Ouro's expected loss with its
gate, and weighted losses, against the last loop's.

    python -m benchmarks.loop_training --rounds=5

Ratios are medians over rounds of the seconds of an arm over its reference's in the same round.
"""

import argparse
import statistics
from typing import Any

import jax
import numpy as np

from benchmarks.common import interleaved, load, machine, save
from looped_jax.config import default_config, set_key
from looped_jax.parallel.mesh import put_batch
from looped_jax.training.job import Job, jitted_train_step, make_job
from looped_jax.training.state import init_state

STEPS = 12
LENGTH = 256
MEAN = 8
DRAWN = {
    "counts.distribution": "lognormal_poisson",
    "counts.gradient_loops": 4,
    "model.plan": f"4x{MEAN - 1}",  # Its mean is one more than the plan's.
}
LOOPS = ("loops", "computed_loops")  # Of what a step reports.
FIXED = {"counts.gradient_loops": 4, "model.plan": f"4x{MEAN}"}
EXPECTED = {"loop.gate": "linear", "loop_loss.kind": "expected"}
GATES = {"model.plan": "4x4", "model.d_model": 768, "model.d_ff": 3072, "train.batch_size": 4}
ARMS: dict[str, dict[str, Any]] = {
    "drawn": DRAWN,
    "drawn by row": {**DRAWN, "counts.by": "row"},
    "fixed": FIXED,
    "plain": {"model.plan": f"4x{MEAN}"},
    "last": GATES,
    "expected": {**GATES, **EXPECTED},
    "weighted": {**GATES, "loop_loss.kind": "weighted"},
}


def make(overrides: dict[str, Any]) -> Job:
    """The job of an arm."""
    config = default_config()
    config.data.task = "group_s3_n7"
    config.data.length = LENGTH
    config.model.update(d_model=256, num_heads=8, d_ff=1024, vocab_size=8192)
    config.optimizer.update(name="adamw", learning_rate=1e-4)
    config.train.update(steps=1000, batch_size=8)
    config.mesh.data = 1
    for key, value in overrides.items():
        set_key(config, key, value)
    return make_job(config.lock())


def stepper(job: Job, steps: int, counted: list[dict[str, float]]) -> Any:
    """The function that trains ``steps`` steps, the same ones every time it is called, and adds
    what they said of their loops, on average, to ``counted``."""
    rng, size, length = np.random.default_rng(0), job.config.train.batch_size, LENGTH
    tokens = rng.integers(3, 8000, (size, length + 1)).astype(np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": np.ones((size, length), np.float32),
        "segment_ids": np.ones((size, length), np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (size, length)),
    }
    step = jitted_train_step(job)
    first = init_state(job.model, job.optimizer, 0, job.layout)
    with job.context():
        rows = put_batch(batch, job.mesh)

    def run() -> None:
        state, said = jax.tree.map(lambda x: x.copy(), first), []
        with job.context():
            for _ in range(steps):
                state, metrics = step(state, rows)
                said.append({name: metrics.get(name, 0.0) for name in LOOPS})
        jax.block_until_ready(state)
        counted.append({name: float(np.mean([one[name] for one in said])) for name in LOOPS})
        assert step._cache_size() == 1

    return run


def main() -> None:
    """Prints and saves the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("counts", "losses"))
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": machine()}
    for name, arms, steps, reference in (
        ("counts", ("drawn", "drawn by row", "fixed", "plain"), STEPS, "fixed"),
        ("losses", ("last", "expected", "weighted"), 1, "last"),
    ):
        if arguments.only not in (None, name):
            results[name] = load("loop_training")[name]
            continue
        jobs = {arm: make(ARMS[arm]) for arm in arms}
        counted: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        seconds = interleaved(
            {arm: stepper(job, steps, counted[arm]) for arm, job in jobs.items()},
            arguments.rounds,
        )
        medians = {arm: statistics.median(times) for arm, times in seconds.items()}
        base = jobs[reference].mean_step_flops
        for arm, job in jobs.items():
            # Of the steps that were made: a mean of few draws is not the distribution's.
            said = counted[arm][0]
            share = job.step_flops(job.counts.computed(said) if job.counts else None) / base
            pairs = zip(seconds[arm], seconds[reference], strict=True)
            ratio = statistics.median(mine / theirs for mine, theirs in pairs)
            print(f"{arm:13} {medians[arm]:7.2f} s  {ratio:.3f} of {reference}, ", end="")
            print(f"loops {said['loops']:.2f}, FLOPs {share:.3f}")
        results[name] = {"seconds": seconds, "loops": {a: c[0] for a, c in counted.items()}}
    save("loop_training", results)


if __name__ == "__main__":
    main()
