"""What a training step of Mixture-of-Recursions costs: every loop over all tokens (masked), over
those that it chose (gathered), and without routing. Seconds, and model FLOPs beside them.

1x1,4x3,1x1 of width 512 on 2 x 256 tokens, vocabulary 8192.

    python -m benchmarks.routing --rounds=5
"""

import argparse
import statistics
from typing import Any

from benchmarks.common import interleaved, machine, save
from benchmarks.loop_training import make, stepper

SIZE = {"model.plan": "1x1,4x3,1x1", "model.d_model": 512, "model.d_ff": 2048}
SIZE |= {"train.batch_size": 2}
CHOOSING = {**SIZE, "loop.routing": "expert_choice"}
ARMS: dict[str, dict[str, Any]] = {
    "plain": SIZE,
    "masked": CHOOSING,
    "gathered": {**CHOOSING, "loop.routed_tokens": "gathered"},
}


def main() -> None:
    """Prints and saves the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    jobs = {arm: make(overrides) for arm, overrides in ARMS.items()}
    seconds = interleaved({arm: stepper(job, 1, []) for arm, job in jobs.items()}, rounds)
    medians = {arm: statistics.median(times) for arm, times in seconds.items()}
    flops = {arm: job.step_flops(None) for arm, job in jobs.items()}
    for arm, median in medians.items():
        print(f"{arm:9} {median:6.2f} s  {median / medians['masked']:.3f} of masked, ", end="")
        print(f"FLOPs {flops[arm] / flops['masked']:.3f}")
    save("routing", {"machine": machine(), "seconds": seconds, "flops": flops})


if __name__ == "__main__":
    main()
