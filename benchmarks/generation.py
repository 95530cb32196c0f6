"""Synthetic examples generated per second and core, against what training consumes.

Each task is compared with the paper's model for it (the cheapest of the table's rows, the fastest
to train), whose training step is timed here, on this CPU. Generation must be at least 5 times
as fast, so that it never holds training up.

    python -m benchmarks.generation
"""

import time

import jax
import numpy as np

from benchmarks.common import machine, save
from looped_jax.config import ConfigDict, load_experiment
from looped_jax.data.pipeline import train_batches
from looped_jax.data.run_data import resolve
from looped_jax.parallel.mesh import put_batch
from looped_jax.training.job import make_job
from looped_jax.training.state import init_state
from looped_jax.training.train_step import make_train_step

# Task -> the experiment of its smallest model. Those without a table in the paper are compared
# with the p-hop model, the smallest of the three.
EXPERIMENTS = {
    "addition": "experiments/addition.py:1x1",
    "phop_p16_n256": "experiments/phop.py:1x1,p16",
    "phop_p32_n256": "experiments/phop.py:1x1,p32",
    "igsm": "experiments/igsm.py:1x1",
    "igsm_cot": "experiments/igsm.py:1x1,cot",
    "varassign_depth0_math": "experiments/phop.py:1x1",
    "varassign_depth1_code": "experiments/phop.py:1x1",
    "group_s3_n8": "experiments/phop.py:1x1",
    "group_s5_n32": "experiments/phop.py:1x1",
}
BATCH = 64  # Smaller than the paper's: examples per second hardly depend on it on a CPU.


def configured(task: str) -> ConfigDict:
    """The experiment's config with this task and a batch for a CPU."""
    config = load_experiment(EXPERIMENTS[task], {"train.batch_size": str(BATCH)})
    config.unlock()
    config.data.task = task
    config.eval.tasks = ()
    return config


def trained_per_second(config: ConfigDict) -> float:
    """Examples that the train step consumes in a second on all cores."""
    job = make_job(config)
    state = init_state(job.model, job.optimizer, 0, job.layout)
    batch = put_batch(next(train_batches(job.data, config)), job.mesh)
    with job.context():
        step = jax.jit(make_train_step(job.model, job.optimizer))
        jax.block_until_ready(step(state, batch))
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(step(state, batch))
            seconds.append(time.perf_counter() - start)
    return BATCH / float(np.median(seconds))


def generated_per_second(config: ConfigDict) -> float:
    """Rows that one thread makes ready in a second, from fresh blocks."""
    source = resolve(config).source("train")
    seconds, first = [], 0
    for _ in range(5):
        start = time.perf_counter()
        source.rows(np.arange(first, first + 2048))
        seconds.append(time.perf_counter() - start)
        first += 2048
    return 2048 / float(np.median(seconds))


def main() -> None:
    """Times each task and prints a table."""
    results = {}
    print(f"{'task':24} {'generated/s/core':>17} {'trained/s':>10} {'ratio':>7}")
    for task in EXPERIMENTS:
        config = configured(task)
        made, used = generated_per_second(config), trained_per_second(config)
        results[task] = {"generated": made, "trained": used}
        print(f"{task:24} {made:17,.0f} {used:10,.0f} {made / used:7.1f}")
    save("generation", {"machine": machine(), "tasks": results})


if __name__ == "__main__":
    main()
