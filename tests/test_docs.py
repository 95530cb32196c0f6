"""What the documentation refers to is there."""

import pathlib
import re
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

from looped_jax.config import default_config, flatten

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_files_exist(page: pathlib.Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
    for path in re.findall(r"\b((?:experiments|tests|benchmarks|looped_jax)/[\w/]+\.\w+)\b", text):
        assert (ROOT / path).exists() or "my_" in path, path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_config_keys_exist(page: pathlib.Path) -> None:
    known = dict(flatten(default_config()))
    sections = {key.rpartition(".")[0] for key in known} | set(known)
    named = re.findall(r"config\.([a-z]\w*(?:\.\w+)*)[=`]", page.read_text())
    for key in set(named) - {"json", "py", "md"}:  # config.json, for one, is a file.
        # The one wrong key is shown as an example of the error.
        assert key in known or key in sections or key == "train.step", key


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_modules_that_commands_run_exist(page: pathlib.Path) -> None:
    for module in re.findall(r"python -m ((?:looped_jax|benchmarks)[\w.]+)", page.read_text()):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_map_of_the_code_has_every_file() -> None:
    code_map = runpy.run_path(str(ROOT / "docs" / "code_map.py"))
    _, written = (ROOT / "docs" / "code.md").read_text().split(code_map["BEGIN"])
    assert written == code_map["text"](), "make generated"
    folders = {path.parent.name for path in (ROOT / "looped_jax").glob("*/__init__.py")}
    assert set(code_map["layers"]()) == folders


def test_the_pages_are_a_site_with_a_reference_whose_links_lead_somewhere(
    tmp_path: pathlib.Path,
) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "make quickstart" in (tmp_path / "index.html").read_text()
    job = (tmp_path / "reference" / "looped_jax.training.job.html").read_text()
    assert "needs_data" in job and "UserError for whatever" in job
    assert (
        "reference/looped_jax.models.loops.segment.html"
        in (tmp_path / "loop_variants.html").read_text()
    )
