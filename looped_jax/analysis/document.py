"""A document of tables, figures and text, written as one HTML page with CSV, PNG and Markdown
beside it."""

import base64
import csv
import dataclasses
import io
from collections.abc import Sequence

import jinja2
from etils import epath

from looped_jax.config import ASSETS
from looped_jax.data.files import write_whole

TEMPLATE = ASSETS / "report" / "page.html"


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs; ``kind`` is note, or warning for what is missing."""

    lines: tuple[str, ...]
    kind: str = "note"

    def markdown(self) -> str:
        return "\n".join(f"- {line}" for line in self.lines)


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as they are shown; ``name`` is that of its CSV file. The first column is text."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        cells = [[c.replace("|", "\\|") for c in row] for row in (self.header, *self.rows)]
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:])]
        return (
            f"**{self.title}**\n\n" + "\n".join(lines) + (f"\n\n{self.note}" if self.note else "")
        )

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.header, *self.rows])
        return out.getvalue()


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture; ``name`` is that of its PNG file."""

    name: str
    title: str
    png: bytes
    note: str = ""

    def markdown(self) -> str:
        return f"![{self.title}]({self.name}.png)" + (f"\n\n{self.note}" if self.note else "")

    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


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


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    parts: tuple[Text | Table | Figure | Grid | Details, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    """All of it."""

    title: str
    sections: tuple[Section, ...]

    def html(self) -> str:
        """One page with everything in it: no script, nothing to load."""
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        template = environment.from_string(TEMPLATE.read_text())
        kinds = {Text: "text", Table: "table", Figure: "figure", Grid: "grid", Details: "details"}
        sections = [
            (f"section-{i}", s.title, [(kinds[type(part)], part) for part in s.parts])
            for i, s in enumerate(self.sections, start=1)
        ]
        return template.render(title=self.title, sections=sections)

    def markdown(self) -> str:
        blocks = [f"# {self.title}"]
        for section in self.sections:
            parts = [text for part in section.parts if (text := part.markdown())]
            if parts:
                blocks += [f"## {section.title}", *parts]
        return "\n\n".join(blocks) + "\n"

    def write(self, folder: epath.Path) -> None:
        """index.html, report.md, and a file per table and figure; OSError if it cannot."""
        folder.mkdir(parents=True, exist_ok=True)
        for section in self.sections:
            for part in section.parts:
                if isinstance(part, Table):
                    write_whole(folder / f"{part.name}.csv", part.csv())
                elif isinstance(part, Figure):
                    write_whole(folder / f"{part.name}.png", part.png)
        write_whole(folder / "report.md", self.markdown())
        write_whole(folder / "index.html", self.html())
