"""Kills preparing and training at random moments and compares the results with undisturbed ones.

Prepares $PILE_DIR and trains the small 12⊗2 on it for 120 steps, twice each: once left alone, once
killed (SIGKILL) ten times at random moments and started again each time by the same command.
Shards must be the same bytes, parameters and metrics the same bits.

    python -m benchmarks.kills --pile=$PILE_DIR
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

from benchmarks.common import machine, save

STEPS = 120
EXPERIMENT = "--config=experiments/pile_12x2.py:small"


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    """Starts a module of ours."""
    return subprocess.Popen([sys.executable, "-m", *arguments], stderr=subprocess.DEVNULL)


def killed(rng: random.Random, latest: float, *arguments: str) -> list[float]:
    """Runs a command to its end, killed on the way; returns the seconds each life lasted."""
    lives = []
    for _ in tqdm(range(ARGUMENTS.kills), desc=arguments[0], unit="kill"):
        process = start(*arguments)
        moment = rng.uniform(0.0, latest)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            lives.append(moment)
    if start(*arguments).wait():
        raise RuntimeError(f"{' '.join(arguments)} failed")
    return lives


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def computed(workdir: pathlib.Path) -> tuple[list[dict[str, float]], list[Any]]:
    """Metrics without speeds, and the arrays of the last checkpoint."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore((workdir / "checkpoints" / str(STEPS) / "state").resolve())
    return metrics, [np.asarray(x) for x in ocp.tree.to_flat_dict(state).values()]


def main() -> None:
    """Runs all four and compares."""
    rng = random.Random(ARGUMENTS.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
        whole, cut = folder / "whole", folder / "cut"
        # Small blocks and several shards, so that there is more to be interrupted.
        prepare = ("looped_jax.prepare", EXPERIMENT, f"--config.data.path={ARGUMENTS.pile}")
        prepare += ("--config.prepare.block_kb=1024", "--config.prepare.shards=8")
        begun = time.perf_counter()
        if start(*prepare, f"--output={whole}").wait():
            raise RuntimeError("preparing failed")
        seconds = time.perf_counter() - begun
        prepare_lives = killed(rng, 0.4 * seconds, *prepare, f"--output={cut}")
        same_shards = contents(whole) == contents(cut)

        train = ("looped_jax.main", EXPERIMENT, f"--config.train.steps={STEPS}")
        train += ("--config.train.log_every=1", "--config.checkpoint.every=10")
        train += ("--config.eval.every=40", "--config.eval.examples=32")
        begun = time.perf_counter()
        if start(*train, f"--config.data.path={whole}", f"--workdir={folder / 'run'}").wait():
            raise RuntimeError("training failed")
        seconds = time.perf_counter() - begun
        again = (f"--config.data.path={cut}", f"--workdir={folder / 'killed'}")
        train_lives = killed(rng, 0.18 * seconds, *train, *again)
        (metrics, state), (metrics_k, state_k) = map(computed, (folder / "run", folder / "killed"))
        same_state = all(np.array_equal(a, b) for a, b in zip(state, state_k, strict=True))

    results = {
        "machine": machine(),
        "prepare": {"killed_after_seconds": prepare_lives, "same_bytes": same_shards},
        "train": {
            "killed_after_seconds": train_lives,
            "steps": STEPS,
            "same_parameters": same_state,
            "same_metrics": metrics == metrics_k,
        },
    }
    for what, result in list(results.items())[1:]:
        moments = ", ".join(f"{life:.1f}" for life in result["killed_after_seconds"])
        print(f"{what}: killed {len(result['killed_after_seconds'])} times, after {moments} s")
    print(f"shards the same bytes: {same_shards}")
    print(f"parameters, optimizer and key the same bits: {same_state}")
    print(f"metrics the same: {metrics == metrics_k}")
    save("kills", results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pile", required=True, help="folder of Pile-format shards")
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    ARGUMENTS = parser.parse_args()
    main()
