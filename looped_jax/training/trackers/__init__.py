"""Where a run's metrics go beside metrics.jsonl (config.train.log_to): one file each.

A new one is a file here, a line in OPENERS, and its name in looped_jax/config/keys.py; where it
needs a package, that is an extra of setup.py.
"""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict
from tqdm import tqdm

from looped_jax.parallel import distributed
from looped_jax.training.trackers.base import Start, Tracker

# Imports what it needs: UserError, which names the extra, if that is missing.
Opener = Callable[[], Callable[[Start], Tracker]]


def _tensorboard() -> Callable[[Start], Tracker]:
    from looped_jax.training.trackers.tensorboard import TensorBoard

    return TensorBoard


def _wandb() -> Callable[[Start], Tracker]:
    from looped_jax.training.trackers.weights_and_biases import WandbRun

    return WandbRun


def _mlflow() -> Callable[[Start], Tracker]:
    from looped_jax.training.trackers.ml_flow import MlflowRun

    return MlflowRun


OPENERS: dict[str, Opener] = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def check_installed(config: ConfigDict) -> None:
    """UserError if a package of config.train.log_to is missing in the process that writes."""

    def imported() -> None:
        for name in config.train.log_to:
            OPENERS[name]()

    distributed.first_does(imported)


class Trackers:
    """Those of config.train.log_to; none of them can stop a run.

    One that raises is left out from then on, in one line on stderr: metrics.jsonl has everything.
    """

    def __init__(self, start: Start, kept: Sequence[Mapping[str, float]]):
        """``kept``: the lines of metrics.jsonl until ``start.step``, for one that is new to the
        run, or lost some with the process that was killed."""
        self._open: dict[str, Tracker] = {}
        for name in start.config.train.log_to if start.writes else ():
            try:
                self._open[name] = OPENERS[name]()(start)
            except Exception as error:
                self._give_up(name, error)
        self._each(lambda tracker: _catch_up(tracker, kept))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Sends named scalars of one step."""
        self._each(lambda tracker: tracker.write(step, scalars))

    def flush(self) -> None:
        """Puts on disk what was written: before a checkpoint."""
        self._each(lambda tracker: tracker.flush())

    def close(self, finished: bool) -> None:
        """Ends all; ``finished``: the run has made its last step."""
        self._each(lambda tracker: tracker.close(finished))
        self._open.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in [*self._open.items()]:
            try:
                act(tracker)
            except Exception as error:  # Whatever a disk, a network or a library raises.
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        tqdm.write(
            f"warning: no more metrics to {name} ({reason}); training goes on, metrics.jsonl has "
            "everything",
            file=sys.stderr,
        )
        if tracker := self._open.pop(name, None):
            with contextlib.suppress(Exception):
                tracker.close(False)


def _catch_up(tracker: Tracker, kept: Sequence[Mapping[str, float]]) -> None:
    until = tracker.complete_until
    for line in kept:
        if line["step"] > until:
            values = {key: value for key, value in line.items() if key != "step"}
            tracker.write(int(line["step"]), values)
