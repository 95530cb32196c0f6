"""From a config to batches: which rows train at step N, and which are evaluated.

The batch of step N is a pure function of (config, N): synthetic tasks give rows N B … N B + B - 1,
text gives the same places of a seeded order of its rows, reshuffled every epoch, and a mixture the
same rows of data/mixture.py. The iterator's state is grain's and goes into the checkpoint.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from looped_jax.data.mixture import JoinedRows, MixedRows
from looped_jax.data.order import shuffled
from looped_jax.data.rows import TRAIN_KEYS, Rows, RowSource
from looped_jax.data.run_data import RunData
from looped_jax.data.text import TextRows
from looped_jax.errors import UserError

PREFETCHED_BATCHES = 4
# Of the sample of rows that is evaluated.
HELD_OUT_SEED = 0
# Errors come out of grain as they went in, without remarks on their tracebacks in the message.
grain.config.update("py_traceback_filtering", "off")


def check_same_vocabulary(trained: dict[str, Any], here: str) -> None:
    """UserError if ``here`` is not the vocabulary of a checkpoint's data (TrainBatches.state)."""
    if trained["vocabulary"] != here:
        raise UserError(
            f"the vocabulary (config.data.vocabulary) is not the one that the model was trained "
            f"with: its sha256 is {here[:12]}…, that one's {trained['vocabulary'][:12]}…; give "
            "that file"
        )


def announce_epochs(source: RowSource, config: ConfigDict) -> str | None:
    """What to say before the first step if a run reads its rows more than once; of a mixture,
    for each source of which it does."""
    if isinstance(source, MixedRows):
        return source.epochs(config.train.steps)
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
        self.batch_size = batch_size
        self.first_row = 0  # Of batch 0, in the order of training.
        self._local = rows
        self._order: Callable[[int], int] = lambda index: index
        if source.num_rows is not None:
            self._order = shuffled(source.num_rows, seed)

    def __len__(self) -> int:
        return np.iinfo(np.int64).max // (2 * self.batch_size)  # No end.

    def __getitem__(self, step: int) -> Rows:
        places = self.first_row + step * self.batch_size + self._local
        rows = self._source.rows(np.array([self._order(int(place)) for place in places]))
        return {key: rows[key] for key in TRAIN_KEYS}


@dataclasses.dataclass
class TrainBatches:
    """An endless iterator over a process's batches, whose position a checkpoint holds."""

    iterator: grain.DatasetIterator
    batches: _Batches
    fingerprint: str  # Of the data; see RowSource.
    vocabulary: str  # Its fingerprint.
    # What else the rows and their order follow from, where data are made or shuffled by the config.
    recipe: dict[str, Any]
    mixture: MixedRows | None = None

    def __next__(self) -> Rows:
        return next(self.iterator)

    def state(self) -> dict[str, Any]:
        """The position, for a checkpoint; the same in every process. ``rows``: how many were read
        or passed over."""
        iterator = dict(self.iterator.get_state())
        first = self.batches.first_row
        state = {
            "iterator": iterator,
            "first_row": first,
            "rows": first + iterator["next_index"] * self.batches.batch_size,
            "fingerprint": self.fingerprint,
            "vocabulary": self.vocabulary,
            "recipe": self.recipe,
        }
        return state if self.mixture is None else {**state, "mixture": self.mixture.state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that ``state`` gave, in this data and at this batch size."""
        self.batches.first_row = state["first_row"]
        if self.mixture is not None:
            self.mixture.set_state(state["mixture"])
        self.iterator.set_state(state["iterator"])

    def go_on_from(self, state: dict[str, Any], step: int) -> None:
        """Begins, at an update's number ``step``, behind the rows that another run had read at
        ``state``, in the order of training. A mixture's rates are from there on its own."""
        self.batches.first_row = state["rows"]
        if self.mixture is not None:
            self.mixture.begin(state["rows"], step, state["mixture"]["parts"])

    def rows_of_sources(self, row: int) -> dict[str, int]:
        """Source -> how many of its rows come before this row, in the order of training; empty if
        it is no mixture."""
        return {} if self.mixture is None else self.mixture.schedule.counts(row)

    def has_same_data(self, state: dict[str, Any]) -> bool:
        """Whether a position is one in this data: the same rows in the same order; of a mixture
        each source's, at whatever rates."""
        recipe = state.get("recipe", self.recipe)  # Early checkpoints have none.
        return bool(state["fingerprint"] == self.fingerprint and recipe == self.recipe)

    def check_same(self, state: dict[str, Any]) -> None:
        """UserError if a position is one in other data, at other rates, or of another
        vocabulary."""
        self.check_same_vocabulary(state)
        if not self.has_same_data(state):
            where = "path" if self.mixture is None else "sources"
            raise UserError(
                f"the data at config.data.{where} is not what this run was trained on (its rows or "
                "their order differ); give the path of that data, or choose another --workdir"
            )
        if self.mixture is not None and self.mixture.state()["rates"] != state["mixture"]["rates"]:
            raise UserError(
                "config.data.rates are not those of this run; with other rates another run goes on "
                "from its checkpoint (config.train.start_from)"
            )

    def check_same_vocabulary(self, state: dict[str, Any]) -> None:
        """UserError if a position is one in text of another vocabulary."""
        check_same_vocabulary(state, self.vocabulary)


def train_batches(
    data: RunData,
    config: ConfigDict,
    local: np.ndarray | None = None,
    source: RowSource | None = None,
) -> TrainBatches:
    """An endless iterator over batches of rows [B, T], or those rows of each batch whose numbers
    ``local`` has. ``source``: the data's training rows, where they are open already."""
    source = data.source("train") if source is None else source
    size = config.train.batch_size
    rows = np.arange(size) if local is None else local
    batches = _Batches(source, size, config.seed, rows)
    threads = config.data.read_threads
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(PREFETCHED_BATCHES, threads)
    )
    iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    recipe = {
        "task": config.data.task,
        "targets": config.data.targets,
        "length": source.length,
        "seed": config.seed,
    }
    return TrainBatches(
        iterator,
        batches,
        source.fingerprint,
        data.vocabulary_fingerprint,
        recipe,
        source if isinstance(source, MixedRows) else None,
    )


@dataclasses.dataclass(frozen=True)
class Sample:
    """The rows of a source that are evaluated.

    Where the source ends they are a random sample, by a seed of its own: the same for every model
    and run. (A file's first rows may be all of one component.) Of joined sources it is each one's
    sample, the same that it has alone. A source without end is random itself: its first rows.
    """

    source: RowSource
    order: np.ndarray  # Indices of the rows.
    # Of text, the document of each token, int32 [rows, T], and each document's component.
    document_NT: np.ndarray | None = None
    component_of_document: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1, int))

    @classmethod
    def of(cls, source: RowSource, examples: int) -> "Sample":
        """``examples`` rows, or all there are; so many of each source where several are joined."""
        if source.num_rows is None:
            return cls(source, np.arange(examples))
        if isinstance(source, JoinedRows):
            firsts = np.cumsum((0, *source.sizes))
            parts = zip(firsts, source.sizes, strict=False)
            order = np.concatenate([first + _drawn(size, examples) for first, size in parts])
        else:
            order = _drawn(source.num_rows, examples)
        if not isinstance(source, TextRows | JoinedRows):
            return cls(source, order)
        rows = source.rows(order)
        found_NT = rows["document"]
        known, index = np.unique(found_NT, return_inverse=True)
        # Padding belongs to no document; nothing is predicted there.
        document_NT = index.reshape(found_NT.shape) - (1 if known[0] < 0 else 0)
        document_NT = np.maximum(document_NT, 0).astype(np.int32)
        component = np.zeros(document_NT.max() + 1, int)
        real_NT = found_NT >= 0
        component[document_NT[real_NT]] = rows["group"][real_NT]
        return cls(source, order, document_NT, component)

    def rows(self, places: np.ndarray) -> Rows:
        """These rows of the sample; see data/rows.py."""
        rows = self.source.rows(self.order[places])
        return rows if self.document_NT is None else {**rows, "document": self.document_NT[places]}

    @property
    def identity(self) -> dict[str, Any]:
        """What is evaluated, for a run's records."""
        return {
            "rows": len(self.order),
            "of": self.source.num_rows,
            "sample_seed": None if self.source.num_rows is None else HELD_OUT_SEED,
            "data": self.source.fingerprint,
        }


def _drawn(rows: int, examples: int) -> np.ndarray:
    """So many of these rows at random, or all; the same ones each time."""
    return np.random.default_rng(HELD_OUT_SEED).permutation(rows)[:examples]


def eval_batches(sample: Sample, batch_size: int, local: np.ndarray | None = None) -> list[Rows]:
    """A sample in equal batches, of each the rows whose numbers ``local`` has (by default all).

    The last batch is filled with rows of weight 0, whose `answer` is empty.
    """
    count = len(sample.order)
    numbers = np.arange(batch_size) if local is None else local
    batches = []
    for start in range(0, count, batch_size):
        there = start + numbers[start + numbers < count]
        # A process without any row of this batch still needs the arrays' shapes.
        rows = sample.rows(there if len(there) else np.array([0]))
        missing = len(numbers) - len(there)
        batches.append(
            {k: np.pad(v[: len(there)], ((0, missing), (0, 0))) for k, v in rows.items()}
        )
    return batches
