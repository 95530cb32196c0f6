"""Turns runs into one page of tables and figures.

python -m looped_jax.report --runs=runs/phop_small --out=runs/phop_small/report
python -m looped_jax.report --runs=runs/pile_12x1,runs/pile_12x2,runs/pile_24x1 --out=report

--runs takes runs, sweeps, or runs with variants. Writes index.html, which holds everything, and
beside it report.md, every table as CSV, every figure as PNG, and the numbers behind both, run by
run and unrounded, as NAME_numbers.csv.
"""

import datetime

from etils import epath

from looped_jax.config import cli
from looped_jax.errors import UserError

_FLAGS = cli.Flags()
_RUNS = _FLAGS.paths("runs", "Folders of runs or sweeps.")
_OUT = _FLAGS.path("out", "", "Folder of the report.", on_disk=True)
_TITLE = _FLAGS.string("title", "", "Of the page; default: the folders' names.")


def main(overrides: dict[str, str]) -> None:
    """Reads the runs, writes the report, says where it is and what is missing."""
    if overrides:
        raise UserError("a report has no --config: it reads each run's own")
    if not _RUNS.value or not _OUT.value:
        raise UserError("say --runs=DIR1,DIR2 and --out=DIR")
    from looped_jax.analysis.records import find_runs
    from looped_jax.analysis.report import build
    from looped_jax.training.identity import command

    records, missing = find_runs(_RUNS.value)
    title = _TITLE.value or ", ".join(epath.Path(folder).name for folder in _RUNS.value)
    out = epath.Path(_OUT.value)
    made = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC: {command()}"
    try:
        build(records, missing, title, made).write(out)
    except OSError as error:
        raise UserError(f"cannot write in {out}: {error.strerror or error}") from error
    for problem in missing:
        print(f"missing: {problem}")
    print(f"{len(records)} runs: {out / 'index.html'}")


if __name__ == "__main__":
    cli.run(main, _FLAGS)
