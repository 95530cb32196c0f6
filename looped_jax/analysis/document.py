"""A document of tables, figures and text, written as one HTML page with CSV, PNG and Markdown
beside it, and the numbers behind a table or figure as CSV files of their own."""

import base64
import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Sequence, Set

import jinja2
from etils import epath

from looped_jax.config import ASSETS
from looped_jax.data.files import write_whole

# A cell that is longer than this is set as text, in lines.
LONG = 60
TEMPLATE = ASSETS / "report" / "page.html"


def plain(text: str) -> str:
    """Text as Markdown shows it unchanged: no HTML, mathematics, emphasis or code in it."""
    return re.sub(r"([\\<$*`])", r"\\\1", text)


def _csv(rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What is behind a table or a figure, unrounded; a CSV file beside the page."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    def csv(self) -> str:
        return _csv([self.header, *self.rows])


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs; ``kind`` is note, warning for what is missing, or headline."""

    lines: tuple[str, ...]
    kind: str = "note"

    def markdown(self) -> str:
        if self.kind == "headline":
            return "\n\n".join(f"**{plain(line)}**" for line in self.lines)
        return "\n".join(f"- {plain(line)}" for line in self.lines)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What each of several things is, one line each."""

    rows: Sequence[tuple[str, str]]

    def markdown(self) -> str:
        return "\n".join(f"- {name}: {plain(fact)}" for name, fact in self.rows)


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as they are shown; ``name`` is that of its CSV file. The first column is text.
    ``marked``: cells that stand out, (row, column) from 0."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    marked: Set[tuple[int, int]] = frozenset()
    numbers: Numbers | None = None

    @property
    def numbers_file(self) -> str:
        return f"{self.name}_numbers.csv" if self.numbers else ""

    @property
    def of_text(self) -> set[int]:
        """The columns of long cells."""
        return {j for row in self.rows for j, cell in enumerate(row) if len(cell) > LONG}

    def markdown(self) -> str:
        rows = [
            [f"**{plain(c)}**" if (i, j) in self.marked else plain(c) for j, c in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        cells = [[c.replace("|", "\\|") for c in row] for row in (map(plain, self.header), *rows)]
        lines = ["| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:])]
        return f"**{plain(self.title)}**\n\n" + "\n".join(lines) + _below(self)

    def csv(self) -> str:
        return _csv([self.header, *self.rows])


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture; ``name`` is that of its PNG file."""

    name: str
    title: str
    png: bytes
    note: str = ""
    numbers: Numbers | None = None

    @property
    def numbers_file(self) -> str:
        return f"{self.name}_numbers.csv" if self.numbers else ""

    def markdown(self) -> str:
        return f"![{plain(self.title)}]({self.name}.png)" + _below(self)

    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def _below(part: Table | Figure) -> str:
    return f"\n\n{plain(part.note)}" if part.note else ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Of a Grid: what is shown, how strongly it is coloured, 0 to 1, and the lines that hovering or
    a tap shows."""

    text: str
    share: float
    more: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table of coloured cells under ``header``, with a name for each row; left out of the
    Markdown."""

    title: str
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""

    def markdown(self) -> str:
        return ""


@dataclasses.dataclass(frozen=True)
class Details:
    """Long text that is folded away in the page and left out of the Markdown."""

    title: str
    text: str

    def markdown(self) -> str:
        return ""


Part = Text | Facts | Table | Figure | Grid | Details
KINDS = {
    Text: "text",
    Facts: "facts",
    Table: "table",
    Figure: "figure",
    Grid: "grid",
    Details: "details",
}


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    """All of it; ``lead`` stands above the list of sections."""

    title: str
    sections: tuple[Section, ...]
    lead: tuple[Part, ...] = ()

    def html(self) -> str:
        """One page with everything in it: no script, nothing to load."""
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        template = environment.from_string(TEMPLATE.read_text())
        sections = [
            (f"section-{i}", s.title, _with_kinds(s.parts))
            for i, s in enumerate(self.sections, start=1)
        ]
        return template.render(title=self.title, lead=_with_kinds(self.lead), sections=sections)

    def markdown(self) -> str:
        blocks = [f"# {plain(self.title)}", *(part.markdown() for part in self.lead)]
        for section in self.sections:
            parts = [text for part in section.parts if (text := part.markdown())]
            if parts:
                blocks += [f"## {plain(section.title)}", *parts]
        return "\n\n".join(blocks) + "\n"

    def write(self, folder: epath.Path) -> None:
        """index.html, report.md, and files per table and figure; OSError if it cannot."""
        folder.mkdir(parents=True, exist_ok=True)
        for section in self.sections:
            for part in section.parts:
                if isinstance(part, Table):
                    write_whole(folder / f"{part.name}.csv", part.csv())
                elif isinstance(part, Figure):
                    write_whole(folder / f"{part.name}.png", part.png)
                if isinstance(part, Table | Figure) and part.numbers:
                    write_whole(folder / part.numbers_file, part.numbers.csv())
        write_whole(folder / "report.md", self.markdown())
        write_whole(folder / "index.html", self.html())


def _with_kinds(parts: Sequence[Part]) -> list[tuple[str, Part]]:
    return [(KINDS[type(part)], part) for part in parts]
