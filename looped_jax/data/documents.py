"""Documents of text, in whatever files they are, as blocks of JSON lines.

A shard is `*.jsonl.zst`, `*.jsonl.gz` or `*.jsonl`, local or remote (etils.epath), one
`{"text": …, "meta": {"pile_set_name": …}}` a line; or a table (data/tables.py) or plain text
(data/plain_text.py), which become such lines. A source is cut into blocks of whole lines, the
unit of work in preparing data: reading and cutting is quick and done in one place, parsing and
tokenising are not and are done in many.
"""

import codecs
import dataclasses
import glob
import gzip
import itertools
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import zstandard
from etils import epath

from looped_jax.data import plain_text, tables
from looped_jax.data.files import identity
from looped_jax.data.json_text import parse_json
from looped_jax.data.records import PILE, UNNAMED, Document, Reading, Turn, document_of, line_of
from looped_jax.errors import UserError

_CHUNK = 1 << 20
_ZSTD_WINDOW = 1 << 31  # Of `zstd --long=31`, the largest; a frame takes what it was made with.


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole lines of one source file."""

    where: str  # The file, for messages.
    first_line: int  # Number of its first line, from 1.
    content: bytes
    read: int = 0  # Bytes of the source (compressed, where it is) read for it: for progress.
    reading: Reading = PILE  # How its lines are read.
    position: Any = None  # JSON: where its source goes on, for Source.blocks; None: it cannot say.


class Source(Protocol):
    """Where the documents of a split come from, in a fixed order."""

    def identity(self) -> list[dict[str, Any]]:
        """Names, sizes and SHA-256 of what is read: equal if and only if the documents are."""
        ...

    def blocks(self, size: int, position: Any = None) -> Iterator[Block]:
        """All lines, in blocks of at least ``size`` bytes (a file's last one may be smaller), or
        those after the block that had this ``position``."""
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

    A line has `text`, with or without a `prompt`, or several of them in a list `turns`, or these
    by the names of Block.reading. Blank lines and a byte order mark at the beginning of a file are
    skipped. UserError names the file and the line if it is not UTF-8 or not JSON, or has no text.
    """
    for where, line in _lines(block):
        yield document_of(parse_json(line, where), where, block.reading)


def bad_lines(block: Block) -> list[str]:
    """What `parse` would say of each line of a block that it cannot read."""
    said = []
    for where, line in _lines(block):
        try:
            document_of(parse_json(line, where), where, block.reading)
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


@dataclasses.dataclass(frozen=True)
class Shards:
    """Files of documents, in the order given; their names say of which kind."""

    paths: tuple[epath.Path, ...]
    reading: Reading = PILE
    root: epath.Path | None = None  # A folder in it is the component of the plain text below.

    @classmethod
    def find(cls, path: str, pattern: str, reading: Reading = PILE) -> "Shards":
        """The shards below ``path`` that match, sorted; UserError if there are none."""
        how = (
            "set --config.data.path to a folder of Pile-format shards (*.jsonl.zst, one "
            '{"text": …} a line) or to one that looped_jax.prepare has written; docs/data.md says '
            "where to get or how to make them"
        )
        if not path:
            raise UserError(f"config.data.path is not set; {how}")
        if path.startswith(("hf:", "seqio:")):
            raise UserError(
                f"config.data.path={path} is to be prepared first: python -m looped_jax.prepare; "
                "then give the folder that it wrote"
            )
        root = epath.Path(path)
        if not root.is_dir():
            raise UserError(f"config.data.path={path} is not a folder; {how}")
        if "**" in pattern:
            raise UserError(
                f"{pattern}: ** is not a pattern here; * is any name: */*.txt, */*/*.txt"
            )
        # The folder's own name may hold what a pattern is made of: data[1].
        paths = tuple(sorted(epath.Path(glob.escape(path)).glob(pattern)))
        if not paths:
            raise UserError(f"no {pattern} in config.data.path={path}; {how}")
        for each in paths:
            if each.is_dir():
                raise UserError(f"{each}, which {pattern} matches, is a folder; narrow the pattern")
            if not each.exists():
                raise UserError(f"{each}, which {pattern} matches, is a link to what is not there")
        for table in [each for each in paths if each.suffix in tables.SUFFIXES][:1]:
            tables.check_readable(table)
        return cls(paths, reading, root)

    def parts(self) -> Iterator["Shards"]:
        """The same, file by file, but plain text, whose files may be small and many."""
        for is_plain, paths in itertools.groupby(self.paths, _is_plain_text):
            for part in [tuple(paths)] if is_plain else [(path,) for path in paths]:
                yield dataclasses.replace(self, paths=part)

    def identity(self) -> list[dict[str, Any]]:
        """See Source."""
        return [identity(path) for path in self.paths]

    def blocks(self, size: int, position: Any = None) -> Iterator[Block]:
        """See Source. UserError names a file that is empty, corrupt or truncated."""
        for is_plain, paths in itertools.groupby(self.paths, _is_plain_text):
            if is_plain:  # Files may be small: a block has the documents of many.
                yield from self._blocks(self._plain_text(paths), size)
                continue
            for path in paths:
                if path.suffix in tables.SUFFIXES:
                    rows = ((str(path), *row) for row in tables.lines(path, self.reading))
                    yield from self._blocks(rows, size)
                else:
                    for block in _blocks(path, size):
                        yield dataclasses.replace(block, reading=self.reading)

    def _plain_text(self, paths: Iterator[epath.Path]) -> Iterator[tuple[str, bytes, int]]:
        before = 0
        for path in paths:
            folders = path.relative_to(self.root).parts[:-1] if self.root else ()
            component = folders[0] if folders else UNNAMED
            with path.open("rb") as file:
                content = _content(file, path)
                for text in plain_text.texts(content, str(path), self.reading.separator):
                    line = line_of(Document((Turn("", text),), component))
                    yield str(path), line, before + file.tell()
                before += file.tell()

    def _blocks(self, lines: Iterator[tuple[str, bytes, int]], size: int) -> Iterator[Block]:
        """Blocks of lines in the Pile's format, each line with its file and the number of bytes
        that are read with it."""
        files: list[str] = []  # Of the lines that are not in a block yet.
        read = before = 0

        def chunks() -> Iterator[bytes]:
            nonlocal read
            for file, line, at in lines:
                read = at
                if file not in files[-1:]:
                    files.append(file)
                yield line

        for block in cut_blocks(chunks(), "", size):
            where = " … ".join(dict.fromkeys((files[0], files[-1])))
            yield dataclasses.replace(block, where=where, read=read - before)
            before = read
            files.clear()


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


def _is_plain_text(path: epath.Path) -> bool:
    return path.name.endswith((".txt", ".txt.gz", ".txt.zst"))


def _content(file: Any, shard: epath.Path) -> Iterator[bytes]:
    """Chunks of a shard's content; UserError if it is corrupt or truncated."""
    lines = 0
    for chunk in decompressed(file, shard.suffix):
        if isinstance(chunk, Exception):
            raise UserError(f"{shard}, after line {lines}: {chunk}") from chunk
        lines += chunk.count(b"\n")
        yield chunk


def _blocks(shard: epath.Path, size: int) -> Iterator[Block]:
    with shard.open("rb") as file:
        at = 0
        for block in cut_blocks(_content(file, shard), str(shard), size):
            before, at = at, file.tell()
            yield dataclasses.replace(block, read=at - before)
    if not at:
        raise UserError(f"{shard}: empty")


def decompressed(file: Any, suffix: str) -> Iterator[bytes | Exception]:
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
