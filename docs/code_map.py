"""The map of docs/code.md: every file of the package with what its docstring says first.

python docs/code_map.py        # writes it, as does `make generated`
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "code.md"
PACKAGE = ROOT / "looped_jax"
BEGIN = "<!-- Written by `make generated`. -->\n"


def layers() -> list[str]:
    """The folders, top to bottom, as the list under "The layers" has them."""
    lines = PAGE.read_text().split("## The layers")[1].split("\n## ")[0].splitlines()
    names = [name.strip("` ") for line in lines if line[:1].isdigit() for name in _names(line)]
    return [name for name in names if (PACKAGE / name).is_dir()]


def _names(line: str) -> list[str]:
    return line.split(". ", 1)[1].split(":")[0].split(",")


def first_paragraph(path: pathlib.Path) -> str:
    """What a module's docstring says first, in one line of a table."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(":").replace("|", "\\|")


def text() -> str:
    """What the page is from BEGIN on."""
    parts = []
    for folder in ["", *layers()]:
        files = PACKAGE.glob("*.py") if not folder else (PACKAGE / folder).rglob("*.py")
        parts += ["", f"### looped_jax/{folder}".rstrip("/"), ""]
        if folder:
            parts += [first_paragraph(PACKAGE / folder / "__init__.py"), ""]
        parts += ["| file | |", "|---|---|"]
        for path in sorted(files):
            name = str(path.relative_to(PACKAGE / folder))
            if name != "__init__.py":
                parts.append(f"| `{name}` | {first_paragraph(path)} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().split(BEGIN)[0] + BEGIN + text())
