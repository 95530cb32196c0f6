"""Rows of tables, Parquet files and Arrow files (IPC files and streams, Feather), as JSON lines.

Row group by row group, or record batch by record batch, and of these the columns that are needed:
memory is bounded by a part of a row group, or by a record batch.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from etils import epath

from looped_jax.data.records import PILE, Reading, document_of, line_of, missing
from looped_jax.errors import UserError, from_extra

SUFFIXES = (".parquet", ".arrow", ".feather")
_BATCH_BYTES = 1 << 24  # Of text that is Python objects at a time, about.
_MOST_ROWS = 1024
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Some rows of a table."""

    rows: Any  # pyarrow.RecordBatch.
    part: str  # "row group 3" or "record batch 3", from 0.
    first: int  # Number of the first row in that part, from 0.
    done: float  # Share of the file that is read with them.


def check_readable(path: epath.Path) -> None:
    """UserError if the package that reads tables is missing."""
    with from_extra("parquet", str(path)):
        import pyarrow  # noqa: F401


def lines(path: epath.Path, reading: Reading) -> Iterator[tuple[bytes, int]]:
    """Each row as a line in the Pile's format, and how many bytes of the file are read with it.

    UserError if there is no row, a column is missing or of another type (naming those that are
    there), a text is null (naming its row), or the file is corrupt or truncated.
    """
    import pyarrow

    size, count = path.stat().length, 0
    with path.open("rb") as file:
        read = _parquet if path.suffix == ".parquet" else _arrow
        part, batches = "", read(file, str(path), reading) if size else iter(())
        try:
            for batch in batches:
                part = f", {batch.part}"
                batch.rows.validate(full=True)  # UTF-8, and that offsets are within the data.
                for number, row in enumerate(batch.rows.to_pylist(), start=batch.first):
                    where = f"{path}, {batch.part}, its row {number} (both from 0)"
                    yield line_of(document_of(row, where, reading)), int(batch.done * size)
                    count += 1
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # Of the storage, not of what is stored.
            # A wrong byte may ask for more memory than there is.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{path}{part}: corrupt or truncated ({reason})") from error
    if not count:
        raise UserError(f"{path}: empty")


def _parquet(file: Any, path: str, reading: Reading) -> Iterator[_Rows]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(
        file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
    )
    columns = _columns(table.schema_arrow, path, reading)
    done, total = 0, table.metadata.num_rows
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        per_row = about.total_byte_size // max(1, about.num_rows) + 1
        at_once = min(_MOST_ROWS, max(1, _BATCH_BYTES // per_row))
        first = 0
        for batch in table.iter_batches(at_once, row_groups=[group], columns=columns):
            done += len(batch)
            yield _Rows(batch, f"row group {group}", first, done / total)
            first += len(batch)
        if first != about.num_rows:
            raise UserError(
                f"{path}, row group {group}: {first} of {about.num_rows} rows are there"
            )
    if done != total:
        raise UserError(f"{path}: its row groups have {done} rows, not {total}")


def _arrow(file: Any, path: str, reading: Reading) -> Iterator[_Rows]:
    import pyarrow.ipc

    magic, size = file.read(6), file.seek(0, 2)
    if magic.startswith(b"FEA1"):
        raise UserError(f"{path}: Feather version 1; write it again with pyarrow.feather")
    is_file = magic == b"ARROW1"
    opened = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
    file.seek(0)
    schema = opened(file).schema
    tops = top_columns(schema, path, reading)
    wanted = pyarrow.ipc.IpcReadOptions(included_fields=sorted(map(schema.get_field_index, tops)))
    file.seek(0)
    table = opened(file, options=wanted)
    if is_file:
        count = table.num_record_batches
        batches = ((table.get_batch(i), (i + 1) / count) for i in range(count))
    else:
        batches = ((batch, file.tell() / size) for batch in table)
    for number, (batch, done) in enumerate(batches):
        for first in range(0, len(batch), _MOST_ROWS):
            rows = batch.slice(first, _MOST_ROWS)
            yield _Rows(rows, f"record batch {number}", first, done)
    if not is_file:  # A stream that is cut between two batches reads like one that is whole.
        end = file.tell()
        file.seek(-len(_END_OF_STREAM), 2)
        if file.read() != _END_OF_STREAM:
            raise UserError(f"{path}: truncated, or never closed: no end-of-stream mark")
        if end != size:
            raise UserError(f"{path}: {size - end} bytes behind its end-of-stream mark")


def top_columns(schema: Any, path: str, reading: Reading) -> set[str]:
    """The columns of a pyarrow schema that are needed; UserError, beginning with ``path``, if one
    is missing or of a type that says no text."""
    return {
        column if schema.get_field_index(column) >= 0 else column.split(".")[0]
        for column in _columns(schema, path, reading)
    }


def _columns(schema: Any, path: str, reading: Reading) -> list[str]:
    """As top_columns, of a struct the part that is needed."""
    import pyarrow.types as types

    def is_text(kind: Any) -> bool:
        if types.is_dictionary(kind):
            return is_text(kind.value_type)
        return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)

    def is_list(kind: Any) -> bool:
        return bool(types.is_list(kind) or types.is_large_list(kind)) and types.is_struct(
            kind.value_type
        )

    needed = []
    turns = _find(schema, "turns")
    if turns is not None and is_list(turns[1]):
        needed.append("turns")
    text, prompt = _find(schema, reading.text), _find(schema, reading.prompt)
    component = _find(schema, reading.component)
    if text is None and not needed:
        raise UserError(f"{path}: {missing(reading.text, 'text_column', _names(schema))}")
    if component is None and reading.component not in ("", PILE.component):
        there = missing(reading.component, "component_column", _names(schema))
        raise UserError(f"{path}: {there}; '' is for none")
    for name, key, found in (
        (reading.text, "text_column", text),
        (reading.prompt, "prompt_column", prompt),
        (reading.component, "component_column", component),
    ):
        if found is None:
            continue
        column, kind = found
        whole = key == "component_column" and types.is_integer(kind)
        if not (is_text(kind) or whole or types.is_null(kind)):
            raise UserError(
                f"{path}: column {name!r} (config.data.{key}) is of type {kind}, not of strings"
            )
        needed.append(column)
    return needed


def _find(fields: Any, path: str) -> tuple[str, Any] | None:
    """What to read of a schema or struct for a column, and its type. A string may hold JSON, in
    which the rest of the path is looked for row by row."""
    import pyarrow.types as types

    if not path:
        return None
    if (at := fields.get_field_index(path)) >= 0:
        return path, fields.field(at).type
    head, dot, rest = path.partition(".")
    at = fields.get_field_index(head)
    if at < 0 or not dot:
        return None
    kind = fields.field(at).type
    kind = getattr(kind, "storage_type", kind)  # JSON may have a type of its own.
    if types.is_struct(kind):
        inner = _find(kind, rest)
        return inner and (f"{head}.{inner[0]}", inner[1])
    return (head, kind) if types.is_string(kind) or types.is_large_string(kind) else None


def _names(schema: Any) -> list[str]:
    """The columns of a table, and the ones within them."""
    import pyarrow.types as types

    names = []
    for field in schema:
        names.append(field.name)
        if types.is_struct(field.type):
            names += [f"{field.name}.{inner.name}" for inner in field.type]
    return names
