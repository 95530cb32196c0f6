"""Imports point downwards, and training starts without TensorFlow."""

import ast
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT

# Top to bottom; entry points are the modules directly in looped_jax/, except errors, and what
# `python -m` runs of a package.
ROWS = [
    {"entry points"},
    {"training", "evaluation", "analysis", "theory"},
    {"inference"},
    {"data"},
    {"models"},
    {"parallel"},
    {"config"},
    {"errors"},
]
PACKAGE = ROOT / "looped_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(parts: tuple[str, ...]) -> str:
    if parts[-1] == "__main__.py":
        return "entry points"
    name = parts[0].removesuffix(".py")
    return name if any(name in row for row in ROWS) else "entry points"


def row_of(parts: tuple[str, ...]) -> int:
    return next(i for i, row in enumerate(ROWS) if layer_of(parts) in row)


def imported_modules(path: pathlib.Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "looped_jax":
            names += [f"looped_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_row_or_below(path: pathlib.Path) -> None:
    here = row_of(path.relative_to(PACKAGE).parts)
    for name in imported_modules(path):
        if name.startswith("looped_jax."):
            assert row_of(tuple(name.split(".")[1:])) >= here, f"{path} imports {name}"


def test_tensorflow_and_seqio_are_imported_only_inside_data() -> None:
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] == "data":
            continue
        for name in imported_modules(path):
            assert name.split(".")[0] not in ("tensorflow", "seqio", "tensorflow_datasets"), path


@pytest.mark.parametrize("command", ["main", "tasks", "evaluate"])
def test_a_command_starts_without_tensorflow_or_seqio(command: str) -> None:
    program = (
        f"import sys, looped_jax.{command}\n"
        "print([m for m in ('tensorflow', 'seqio', 'tensorflow_datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
