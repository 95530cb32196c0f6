"""What `pip install` of a wheel gives is whole: it works from any folder, without a checkout."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

NOT_SHIPPED = (".*", "runs", "build", "*.egg-info", "__pycache__", "docs", "tests", "benchmarks")
SHORT = [f"--config.{k}=2" for k in ("train.steps", "eval.every", "checkpoint.every")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An environment of its own, with the packages of this one beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", folder, source], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target"]
    subprocess.run([*install, folder / "site", wheel], check=True, capture_output=True)
    return folder / "site"


def run(site: pathlib.Path, folder: pathlib.Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quick_start_and_a_report_run_from_the_wheel(
    site: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    said = run(
        *(site, tmp_path, "-m", "looped_jax.main", "--config=experiments/quickstart.py"),
        *("--workdir=run", "--config.eval.examples=64", *SHORT),
    )
    assert "numbers: run/comparison.csv" in said
    run(site, tmp_path, "-m", "looped_jax.report", "--runs=run", "--out=report")
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000


def test_a_shipped_vocabulary_and_the_papers_numbers_are_in_the_wheel(
    site: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    said = run(
        *(site, tmp_path, "-c"),
        "import looped_jax; print(looped_jax.__file__)\n"
        "from looped_jax.data.vocabulary import load_vocabulary\n"
        "from looped_jax.analysis.published import FOLDER\n"
        "print(load_vocabulary('pile_mini_32k').size, (FOLDER / 'phop.csv').exists())",
    )
    place, found = said.splitlines()
    assert pathlib.Path(place).is_relative_to(site)
    assert found == "32768 True"
