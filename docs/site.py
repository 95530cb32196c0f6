"""What the site has beside these pages: the README in front, and a reference of every file.

Run by mkdocs (mkdocs.yml), `make docs`. Links to files of the package lead to their reference;
links to other files of the project become text, as these are not part of the site.
"""

import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _name(path: str) -> str:
    """looped_jax/models/loops/__init__.py, or its folder -> looped_jax.models.loops."""
    module = path.rstrip("/").removesuffix(".py").removesuffix("/__init__")
    return module.replace("/", ".")


def _modules() -> list[str]:
    """The names of all files of the package."""
    paths = sorted((ROOT / "looped_jax").rglob("*.py"))
    return [_name(str(path.relative_to(ROOT))) for path in paths]


def on_config(config: Any) -> Any:
    """Lists the reference, folder by folder."""
    by_folder: dict[str, list[Any]] = {}
    for name in _modules():
        folder = ".".join(name.split(".")[:2]) if name.count(".") > 1 else "looped_jax"
        by_folder.setdefault(folder, []).append({name: f"reference/{name}.md"})
    config["nav"].append({"Reference": [{k: pages} for k, pages in by_folder.items()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made."""
    readme = (ROOT / "README.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    for name in _modules():
        content = f"# {name}\n\n::: {name}\n"
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leads links out of docs/ to where they are on the site."""
    known = _modules()

    def moved(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if target == "README.md":
            return f"[{text}](index.md)"
        if (name := _name(target)) in known:
            return f"[{text}](reference/{name}.md)"
        return text

    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./([^)]*)\)", moved, markdown)
