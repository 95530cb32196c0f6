"""Lists runs with their state and last evaluation.

python -m looped_jax.runs runs runs/my_sweep

Of each folder: the run that it is, the variants or sweep in it, or the runs below it. `training`:
a process trains in it now; `stopped`: the same command goes on; `done`.
"""

from collections.abc import Sequence
from typing import Any

from etils import epath

from looped_jax.config import cli
from looped_jax.errors import UserError


def main(overrides: dict[str, str], folders: Sequence[str]) -> None:
    """Reads and prints."""
    if overrides or not folders:
        wrong = f"config.{next(iter(overrides))} changes nothing" if overrides else "no folder"
        raise UserError(f"{wrong}: say python -m looped_jax.runs DIR [DIR …]")
    from looped_jax.analysis.records import find_runs
    from looped_jax.analysis.text_table import aligned

    records, missing = find_runs(folders)
    rows = [["run", "plan", "state", "step", "of", "seed", "last evaluation"]]
    rows += [_row(record) for record in records]
    print(aligned(rows, left=3))
    for problem in missing:
        if "stopped at step" not in problem:
            print(f"missing: {problem}")


def _row(record: Any) -> list[str]:
    from looped_jax.evaluation.metric_table import Metric
    from looped_jax.training.workdir import in_use

    steps = record.config.train.steps
    state = "done" if record.step >= steps else "stopped"
    state = "training" if in_use(epath.Path(record.workdir)) else state
    last = record.evaluations[-1] if record.evaluations else {}
    said = [f"{key} {value:.4g}" for key, value in last.items() if Metric(key).headline]
    at = "" if not last or last["step"] == record.step else f" (step {last['step']:,})"
    told = ", ".join(said) + at
    return [
        record.name,
        str(record.plan),
        state,
        f"{record.step:,}",
        f"{steps:,}",
        f"{record.seed}",
        told,
    ]


if __name__ == "__main__":
    cli.run(main, positional=True)
