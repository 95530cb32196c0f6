"""From a config to batches: which rows train at step N, and which are evaluated.

The batch of step N is a pure function of (config, N): synthetic tasks give rows N B … N B + B - 1,
text gives the same places of a seeded order of its rows, reshuffled every epoch. The iterator's
state is grain's and goes into the checkpoint.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from looped_jax.config import UserError
from looped_jax.data.rows import TRAIN_KEYS, Rows, RowSource, answer_rows
from looped_jax.data.tasks import downstream, get_task
from looped_jax.data.tasks.base import SyntheticTask
from looped_jax.data.text import check_files, text_rows, text_vocab_size
from looped_jax.data.vocabulary import load_vocabulary

PREFETCHED_BATCHES = 4
# Errors come out of grain as they went in, without remarks on their tracebacks in the message.
grain.config.update("py_traceback_filtering", "off")


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """Row source over one split of a synthetic task."""

    task: SyntheticTask
    split: str
    seed: int
    length: int
    running_targets: bool = False
    num_rows: int | None = None

    @property
    def vocab_size(self) -> int:
        return self.task.vocabulary.size

    @property
    def fingerprint(self) -> str:
        """The config says all there is to know."""
        return ""

    def rows(self, indices: np.ndarray) -> Rows:
        """See data/rows.py."""
        examples = self.task.examples(self.seed, self.split, indices)
        running = examples.running_NS if self.running_targets else None
        return answer_rows(examples.inputs_NS, examples.answers_NA, self.length, running)


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What the model must know of its data."""

    length: int
    vocab_size: int


def data_spec(config: ConfigDict) -> DataSpec:
    """Row length and vocabulary of a run, without reading any file.

    UserError if an evaluation task has another vocabulary than the training task, or rows do
    not fit in config.data.length.
    """
    if config.data.task == "text":
        if not config.data.length:
            raise UserError("config.data.length must be set for config.data.task='text'")
        downstream.expand(tuple(name for name in config.eval.tasks if name != "text"))
        return DataSpec(config.data.length, text_vocab_size(config))
    task = get_task(config.data.task)
    if config.data.targets == "running" and not task.has_running_targets:
        raise UserError(f"config.data.targets='running': task {task.name} has no running targets")
    tasks = [task, *(get_task(name) for name in config.eval.tasks)]
    for other in tasks:
        if other.vocabulary.tokens != task.vocabulary.tokens:
            raise UserError(
                f"config.eval.tasks: {other.name} has another vocabulary than {task.name}"
            )
    needed = max(other.row_length for other in tasks)
    if config.data.length and config.data.length < needed:
        raise UserError(f"config.data.length={config.data.length} is less than {needed} tokens")
    return DataSpec(config.data.length or needed, task.vocabulary.size)


def run_vocabulary(config: ConfigDict) -> Any:
    """What a run's ids mean: has encode(text) and decode(ids)."""
    if config.data.task == "text":
        return load_vocabulary(config.data.vocabulary)
    return get_task(config.data.task).vocabulary


def make_source(config: ConfigDict, split: str, task_name: str = "") -> RowSource:
    """The row source of a split: of the training task, or of another synthetic task."""
    task_name = task_name or config.data.task
    if task_name == "text":
        return text_rows(config, split)
    length = data_spec(config).length
    running = config.data.targets == "running"
    return TaskRows(get_task(task_name), split, config.seed, length, running)


def check_data(config: ConfigDict) -> None:
    """UserError if text is missing or another one: before anything is compiled or written."""
    if config.data.task == "text":
        check_files(config)


def announce_epochs(source: RowSource, config: ConfigDict) -> str | None:
    """What to say before the first step if a run reads its rows more than once."""
    asked = config.train.steps * config.train.batch_size
    if source.num_rows is None or asked <= source.num_rows:
        return None
    return (
        f"{config.train.steps:,} steps of {config.train.batch_size} rows read {asked:,} rows; the "
        f"data has {source.num_rows:,}: {asked / source.num_rows:.2f} epochs, each in another order"
    )


class _Batches(grain.sources.RandomAccessDataSource):
    """Batch number -> this process's rows of it."""

    def __init__(self, source: RowSource, batch_size: int, seed: int, rows: np.ndarray):
        self._source = source
        self._batch_size = batch_size
        self._local = rows
        self._order: Callable[[int], int] = lambda index: index
        if source.num_rows is not None:
            shuffled = grain.MapDataset.range(source.num_rows).seed(seed).shuffle().repeat()
            self._order = shuffled.__getitem__

    def __len__(self) -> int:
        return np.iinfo(np.int64).max // (2 * self._batch_size)  # No end.

    def __getitem__(self, step: int) -> Rows:
        places = step * self._batch_size + self._local
        rows = self._source.rows(np.array([self._order(int(place)) for place in places]))
        return {key: rows[key] for key in TRAIN_KEYS}


@dataclasses.dataclass
class TrainBatches:
    """An endless iterator over a process's batches, whose position a checkpoint holds."""

    iterator: grain.DatasetIterator
    fingerprint: str  # Of the data; see RowSource.

    def __next__(self) -> Rows:
        return next(self.iterator)

    def state(self) -> dict[str, Any]:
        """The position, for a checkpoint; the same in every process."""
        return {"iterator": dict(self.iterator.get_state()), "fingerprint": self.fingerprint}

    def set_state(self, state: dict[str, Any], same_data: bool = True) -> None:
        """Goes to a position; UserError if it is one in other data and ``same_data`` is asked."""
        if same_data and state["fingerprint"] != self.fingerprint:
            raise UserError(
                "the data at config.data.path is not what this run was trained on (its rows or "
                "their order differ); give the path of that data, or choose another --workdir"
            )
        self.iterator.set_state(state["iterator"])


def train_batches(
    source: RowSource, config: ConfigDict, local: np.ndarray | None = None
) -> TrainBatches:
    """An endless iterator over batches of rows [B, T], or those rows of each batch whose numbers
    ``local`` has."""
    size = config.train.batch_size
    rows = np.arange(size) if local is None else local
    batches = _Batches(source, size, config.seed, rows)
    threads = config.data.read_threads
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(PREFETCHED_BATCHES, threads)
    )
    iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    return TrainBatches(iterator, source.fingerprint)


def eval_batches(
    source: RowSource, examples: int, batch_size: int, local: np.ndarray | None = None
) -> list[Rows]:
    """The first ``examples`` rows (or all there are) in equal batches, of each the rows whose
    numbers ``local`` has (by default all).

    The last batch is filled with rows of weight 0, whose `answer` is empty.
    """
    count = examples if source.num_rows is None else min(examples, source.num_rows)
    numbers = np.arange(batch_size) if local is None else local
    batches = []
    for start in range(0, count, batch_size):
        there = start + numbers[start + numbers < count]
        # A process without any row of this batch still needs the arrays' shapes.
        rows = source.rows(there if len(there) else np.array([0]))
        missing = len(numbers) - len(there)
        batches.append(
            {k: np.pad(v[: len(there)], ((0, missing), (0, 0))) for k, v in rows.items()}
        )
    return batches
