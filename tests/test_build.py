"""BUILD says what there is: files, dependencies, tests."""

import ast
import itertools
import pathlib
import shutil
import subprocess

import build_file
import pytest
from conftest import ROOT

RENEW = "run: make generated"
SOURCES = ("looped_jax", "experiments", "benchmarks", "tests")


def rules() -> dict[str, dict]:
    """Rule name -> its kind and attributes. BUILD files are Python in syntax."""
    found: dict[str, dict] = {}
    for node in ast.parse((ROOT / "BUILD").read_text()).body:
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            continue
        call = node.value
        attributes = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        if "name" in attributes:
            assert attributes["name"] not in found, "two rules of one name"
            found[attributes["name"]] = {"kind": call.func.id, **attributes}
    return found


RULES = rules()
OWNER = {src: name for name, rule in RULES.items() for src in rule["srcs"]}


def imported_rules(src: str) -> set[str]:
    return {OWNER[file] for file in build_file.imported_files(src, OWNER)}


def test_every_file_is_in_exactly_one_rule() -> None:
    files = {str(p.relative_to(ROOT)) for d in SOURCES for p in (ROOT / d).rglob("*.py")}
    listed = list(itertools.chain.from_iterable(rule["srcs"] for rule in RULES.values()))
    assert sorted(listed) == sorted(files), RENEW


@pytest.mark.parametrize("name", RULES)
def test_a_rule_depends_on_what_its_sources_import(name: str) -> None:
    rule = RULES[name]
    imported = set.union(*(imported_rules(src) for src in rule["srcs"])) - {name}
    declared = {dep.removeprefix(":") for dep in rule.get("deps", [])}
    assert declared <= set(RULES)
    if rule["kind"] == "py_test":
        declared -= {"testing"}  # Fixtures and the environment, found by pytest.
        imported -= {"testing"}
    assert declared == imported, RENEW


def test_it_is_what_the_imports_say() -> None:
    assert build_file.BUILD.read_text() == build_file.text(), RENEW


def test_there_is_a_library_per_package_a_binary_and_a_test_per_test_file() -> None:
    packages = {p.parent.name for p in (ROOT / "looped_jax").glob("*/__init__.py")}
    assert packages <= {name for name, rule in RULES.items() if rule["kind"] == "py_library"}
    assert RULES["main"]["kind"] == "py_binary"
    for src in OWNER:
        is_test = pathlib.Path(src).name.startswith("test_")
        assert is_test == (RULES[OWNER[src]]["kind"] == "py_test")


def test_bazel_understands_it() -> None:
    if shutil.which("bazel") is None:
        pytest.skip("Bazel is not installed here")
    subprocess.run(["bazel", "query", "//..."], cwd=ROOT, check=True, capture_output=True)
