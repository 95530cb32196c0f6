"""Text as a row source: prepared data on disk, or small raw shards packed in memory.

Both give the rows of data/packing.py. Which one config.data.path is, its manifest says.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from looped_jax.data.documents import Document, Shards, check_apart, parse
from looped_jax.data.files import sha256
from looped_jax.data.manifest import Manifest, is_prepared, read_manifest
from looped_jax.data.packing import Encoded, RowReader, component_id, pack, token_dtype
from looped_jax.data.records import PILE, Reading
from looped_jax.data.rows import Rows
from looped_jax.data.shards import shard_records
from looped_jax.data.vocabulary import Vocabulary, load_vocabulary, vocabulary_fingerprint
from looped_jax.errors import RunError, UserError

_BLOCK = 1 << 24
SPLITS = ("train", "validation", "test")


class Records(Protocol):
    """Random access to stored rows."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Sequence[bytes]: ...


class InMemory(list[bytes]):
    """Stored rows in a list."""

    def __getitems__(self, indices: Sequence[int]) -> Sequence[bytes]:
        return [self[i] for i in indices]


@dataclasses.dataclass(frozen=True)
class TextRows:
    """Row source over stored rows."""

    name: str  # Of the folder, for messages.
    records: Records
    reader: RowReader
    fingerprint: str  # Equal for equal rows in equal order.

    @property
    def num_rows(self) -> int:
        return len(self.records)

    @property
    def length(self) -> int:
        return self.reader.length

    @property
    def vocab_size(self) -> int:
        return len(self.reader.bytes_of_id)

    @property
    def components(self) -> tuple[str, ...]:
        """Names that `group` in the rows refers to."""
        return self.reader.components

    def rows(self, indices: np.ndarray) -> Rows:
        """See data/rows.py. RunError if a shard cannot be read."""
        try:
            return self.reader.rows(self.records.__getitems__([int(i) for i in indices]))
        except Exception as error:  # Whatever the storage layer raises.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise RunError(f"prepared data {self.name} cannot be read ({reason})") from error


def patterns(config: ConfigDict) -> dict[str, str]:
    """Split -> the pattern of its raw shards, for the splits that have one."""
    named = {split: config.data[f"{split}_files"] for split in SPLITS}
    return {split: pattern for split, pattern in named.items() if pattern}


def reading(config: ConfigDict) -> Reading:
    """How documents are found in the raw shards."""
    data = config.data
    return Reading(
        data.text_column, data.prompt_column, data.component_column, data.document_separator
    )


@dataclasses.dataclass(frozen=True)
class TextData:
    """The data of a language model; see data/run_data.py."""

    length: int
    path: str
    patterns: Mapping[str, str]
    reading: Reading
    weights: Mapping[str, Any]  # Of config.prepare, which the data was to be prepared with.
    vocabulary_name: str
    vocabulary_fingerprint: str
    manifest: Manifest | None  # None for raw shards.

    @classmethod
    def resolve(cls, config: ConfigDict, path: str | None = None) -> "TextData":
        """Opens what ``path`` is, config.data.path if it is None.

        UserError if rows have no length, or the data was prepared with another one or another
        vocabulary.
        """
        data = config.data
        if not data.length:
            raise UserError("config.data.length must be set for config.data.task='text'")
        path = data.path if path is None else path
        folder = epath.Path(path)
        manifest = read_manifest(folder) if path and is_prepared(folder) else None
        fingerprint = vocabulary_fingerprint(data.vocabulary)
        if manifest is not None:
            _check_recipe(manifest, config, fingerprint)
        return cls(
            length=data.length,
            path=path,
            patterns=patterns(config),
            reading=reading(config),
            weights=dict(config.prepare.weights),
            vocabulary_name=data.vocabulary,
            vocabulary_fingerprint=fingerprint,
            manifest=manifest,
        )

    @property
    def packed(self) -> bool:
        return True

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        return load_vocabulary(self.vocabulary_name)

    @property
    def vocab_size(self) -> int:
        """V, from the manifest where there is one: nothing is loaded then."""
        if self.manifest is None:
            return self.vocabulary.size
        return int(self.manifest.recipe["vocabulary"]["size"])

    def check(self) -> None:
        """UserError if a file is missing, if raw shards are in two splits, or if the data was not
        prepared with config.prepare.weights."""
        if self.manifest is not None:
            for split in self._read:
                self.manifest.shards(split)
        else:
            check_apart(self.identities())
        there = {} if self.manifest is None else self.manifest.recipe["weights"]
        if self.weights and self.weights != there:
            raise UserError(
                f"config.prepare.weights={tuple(self.weights.items())} has no effect on "
                f"{self.path}, which "
                + (
                    "is not prepared"
                    if self.manifest is None
                    else f"was prepared with {there or 'none'}"
                )
                + "; prepare the raw data with them (python -m looped_jax.prepare)"
            )

    @property
    def _read(self) -> dict[str, str]:
        """Split -> pattern, of the splits that a run reads."""
        return {split: pattern for split, pattern in self.patterns.items() if split != "test"}

    def identities(self) -> dict[str, list[dict[str, Any]]]:
        """Split -> the raw files behind it (data/documents.py's Source), of those that a run reads;
        UserError if raw shards are missing."""
        if self.manifest is not None:
            return {split: self.manifest.recipe["splits"][split]["sources"] for split in self._read}
        found = {
            split: Shards.find(self.path, pattern, self.reading)
            for split, pattern in self._read.items()
        }
        return {split: shards.identity() for split, shards in found.items()}

    def source(self, split: str, task: str = "") -> TextRows:
        """The rows of a split; see Manifest.shards and data/documents.py for the errors."""
        assert task in ("", "text"), task
        if self.manifest is not None:
            return _prepared_rows(self.manifest, split)
        if split not in self.patterns:
            raise UserError(f"text has no {split} split: config.data.{split}_files is empty")
        shards = Shards.find(self.path, self.patterns[split], self.reading)
        documents = (document for block in shards.blocks(_BLOCK) for document in parse(block))
        # Not names and sizes: content, and how it is read where that is not as ever.
        identity: list[Any] = [sha256(path) for path in shards.paths]
        if self.reading != PILE:
            identity.append(dataclasses.asdict(self.reading))
        return pack_in_memory(documents, self.vocabulary, self.length, self.path, identity)


def _check_recipe(manifest: Manifest, config: ConfigDict, vocabulary: str) -> None:
    """UserError if the data was prepared with another row length or vocabulary."""
    recipe, folder = manifest.recipe, manifest.folder
    if recipe["length"] != config.data.length:
        raise UserError(
            f"config.data.length={config.data.length}, but {folder} was prepared with length "
            f"{recipe['length']}"
        )
    known = recipe["vocabulary"]
    if known["sha256"] != vocabulary:
        raise UserError(
            f"config.data.vocabulary={config.data.vocabulary!r} is not the vocabulary that "
            f"{folder} was prepared with ({known['name']!r}, {known['size']} ids, sha256 "
            f"{known['sha256'][:12]}…)"
        )


def encode(document: Document, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """A document's ids, and which of them are trained on: the texts, not the prompts.

    Each is cut into tokens by itself, as it will be when a model is asked to go on from a prompt.
    """
    ids, trained = [np.zeros(0, np.int32)], [np.zeros(0, bool)]
    for turn in document.turns:
        for part, train in ((turn.prompt, False), (turn.text, True)):
            ids.append(vocabulary.encode(part))
            trained.append(np.full(len(ids[-1]), train))
    return np.concatenate(ids), np.concatenate(trained)


def pack_in_memory(
    documents: Iterable[Document],
    vocabulary: Vocabulary,
    length: int,
    name: str = "memory",
    identity: Any = None,
) -> TextRows:
    """Tokenises and packs documents in the order given."""
    components: set[str] = set()

    def encoded() -> Iterable[Encoded]:
        for number, document in enumerate(documents):
            components.add(document.component)
            ids, trained = encode(document, vocabulary)
            yield Encoded(ids, trained, component_id(document.component), (0, number))

    records = InMemory(
        pack(encoded(), length, token_dtype(vocabulary.size), (vocabulary.bos, vocabulary.eos))
    )
    reader = RowReader(length, tuple(sorted(components)), vocabulary.bytes_of_id)
    recipe = json.dumps([identity, vocabulary.fingerprint, length])
    return TextRows(name, records, reader, hashlib.sha256(recipe.encode()).hexdigest())


def _prepared_rows(manifest: Manifest, split: str) -> TextRows:
    records = shard_records(manifest, split)
    components = tuple(sorted(manifest.splits[split]["components"]))
    reader = RowReader(manifest.recipe["length"], components, manifest.bytes_of_id)
    return TextRows(str(manifest.folder), records, reader, manifest.fingerprint)
