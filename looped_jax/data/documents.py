"""Documents of text: Pile-format shards, or a seqio Task, as blocks of JSON lines.

A shard is `*.jsonl.zst`, `*.jsonl.gz` or `*.jsonl`, local or remote (etils.epath), one
`{"text": …, "meta": {"pile_set_name": …}}` a line. A source is cut into blocks of whole lines, the
unit of work in preparing data: reading and cutting is quick and done in one place, parsing and
tokenising are not and are done in many.
"""

import codecs
import dataclasses
import glob
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import zstandard
from etils import epath

from looped_jax.data.files import identity
from looped_jax.data.json_text import parse_json
from looped_jax.errors import UserError

# The component of a document that names none.
UNNAMED = "unnamed"
_CHUNK = 1 << 20
_ZSTD_WINDOW = 1 << 31  # Of `zstd --long=31`, the largest; a frame takes what it was made with.


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole lines of one source file."""

    where: str  # The file, for messages.
    first_line: int  # Number of its first line, from 1.
    content: bytes
    read: int = 0  # Bytes of the source (compressed, where it is) read for it: for progress.


class Turn(NamedTuple):
    """A text to train on, after a prompt that is read but not trained on."""

    prompt: str
    text: str


@dataclasses.dataclass(frozen=True)
class Document:
    """Turns, most often one without a prompt, and the component of the data set they belong to."""

    turns: tuple[Turn, ...]
    component: str  # `pile_set_name`.

    @property
    def text(self) -> str:
        """All of it, trained on or not."""
        return "".join(part for turn in self.turns for part in turn)


class Source(Protocol):
    """Where the documents of a split come from, in a fixed order."""

    def identity(self) -> list[dict[str, Any]]:
        """Names, sizes and SHA-256 of what is read: equal if and only if the documents are."""
        ...

    def blocks(self, size: int) -> Iterator[Block]:
        """All lines, in blocks of at least ``size`` bytes (a file's last one may be smaller)."""
        ...


def check_apart(identities: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """UserError if two files of the splits (split -> Source.identity) have the same content: rows
    that are evaluated would be trained on, or some would count twice."""
    seen: dict[str, tuple[str, str]] = {}  # Content -> split and file.
    for split, entries in identities.items():
        for entry in entries:
            file, content = entry["file"], entry["sha256"]
            if content not in seen:
                seen[content] = (split, file)
                continue
            before, first = seen[content]
            if before == split:
                how = "remove one, or use config.prepare.weights to repeat documents"
            else:
                how = f"narrow config.data.{split}_files or config.data.{before}_files"
            if before != split and first == file:
                raise UserError(f"{file} is in both {before} and {split}; {how}")
            raise UserError(
                f"{first} of {before} and {file} of {split} have the same content; {how}"
            )


def parse(block: Block) -> Iterator[Document]:
    """The documents of a block.

    A line has `text`, with or without a `prompt`, or several of them in a list `turns`. Blank lines
    and a byte order mark at the beginning of a file are skipped. UserError names the file and the
    line if it is not UTF-8 or not JSON, or has no text.
    """
    for where, line in _lines(block):
        yield _document(line, where)


def bad_lines(block: Block) -> list[str]:
    """What `parse` would say of each line of a block that it cannot read."""
    said = []
    for where, line in _lines(block):
        try:
            _document(line, where)
        except UserError as error:
            said.append(str(error))
    return said


def skipped(block: Block) -> Counter[str]:
    """How many `blank_lines` and `byte_order_marks` of a block `parse` skips."""
    lines = block.content.count(b"\n") + (not block.content.endswith(b"\n"))
    return Counter(
        blank_lines=lines - sum(1 for _ in _lines(block)),
        byte_order_marks=int(_has_mark(block)),
    )


def _has_mark(block: Block) -> bool:
    return block.first_line == 1 and block.content.startswith(codecs.BOM_UTF8)


def _lines(block: Block) -> Iterator[tuple[str, bytes]]:
    """The lines that are not blank, each with where it stands."""
    content = block.content
    if _has_mark(block):
        content = content.removeprefix(codecs.BOM_UTF8)
    lines = content.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=block.first_line):
        if line.strip():
            yield f"{block.where}, line {number}", line


def _document(line: bytes, where: str) -> Document:
    record = parse_json(line, where)
    turns = tuple(_turns(record, where))
    meta = record.get("meta")
    component = meta.get("pile_set_name") if isinstance(meta, dict) else None
    document = Document(turns, component if isinstance(component, str) else UNNAMED)
    try:
        f"{document.component}{document.text}".encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: it holds a lone surrogate, so is not Unicode") from error
    return document


def _turns(record: Any, where: str) -> Iterator[Turn]:
    turns, among = [record], ""
    if isinstance(record, dict) and "turns" in record:
        if "text" in record or "prompt" in record:
            raise UserError(f'{where}: "turns" and "text" or "prompt" beside it; one of them')
        turns, among = record["turns"], ' in each of "turns"'
        if not isinstance(turns, list) or not turns:
            raise UserError(f'{where}: "turns" is not a list of {{"prompt": …, "text": …}}')
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("text"), str):
            raise UserError(f'{where}: no "text" field with a string{among}')
        if not isinstance(turn.get("prompt", ""), str):
            raise UserError(f'{where}: "prompt" is not a string')
        yield Turn(turn.get("prompt", ""), turn["text"])


@dataclasses.dataclass(frozen=True)
class Shards:
    """Pile-format shards, in the order given."""

    paths: tuple[epath.Path, ...]

    @classmethod
    def find(cls, path: str, pattern: str) -> "Shards":
        """The shards below ``path`` that match, sorted; UserError if there are none."""
        how = (
            "set --config.data.path to a folder of Pile-format shards (*.jsonl.zst, one "
            '{"text": …} a line) or to one that looped_jax.prepare has written; docs/data.md says '
            "where to get or how to make them"
        )
        if not path:
            raise UserError(f"config.data.path is not set; {how}")
        root = epath.Path(path)
        if not root.is_dir():
            raise UserError(f"config.data.path={path} is not a folder; {how}")
        # The folder's own name may hold what a pattern is made of: data[1].
        paths = tuple(sorted(epath.Path(glob.escape(path)).glob(pattern)))
        if not paths:
            raise UserError(f"no {pattern} in config.data.path={path}; {how}")
        for each in paths:
            if each.is_dir():
                raise UserError(f"{each}, which {pattern} matches, is a folder; narrow the pattern")
            if not each.exists():
                raise UserError(f"{each}, which {pattern} matches, is a link to what is not there")
        return cls(paths)

    def identity(self) -> list[dict[str, Any]]:
        """See Source."""
        return [identity(path) for path in self.paths]

    def blocks(self, size: int) -> Iterator[Block]:
        """See Source. UserError names a file that is empty, corrupt or truncated."""
        for path in self.paths:
            yield from _blocks(path, size)


def cut_blocks(chunks: Iterator[bytes], where: str, size: int) -> Iterator[Block]:
    """Lines that arrive in chunks, cut after the first newline at or beyond ``size`` bytes."""
    held, searched, line = bytearray(), 0, 1
    for chunk in chunks:
        held += chunk
        while (at := held.find(b"\n", max(size - 1, searched))) >= 0:
            block = Block(where, line, bytes(held[: at + 1]))
            del held[: at + 1]
            line, searched = line + block.content.count(b"\n"), 0
            yield block
        searched = len(held)
    if held:
        yield Block(where, line, bytes(held))


def _blocks(shard: epath.Path, size: int) -> Iterator[Block]:
    lines = 0

    def chunks() -> Iterator[bytes]:
        nonlocal lines
        for chunk in _decompressed(file, shard.suffix):
            if isinstance(chunk, Exception):
                raise UserError(f"{shard}, after line {lines}: {chunk}") from chunk
            lines += chunk.count(b"\n")
            yield chunk

    with shard.open("rb") as file:
        at = 0
        for block in cut_blocks(chunks(), str(shard), size):
            before, at = at, file.tell()
            yield dataclasses.replace(block, read=at - before)
    if not at:
        raise UserError(f"{shard}: empty")


def _decompressed(file: Any, suffix: str) -> Iterator[bytes | Exception]:
    """Chunks of a shard's content; last an exception if it is corrupt or truncated."""
    if suffix == ".zst":
        # The stream reader takes a truncated frame for a finished one, so look at `eof`.
        frames = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        decoder, fresh = frames.decompressobj(), True
        while chunk := file.read(_CHUNK):
            while chunk:
                try:
                    yield decoder.decompress(chunk)
                except zstandard.ZstdError as error:
                    yield ValueError(f"corrupt zstd data ({error})")
                    return
                fresh, chunk = False, b""
                if decoder.eof:  # Another frame may follow.
                    chunk = decoder.unused_data
                    decoder, fresh = frames.decompressobj(), True
        if not fresh:
            yield ValueError("truncated zstd data")
    elif suffix == ".gz":
        try:
            with gzip.open(file) as unzipped:
                while chunk := unzipped.read(_CHUNK):
                    yield chunk
        except (EOFError, OSError, zlib.error) as error:
            yield ValueError(f"corrupt or truncated gzip data ({error})")
    else:
        while chunk := file.read(_CHUNK):
            yield chunk
