"""BUILD, from the files and their imports.

python tests/build_file.py        # writes it, as does `make generated`
"""

import ast
import pathlib
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = ROOT / "BUILD"
HEAD = '''"""Libraries, the main program and tests. Written by `make generated`."""

load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

package(default_visibility = ["//visibility:public"])
'''
# What TensorFlow is needed for, and what needs that: apart from the rest of data.
SEQIO = ("data/seqio_downstream.py", "data/seqio_text.py", "data/tasks/seqio_tasks.py")
PREPARATION = (
    *("data/claim.py", "data/cluster.py", "data/packed_blocks.py", "data/preparation.py"),
    *("data/shard_writer.py", "data/sorted_runs.py", "data/workers.py"),
)
PACKAGES = (
    *("parallel", "cost", "models", "inference", "data", "evaluation", "training", "analysis"),
    *("interop", "inside", "storage"),
)
# What code reads, no code: library -> patterns.
ASSETS = {
    "data": ("data/vocabularies/*",),
    "analysis": ("data/paper/*", "data/report/*"),
}


def _python(folder: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}


def libraries() -> dict[str, set[str]]:
    """Name -> its sources, in the order in which they stand in BUILD."""
    seqio = {f"looped_jax/{name}" for name in SEQIO}
    preparation = {f"looped_jax/{name}" for name in PREPARATION}
    at_top = {str(path.relative_to(ROOT)) for path in (ROOT / "looped_jax").glob("*.py")}
    config = {"looped_jax/__init__.py", "looped_jax/errors.py", *_python("looped_jax/config")}
    tests = _python("tests")
    return {
        "config": config,
        **{name: _python(f"looped_jax/{name}") - seqio - preparation for name in PACKAGES},
        "seqio_tasks": seqio,
        "preparation": preparation,
        "theory": _python("looped_jax/theory"),
        "commands": at_top - config - {"looped_jax/main.py"},
        "experiments": _python("experiments"),
        "benchmarks": _python("benchmarks"),
        "testing": {path for path in tests if not pathlib.Path(path).name.startswith("test_")},
    }


def tests() -> dict[str, str]:
    """Name -> the file of a test."""
    return {
        path.removeprefix("tests/").removesuffix(".py").replace("/", "_"): path
        for path in sorted(_python("tests"))
        if pathlib.Path(path).name.startswith("test_")
    }


def imported_files(source: str, known: Iterable[str]) -> set[str]:
    """The project's files that a file imports."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / source).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = {name.replace(".", "/") for name in names}
    candidates = {c for p in paths for c in (f"{p}.py", f"{p}/__init__.py", f"tests/{p}.py")}
    return candidates & set(known)


def text() -> str:
    """The content of BUILD."""
    of_library = libraries()
    main = "looped_jax/main.py"
    owner = {source: name for name, sources in of_library.items() for source in sources}
    owner |= {path: name for name, path in tests().items()} | {main: "main"}

    def needs(name: str, sources: Iterable[str]) -> list[str]:
        files = {file for source in sources for file in imported_files(source, owner)}
        rules = {owner[file] for file in files} - {name}
        # Fixtures and the environment, which pytest finds by itself.
        rules |= {"testing"} if name in tests() else set()
        return sorted(f":{rule}" for rule in rules)

    parts = [HEAD]
    for name, sources in of_library.items():
        found = (ROOT.glob(pattern) for pattern in ASSETS.get(name, ()))
        assets = sorted(str(path.relative_to(ROOT)) for paths in found for path in paths)
        only = {"testonly": True} if name == "testing" else {}
        deps = needs(name, sources)
        parts.append(_rule("py_library", name, sorted(sources), data=assets, deps=deps, **only))
    parts.append(_rule("py_binary", "main", [main], main=main, deps=needs("main", [main])))
    for name, path in tests().items():
        parts.append(_rule("py_test", name, [path], main=path, deps=needs(name, [path])))
    return "\n".join(parts)


def _rule(kind: str, name: str, srcs: list[str], **attributes: object) -> str:
    lines = [f"{kind}(", f'    name = "{name}",']
    attributes = {"srcs": srcs, **attributes}
    for key in (key for key in _ORDER if key in attributes):
        value = attributes[key]
        if isinstance(value, bool):
            lines.append(f"    {key} = {value},")
        elif isinstance(value, str):
            lines.append(f'    {key} = "{value}",')
        elif isinstance(value, list) and len(value) == 1:
            lines.append(f'    {key} = ["{value[0]}"],')
        elif isinstance(value, list) and value:
            lines += [f"    {key} = [", *(f'        "{item}",' for item in value), "    ],"]
    return "\n".join([*lines, ")", ""])


# As buildifier orders them.
_ORDER = ("testonly", "srcs", "data", "main", "deps")


if __name__ == "__main__":
    BUILD.write_text(text())
