"""Trains the runs of a sweep, one after another, or prints a command for each.

python -m looped_jax.sweep --sweep=experiments/sweeps/phop_small.py --workdir=runs/phop_small
python -m looped_jax.sweep --sweep=experiments/sweeps/phop.py --workdir=DIR --print_commands

The same command again skips what is finished and goes on with what was interrupted.
`--config.KEY=VALUE` holds for all runs.
"""

import signal
import sys

from etils import epath
from rich.console import Console

from looped_jax.config import cli
from looped_jax.errors import UserError
from looped_jax.training import sweep

_FLAGS = cli.Flags()
_SWEEP = _FLAGS.path("sweep", "", "Sweep file, e.g. experiments/sweeps/phop_small.py.")
_WORKDIR = _FLAGS.path("workdir", "", "Folder of all runs; default runs/<sweep>.", on_disk=True)
_PRINT = _FLAGS.bool("print_commands", False, "Print one command per run, train nothing.")


def main(overrides: dict[str, str]) -> None:
    """Checks every run, then trains them or prints their commands."""
    if not _SWEEP.value:
        raise UserError("say --sweep=FILE, e.g. --sweep=experiments/sweeps/phop_small.py")
    workdir = epath.Path(_WORKDIR.value or f"runs/{epath.Path(_SWEEP.value).stem}")
    runs = sweep.load_sweep(_SWEEP.value, overrides)
    sweep.check_unclaimed(runs, workdir)
    if _PRINT.value:
        print("\n".join(sweep.commands(runs, workdir)))
        return
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    console = Console(file=sys.stderr)
    sweep.train_all(runs, workdir, console, lambda: bool(received))
    print(
        f"done: {workdir}; python -m looped_jax.report --runs={workdir} --out={workdir / 'report'}"
    )


if __name__ == "__main__":
    cli.run(main, _FLAGS, prints_only=False)
