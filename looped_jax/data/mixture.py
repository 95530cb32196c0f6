"""Several sources of text read at rates that are stated while training: config.data.sources and
config.data.rates.

A mixture's training rows are a row source without end, whose row n follows from the sources, the
rates and the seed (data/rates.py says whose turn it is). Held-out rows are those of all sources,
of which each is a component.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from looped_jax.config.places import expanded
from looped_jax.data.documents import check_apart
from looped_jax.data.order import shuffled
from looped_jax.data.rates import Parts, Schedule, planned, stated
from looped_jax.data.rows import TRAIN_KEYS, Rows
from looped_jax.data.text import TextData, TextRows
from looped_jax.data.vocabulary import Vocabulary
from looped_jax.errors import UserError


class _Sources:
    """What the rows of several sources have in common, see RowSource."""

    def __init__(self, sources: Mapping[str, TextRows]):
        self._sources = {name: sources[name] for name in sorted(sources)}

    @property
    def length(self) -> int:
        return next(iter(self._sources.values())).length

    @property
    def vocab_size(self) -> int:
        return next(iter(self._sources.values())).vocab_size

    @property
    def fingerprint(self) -> str:
        """Of the sources by name, whatever their order and rates."""
        known = {name: of.fingerprint for name, of in self._sources.items()}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


class MixedRows(_Sources):
    """Training rows of a mixture, see RowSource; each source's in the order in which they would be
    read of it alone, epoch by epoch."""

    num_rows: None = None

    def __init__(self, sources: Mapping[str, TextRows], by_step: Parts, batch_size: int, seed: int):
        """``by_step``: see data/rates.py's ``stated``."""
        super().__init__(sources)
        self.by_step = by_step
        self._orders = [shuffled(of.num_rows, seed) for of in self._sources.values()]
        self._batch_size = batch_size
        self.begin(0, 0, ())

    def begin(self, row: int, step: int, past: Parts) -> None:
        """Makes rows from ``row`` on those of a run that has read so many at ``step``, in the parts
        ``past``; see data/rates.py's ``planned``."""
        self._row, self._step = row, step
        self.schedule = Schedule(planned(self.by_step, self._batch_size, past, row, step))

    def state(self) -> dict[str, Any]:
        """As JSON: the rates of the config, and the parts of what was and will be read."""
        rates = [[step, dict(own)] for step, own in self.by_step]
        parts = [[row, dict(own)] for row, own in self.schedule.parts]
        return {"row": self._row, "step": self._step, "rates": rates, "parts": parts}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on as a run of the same config that gave ``state``."""
        self.begin(state["row"], state["step"], state["parts"])

    def rows(self, indices: np.ndarray) -> Rows:
        """The keys of a training row (data/rows.py) of these rows of the mixture. RunError if a
        shard cannot be read."""
        source_N, number_N = self.schedule.at(indices)
        mixed: Rows = {}
        for source, of in enumerate(self._sources.values()):
            own_N = source_N == source
            if not own_N.any():
                continue
            order = self._orders[source]
            rows = of.rows(np.array([order(int(number)) for number in number_N[own_N]]))
            for key in TRAIN_KEYS:
                shape = (len(indices), *rows[key].shape[1:])
                mixed.setdefault(key, np.zeros(shape, rows[key].dtype))[own_N] = rows[key]
        return mixed

    def epochs(self, steps: int) -> str | None:
        """What to say before the first of so many steps if they read a source more than once."""
        end = self._row + (steps - self._step) * self._batch_size
        asked = self.schedule.counts(end)
        lines = [
            f"{steps:,} steps of {self._batch_size} rows read {asked[name]:,} rows of {name}, "
            f"which has {of.num_rows:,}: {asked[name] / of.num_rows:.2f} epochs, each in another "
            "order"
            for name, of in self._sources.items()
            if asked[name] > of.num_rows
        ]
        return "\n".join(lines) or None


class JoinedRows(_Sources):
    """Rows of all sources one after the other, see RowSource; `group` in them is the source."""

    @property
    def components(self) -> tuple[str, ...]:
        """Names that `group` in the rows refers to."""
        return tuple(self._sources)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each."""
        return tuple(of.num_rows for of in self._sources.values())

    @property
    def num_rows(self) -> int:
        return sum(self.sizes)

    def rows(self, indices: np.ndarray) -> Rows:
        """See data/rows.py; documents of different sources have different numbers."""
        ends = np.cumsum(self.sizes)
        source_N = np.searchsorted(ends, indices, side="right")
        joined: Rows = {}
        for source, of in enumerate(self._sources.values()):
            own_N = source_N == source
            if not own_N.any():
                continue
            rows = of.rows(indices[own_N] - (ends[source] - of.num_rows))
            real = rows["document"] >= 0
            apart = rows["document"] * len(self._sources) + source
            rows["document"] = np.where(real, apart, rows["document"])
            rows["group"] = np.full_like(rows["group"], source)
            for key, values in rows.items():
                shape = (len(indices), *values.shape[1:])
                joined.setdefault(key, np.zeros(shape, values.dtype))[own_N] = values
        return joined


@dataclass(frozen=True)
class MixtureData:
    """The data of a language model that reads several sources; see data/run_data.py. All have the
    length and the vocabulary of the config."""

    sources: Mapping[str, TextData]
    by_step: Parts
    batch_size: int
    seed: int

    @classmethod
    def resolve(cls, config: ConfigDict) -> "MixtureData":
        """Opens config.data.sources; UserError as TextData.resolve, naming the source, and as
        data/rates.py's ``stated``."""
        paths = dict(config.data.sources)
        if config.data.path:
            raise UserError(
                f"config.data.path={config.data.path} and config.data.sources: one of them says "
                "where the text is; --config.data.path= leaves that one out"
            )
        by_step = stated(config.data.rates, sorted(paths))
        sources = {}
        for name, path in sorted(paths.items()):
            with _naming(name):
                sources[name] = TextData.resolve(config, expanded(path))
        return cls(sources, by_step, config.train.batch_size, config.seed)

    @property
    def _one(self) -> TextData:
        return next(iter(self.sources.values()))

    @property
    def length(self) -> int:
        return self._one.length

    @property
    def packed(self) -> bool:
        return self._one.packed

    @property
    def vocabulary(self) -> Vocabulary:
        return self._one.vocabulary

    @property
    def vocab_size(self) -> int:
        return self._one.vocab_size

    @property
    def vocabulary_fingerprint(self) -> str:
        return self._one.vocabulary_fingerprint

    def check(self) -> None:
        """UserError as TextData.check, naming the source, or if one is there twice, or is trained
        on what is held out of another."""
        identities = {}
        for name, data in self.sources.items():
            with _naming(name):
                if not epath.Path(data.path).is_dir():
                    raise UserError(
                        f"{data.path} is not a folder; give one that looped_jax.prepare has written"
                    )
                data.check()
                identities[name] = data.identities()
        for name, own in identities.items():
            for other, of_other in identities.items():
                if name == other or "train" not in own:
                    continue
                if own["train"] == of_other.get("train") and _same(
                    self.sources[name], self.sources[other]
                ):
                    raise UserError(f"config.data.sources: {name} and {other} are the same text")
                held_out = of_other.get("validation", [])
                with _naming(name):
                    check_apart({"train": own["train"], f"validation of {other}": held_out})

    def source(self, split: str, task: str = "") -> MixedRows | JoinedRows:
        """The rows of a split; UserError as TextData.source, naming the source."""
        rows = {}
        for name, data in self.sources.items():
            with _naming(name):
                rows[name] = data.source(split, task)
        if split == "train":
            return MixedRows(rows, self.by_step, self.batch_size, self.seed)
        return JoinedRows(rows)


def _same(one: TextData, other: TextData) -> bool:
    """Of two sources of the same files: whether their rows are the same too."""
    if one.manifest is None or other.manifest is None:
        return one.manifest is other.manifest
    return one.manifest.fingerprint == other.manifest.fingerprint


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"config.data.sources, {name}: {error}") from error
