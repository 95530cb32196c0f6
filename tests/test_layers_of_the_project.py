"""Imports point downwards, and training starts without TensorFlow."""

import ast
import pathlib
import subprocess
import sys
from types import FrameType
from typing import Any

import pytest
from conftest import ROOT
from helpers import small_config

from looped_jax.config import ConfigDict
from looped_jax.training.job import make_job

# Top to bottom; entry points are the modules directly in looped_jax/, except errors, and what
# `python -m` runs of a package.
ROWS = [
    {"entry points"},
    {"analysis", "theory", "interop", "inside"},
    {"training"},
    {"evaluation"},
    {"inference"},
    {"data"},
    {"models"},
    {"parallel", "cost"},
    {"config"},
    {"storage"},
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


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in MODULES
    }
    edges = {
        name: [other for other in imported_modules(path) if other in known and other != name]
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for other in edges[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in known:
        visit(name, ())


def test_the_top_of_the_package_is_its_commands() -> None:
    others = {path.name for path in PACKAGE.glob("*.py") if "cli.run(main" not in path.read_text()}
    assert others == {"__init__.py", "errors.py"}


@pytest.mark.parametrize("task", ["addition_n4", "text"])
def test_a_reader_who_follows_the_config_from_make_job_is_seldom_sent_back(task: str) -> None:
    # Every function that a config, or a part of it, is handed to, by its file, in order.
    stops: list[str] = []

    def on_call(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(f"{PACKAGE}/"):
            return
        path = pathlib.Path(code.co_filename)
        if PACKAGE / "config" in path.parents:
            return
        handed = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]]
        if any(isinstance(value, ConfigDict) for value in handed):
            stops.append(str(path.relative_to(PACKAGE)))

    config = small_config(data__task=task, data__length=64, model__vocab_size=512)
    sys.setprofile(on_call)
    try:
        make_job(config, needs_data=False)
    finally:
        sys.setprofile(None)
    legs = [path for i, path in enumerate(stops) if i == 0 or stops[i - 1] != path]
    returns = len(legs) - len(set(legs))
    assert returns <= 6, legs
    assert len(set(legs)) > 4, legs
