"""Plain text: a file is a document, or a line of its own parts the documents of a file."""

from collections.abc import Callable, Iterator

from looped_jax.errors import UserError

# As config.data.document_separator: lines without anything but blanks.
BLANK_LINES = "blank"
# Bytes of the largest document: beyond, somebody has forgotten a separator.
MOST = 1 << 30


def texts(content: Iterator[bytes], where: str, separator: str) -> Iterator[str]:
    """The documents of a file that are not blank, each with at least one character.

    ``separator``: "", the file is one document, as it stands; else the line that parts documents,
    whose last line end then belongs to it. A byte order mark is no text. UserError names the file
    and the line if it is not UTF-8, and the file if it has no document or one of more than 1 GiB.
    """
    is_separator = _separates(separator)
    document: list[str] = []
    size, found = 0, False
    for number, line in enumerate(_lines(content), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}, line {number}: not UTF-8 at its byte {error.start}"
            ) from error
        if is_separator(text):
            if whole := _without_end(document):
                found = True
                yield whole
            document, size = [], 0
            continue
        document.append(text)
        if (size := size + len(line)) > MOST:
            raise UserError(
                f"{where}, line {number}: a document of more than {MOST >> 30} GiB; say in "
                "config.data.document_separator which line parts documents"
            )
    whole = _without_end(document) if separator else "".join(document)
    if whole.strip():
        yield whole
    elif not found:
        raise UserError(f"{where}: empty")


def _separates(separator: str) -> Callable[[str], bool]:
    if not separator:
        return lambda line: False
    if separator == BLANK_LINES:
        return lambda line: not line.strip()
    return lambda line: line.rstrip("\r\n") == separator


def _without_end(document: list[str]) -> str:
    """The lines of a document without the last one's end; "" if they are blank."""
    text = "".join(document).removesuffix("\n").removesuffix("\r")
    return text if text.strip() else ""


def _lines(content: Iterator[bytes]) -> Iterator[bytes]:
    """Lines with their ends, whatever the pieces they arrive in."""
    held: list[bytes] = []
    for chunk in content:
        first, *others = chunk.split(b"\n")
        for other in others:
            yield b"".join(held) + first + b"\n"
            held, first = [], other
        held.append(first)
    if last := b"".join(held):
        yield last
