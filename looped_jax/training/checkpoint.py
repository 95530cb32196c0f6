"""Checkpoints: Orbax, asynchronous, the newest few kept.

`checkpoints/<step>/` holds the train state and, as JSON, the data iterator's position and the
config. A checkpoint appears under its step only when it is complete: one that was being written
when the process died is not there.
"""

import logging
import sys
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from looped_jax.config import RunError, UserError
from looped_jax.data.pipeline import TrainBatches
from looped_jax.training.state import StateLayout, TrainState


class Checkpointer:
    """Saves and restores the checkpoints of one workdir."""

    def __init__(self, workdir: epath.Path, keep: int):
        _silence_storage()
        self.directory = workdir / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(
            self.directory.resolve(), options=options, item_names=("state", "meta")
        )
        self._saving: int | None = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self.wait()
            self._manager.close()
        except (RunError, OSError):
            if error is None:
                raise

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def describe_latest(self) -> str:
        """For messages: where the newest complete checkpoint is."""
        step = self.latest()
        return (
            "there is no checkpoint yet"
            if step is None
            else (f"the last good checkpoint is {self.directory / str(step)}")
        )

    def save(
        self, step: int, state: TrainState, batches: TrainBatches, config: dict[str, Any]
    ) -> None:
        """Starts saving; the state is copied out before this returns. RunError if it, or the
        save before it, fails."""
        meta = {"step": step, "data": batches.state(), "config": config}
        self.wait()
        self._saving = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
                force=True,
            )
        except Exception as error:  # Orbax raises whatever its storage layer does.
            raise self._failure(error) from error

    def wait(self) -> None:
        """Returns when what was being saved is complete; RunError if it failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> RunError:
        # Forget the failed save, or it would be waited for and reported again.
        reason = _one_line(error)
        self._manager.reload()
        return RunError(
            f"the checkpoint of step {self._saving} could not be saved ({reason}); "
            f"{self.describe_latest()}; make room and start the same command again"
        )

    def restore(self, step: int, layout: StateLayout, batches: TrainBatches) -> TrainState:
        """The state saved at ``step`` on this mesh; sets ``batches`` to its position."""
        return restore(self.directory / str(step), layout, batches)


def saved_steps(workdir: epath.Path) -> list[int]:
    """Steps of the complete checkpoints of a workdir, in order."""
    directory = workdir / "checkpoints"
    folders = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(folder.name) for folder in folders if folder.name.isdigit())


def restore(
    path: epath.Path,
    layout: StateLayout,
    batches: TrainBatches | None = None,
    same_data: bool = True,
) -> TrainState:
    """Restores `RUN/checkpoints/STEP` onto this mesh, and ``batches`` to its position.

    UserError if there is none, if it is of another model or optimizer, or, with ``same_data``, of
    other data; RunError if it is damaged.
    """
    _silence_storage()
    if not (path / "state").is_dir():
        raise UserError(f"no checkpoint at {path}; it must be RUN/checkpoints/STEP")
    with ocp.StandardCheckpointer() as reader:
        try:
            saved = reader.metadata((path / "state").resolve()).item_metadata.tree
            _check_same_shapes(path, saved, layout)
            state = reader.restore((path / "state").resolve(), layout.abstract)
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as meta_reader:
                meta = meta_reader.restore((path / "meta").resolve())
        except UserError:
            raise
        except Exception as error:  # Whatever the storage layer raises on damaged files.
            reason = _one_line(error)
            raise RunError(
                f"checkpoint {path} cannot be read ({reason}); remove that folder to go on from "
                "the one before it"
            ) from error
    if batches is not None:
        batches.set_state(meta["data"], same_data)
    return state


def _check_same_shapes(path: epath.Path, saved: Any, layout: StateLayout) -> None:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        return {
            jax.tree_util.keystr(key, simple=True, separator="/"): tuple(leaf.shape)
            for key, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if hasattr(leaf, "shape")
        }

    there, here = shapes(saved), shapes(layout.abstract)
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise UserError(
                f"checkpoint {path} is of another model or optimizer: {name} is "
                f"{there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
            )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _silence_storage() -> None:
    """Keeps stderr for our own one line: Orbax logs each of its failures, and when one write
    fails the storage threads of the others complain that its event loop has closed."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _report_unless_loop_closed


def _report_unless_loop_closed(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
