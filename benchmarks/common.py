"""What the benchmarks share: interleaved timing, the machine's description, saving results."""

import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

RESULTS = pathlib.Path(__file__).parent / "results"


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call: every function once a round, so that all see the same machine.

    A function must return only when its work is done. One untimed call of each comes first.
    """
    for name, function in functions.items():
        tqdm.write(f"first call: {name}")
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in tqdm(range(rounds), unit="round"):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    import jax

    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def report(name: str, seconds: dict[str, list[float]], reference: str) -> None:
    """Prints medians and ratios to a reference and saves everything as results/<name>.json."""
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    width = max(map(len, medians))
    print(f"{'':{width}}  median s     min s   of {reference}")
    for key, median in medians.items():
        ratio = median / medians[reference]
        print(f"{key:{width}}  {median:8.3f}  {min(seconds[key]):8.3f}   {ratio:.2f}")
    save(name, {"machine": machine(), "seconds": seconds, "medians": medians})


def load(name: str) -> dict[str, Any]:
    """What results/<name>.json has."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def save(name: str, results: dict[str, Any]) -> None:
    """Writes results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"saved {RESULTS / name}.json")
