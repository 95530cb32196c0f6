"""What a run says to who watches it: where it begins, how it is judged, how it ended.

All on stderr, beside the bar: stdout is for scripts.
"""

import datetime
import sys
from collections.abc import Mapping, Sequence

from etils import epath
from tqdm import tqdm

from looped_jax.evaluation.metric_table import judged_by, shown_evaluation
from looped_jax.parallel import distributed
from looped_jax.training.job import Job


def say(text: str) -> None:
    """Prints in the first process, above the bar if there is one."""
    if distributed.is_first():
        tqdm.write(text, file=sys.stderr)


def opening(job: Job, workdir: epath.Path, begins: str) -> str:
    """Of what, on what and where; ``begins``: at which step, and with what."""
    config, length = job.config, job.model.config.max_length
    size, devices = config.train.batch_size, job.mesh.devices
    kind = devices.flat[0].device_kind
    return (
        f"{config.name} {config.model.plan}: {job.layout.parameter_count:,} parameters, "
        f"{size * length:,} tokens a step ({size:,} rows of {length:,}), on {devices.size} x "
        f"{kind}, in {workdir}; {begins}"
    )


def no_mfu(job: Job) -> str:
    """Why there is no MFU, and where its divisor could be entered."""
    kind = job.mesh.devices.flat[0].device_kind
    return f"no perf/mfu: looped_jax/cost/peak_flops.py has no peak FLOP/s of {kind!r}"


def evaluation(step: int, line: Mapping[str, float]) -> str:
    """An evaluation as it comes; empty if it has nothing that models are judged by."""
    shown = shown_evaluation(line)
    return f"step {step:,}: {shown}" if shown else ""


def closing(steps: int, lines: Sequence[Mapping[str, float]]) -> str:
    """A table of how a run of so many ``steps`` stands after these lines of its metrics.jsonl."""
    last = {key: value for line in lines for key, value in line.items()}
    rows = [("step", f"{last['step']:,.0f} of {steps:,}")] if "step" in last else []
    if "train/tokens" in last:
        rows.append(("tokens seen", f"{last['train/tokens']:,.0f}"))
    if "perf/seconds" in last:
        rows.append(("time trained", str(datetime.timedelta(seconds=round(last["perf/seconds"])))))
    if "train/loss" in last:
        rows.append(("train/loss", f"{last['train/loss']:.4f}"))
    evaluated = [line for line in lines if any(key.startswith("eval/") for key in line)]
    for metric in judged_by(evaluated[-1]) if evaluated else ():
        rows.append((metric.heading, metric.with_interval(evaluated[-1])))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:{width}}  {value}" for name, value in rows)
