"""Checkpoints: Orbax, asynchronous, the newest few kept.

`checkpoints/<step>/` holds the train state and, as JSON, the position in the data, the config, the
numerics format, the code's version and a checksum of each array, which is checked on reading. A
checkpoint appears under its step only when it is complete: one that was being written when the
process died is not there.
"""

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
import optax
import orbax.checkpoint as ocp
from etils import epath

from looped_jax.data.pipeline import TrainBatches
from looped_jax.errors import RunError, UserError
from looped_jax.models.format import MODEL_FORMAT
from looped_jax.parallel import distributed
from looped_jax.storage import cache
from looped_jax.storage.buckets import BucketError, in_bucket
from looped_jax.training import uploads
from looped_jax.training.average import fresh_average
from looped_jax.training.checksums import checksums
from looped_jax.training.identity import code_version
from looped_jax.training.state import StateLayout, TrainState, first_state
from looped_jax.training.uploads import Uploads


class Checkpointer:
    """Saves and restores the checkpoints of one workdir."""

    def __init__(self, workdir: epath.Path, keep: int):
        _silence_storage()
        self.directory = workdir / "checkpoints"
        # Orbax takes a folder with a number for a checkpoint, also what an interrupted copy left.
        distributed.first_does(lambda: _set_aside_incomplete(self.directory))
        self._uploads = Uploads(self.directory, keep) if uploads.needed(self.directory) else None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1 if self._uploads else keep, create=True, cleanup_tmp_directories=True
        )
        where = self._uploads.local if self._uploads else self.directory
        self._manager = ocp.CheckpointManager(
            where.resolve(), options=options, item_names=("state", "meta")
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
        finally:
            if self._uploads:
                self._uploads.close()

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        if self._uploads:
            return max(saved_steps(self.directory.parent), default=None)
        return self._manager.latest_step()

    def describe_latest(self) -> str:
        """For messages: where the newest complete checkpoint is."""
        step = self.latest()
        return (
            "there is no checkpoint yet"
            if step is None
            else (f"the last good checkpoint is {self.directory / str(step)}")
        )

    def seconds(self) -> float:
        """For how long the run had been trained when its newest checkpoint was saved; 0 if there is
        none, or it is of a version that did not keep it."""
        step = self.latest()
        if step is None:
            return 0.0
        return float(read_meta(self.directory / str(step)).get("seconds", 0.0))

    def save(
        self,
        step: int,
        state: TrainState,
        batches: TrainBatches,
        config: dict[str, Any],
        seconds: float = 0.0,
    ) -> None:
        """Starts saving; the state is copied out before this returns. RunError if it, or the
        save before it, fails. ``seconds``: see the method of this name."""
        meta = {
            "step": step,
            "seconds": round(seconds, 3),
            "data": batches.state(),
            "config": config,
            "format": MODEL_FORMAT,
            "code": code_version(),
            "checksums": checksums(state),
        }
        meta = json.loads(json.dumps(meta))  # As it will be read.
        meta["sha256"] = _digest(meta)
        self.wait()
        self._saving = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state.parts()), meta=ocp.args.JsonSave(meta)
                ),
                force=True,
            )
            if self._uploads:
                self._uploads.start(step, self._wait_for_orbax)
        except Exception as error:  # Orbax raises whatever its storage layer does.
            raise self._failure(error) from error

    def wait(self) -> None:
        """Returns when what was being saved is complete; RunError if it failed."""
        try:
            if self._uploads:
                self._uploads.wait()
            self._wait_for_orbax()
        except Exception as error:
            raise self._failure(error) from error

    def _wait_for_orbax(self) -> None:
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

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
    return sorted(int(f.name) for f in folders if f.name.isdigit() and _is_complete(f))


def _set_aside_incomplete(directory: epath.Path) -> None:
    """On a disk under another name; in a bucket, which renames nothing, they are removed."""
    for folder in directory.iterdir() if directory.is_dir() else ():
        if folder.name.isdigit() and not _is_complete(folder):
            if in_bucket(directory):
                uploads.remove(folder)
                continue
            number = sum(other.name.startswith(f"{folder.name}.") for other in directory.iterdir())
            folder.rename(folder.with_name(f"{folder.name}.incomplete{number or ''}"))


def _is_complete(folder: epath.Path) -> bool:
    """Whether what Orbax writes last, and what it writes for each item, is there: a copy that was
    interrupted is not."""
    needed = [uploads.MARKER, "state/_METADATA", "meta/metadata"]
    if in_bucket(folder) and not uploads.needed(folder):
        needed += ["commit_success.txt"]  # Orbax's word for a folder that was not renamed.
    return all((folder / name).exists() for name in needed)


def _readable(path: epath.Path, item: str) -> epath.Path:
    """Where Orbax can read a part of a checkpoint."""
    if uploads.needed(path):
        return cache.local_folder(path / item, path / uploads.MARKER)
    return (path / item).resolve()


def read_meta(path: epath.Path) -> dict[str, Any]:
    """What `RUN/checkpoints/STEP` says of itself: step, config, data, format, code, checksums.

    UserError if there is none or its numbers mean something else in this version; RunError if it is
    damaged.
    """
    _silence_storage()
    if not _is_complete(path):
        raise UserError(f"no checkpoint at {path}; it must be RUN/checkpoints/STEP")
    with _reading(path), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        meta: dict[str, Any] = reader.restore(_readable(path, "meta"))
        there = meta.get("format", 1)
        if there != MODEL_FORMAT:
            code = (meta.get("code") or {}).get("commit") or "the version that made it"
            raise UserError(
                f"checkpoint {path} is of numerics format {there}, and this version computes "
                f"format {MODEL_FORMAT}: it would give other numbers (what changed is in "
                f"looped_jax/models/format.py); use {code}, or train again"
            )
        if meta.pop("sha256") != _digest(meta):
            raise ValueError("its description was changed")
    return meta


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def restore(path: epath.Path, layout: StateLayout, batches: TrainBatches) -> TrainState:
    """Restores `RUN/checkpoints/STEP` onto this mesh, and ``batches`` to its position.

    UserError if there is none, if it is of another model or optimizer, or of other data or another
    vocabulary; RunError if it is damaged.
    """
    meta = read_meta(path)
    batches.check_same(meta["data"])
    state = TrainState(**_arrays(path, meta, layout.abstract.parts()))
    batches.set_state(meta["data"])
    return state


def read_params(path: epath.Path, layout: StateLayout) -> Any:
    """The parameters alone, onto this mesh, or their average where the run keeps one; errors as in
    ``restore``."""
    name = evaluated_part(layout)
    return _arrays(path, read_meta(path), {name: layout.abstract.params})[name]


def evaluated_part(layout: StateLayout) -> str:
    """The part of a state that stands for the model."""
    return "params" if layout.abstract.average is None else "average"


def start_from(
    path: epath.Path,
    layout: StateLayout,
    optimizer: optax.GradientTransformation,
    batches: TrainBatches,
) -> tuple[TrainState, str]:
    """A run's first state from a checkpoint of another run, and what was taken, in words.

    With the same data and an optimizer of the same form everything goes on: steps, moments, and
    ``batches`` at the first row that was not read, whatever the batch sizes and the rates of a
    mixture. Otherwise the
    parameters alone are taken, their average where the other run kept one: fine-tuning. An average
    that the other run did not keep begins as the parameters. UserError for another model or
    vocabulary.
    """
    meta, saved = read_meta(path), _saved(path)
    batches.check_same_vocabulary(meta["data"])
    averages = layout.abstract.average is not None
    other = [] if batches.has_same_data(meta["data"]) else ["data"]
    if _shapes(saved["optimizer"]) != _shapes(layout.abstract.optimizer):
        other.append("optimizer")
    if not other:
        wanted = {k: v for k, v in layout.abstract.parts().items() if k in saved}
        state = TrainState(**_arrays(path, meta, wanted))
        if averages and state.average is None:
            begin = jax.jit(fresh_average, out_shardings=layout.shardings.average)
            state = state.replace(average=begin(state.params))
        batches.go_on_from(meta["data"], meta["step"])
        return state, f"goes on from {path}: step {meta['step']}, row {meta['data']['rows']:,}"
    name = "average" if saved.get("average") else "params"
    params = _arrays(path, meta, {name: layout.abstract.params})[name]
    state = jax.jit(
        lambda params: first_state(params, optimizer, averages), out_shardings=layout.shardings
    )(params)
    of, taken = " and ".join(other), "averaged parameters" if name == "average" else "parameters"
    return state, f"the {taken} of {path}, with other {of}: step and rows count from 0"


def _arrays(path: epath.Path, meta: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The parts of a saved state that are ``wanted`` (name -> abstract arrays), as they were."""
    saved = _saved(path)
    _check_same_shapes(path, {name: saved.get(name) for name in wanted}, wanted)
    with _reading(path):
        with ocp.PyTreeCheckpointer() as reader:
            found: dict[str, Any] = reader.restore(
                _readable(path, "state"),
                args=ocp.args.PyTreeRestore(
                    item=wanted,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                    partial_restore=True,
                ),
            )
        for name, sums in checksums(found).items():
            if sums != meta["checksums"][name]:
                raise ValueError(f"the bits of {name} are not those that were saved")
    return found


def _saved(path: epath.Path) -> dict[str, Any]:
    """What is stored of a state: name -> tree of descriptions."""
    with _reading(path), ocp.StandardCheckpointer() as reader:
        tree: dict[str, Any] = reader.metadata(_readable(path, "state")).item_metadata.tree
        return tree


@contextlib.contextmanager
def _reading(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except (UserError, RunError):
        raise
    except BucketError as error:
        raise RunError(
            f"checkpoint {path} cannot be read now ({error.strerror}); start the same command again"
        ) from error
    except Exception as error:  # Whatever the storage layer raises on damaged files.
        raise RunError(
            f"checkpoint {path} cannot be read ({_one_line(error)}); remove that folder to go on "
            "from the one before it"
        ) from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(key, simple=True, separator="/"): tuple(leaf.shape)
        for key, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }


def _check_same_shapes(path: epath.Path, saved: Any, wanted: Any) -> None:
    there, here = _shapes(saved), _shapes(wanted)
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
