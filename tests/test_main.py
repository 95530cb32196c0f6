"""The command `python -m looped_jax.main`: several runs in turn, and bad input."""

import csv
import json
import pathlib
from collections.abc import Callable

import pytest
from matplotlib import image

QUICKSTART = "--config=experiments/quickstart.py"


def test_variants_are_trained_in_turn_and_compared(variants_run: pathlib.Path) -> None:
    for name in ("base", "looped", "iso_flop"):
        config = json.loads((variants_run / name / "config.json").read_text())
        assert config["name"].endswith(f"/{name}")
        assert (variants_run / name / "checkpoints" / "12").is_dir()
    with (variants_run / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["plan"] for row in rows] == ["1x1", "1x2", "2x1"]
    assert rows[0]["parameters"] == rows[1]["parameters"] < rows[2]["parameters"]
    assert rows[1]["flops_per_step"] == rows[2]["flops_per_step"]
    assert image.imread(variants_run / "comparison.png").std() > 0


def test_the_comparison_is_printed_at_the_end(variants_run: pathlib.Path) -> None:
    printed = (variants_run.parent / "stdout").read_text()
    assert "eval/group_z7_n4/accuracy" in printed
    assert "1x2 reaches" in printed
    assert f"plot: {variants_run / 'comparison.png'}" in printed


BAD = {
    "--config=experiments/quickstrat.py": "did you mean 'experiments/quickstart.py'",
    f"{QUICKSTART} --config.train.stepz=3": "did you mean 'train.steps'",
    f"{QUICKSTART} --config.train.steps=many": "it must be int",
    f"{QUICKSTART} --config.model.num_heads=7": "does not divide config.model.d_model=64",
    f"{QUICKSTART} --config.mesh.fsdp=3": "needs 3 devices; there are 1",
    f"{QUICKSTART} --wrkdir=x": "Unknown command line flag 'wrkdir'",
    "--config=experiments/addition.py:12": "segment 1: '12' is not LAYERSxLOOPS",
    "--config=experiments/pile_mini.py --config.data.path=": "config.data.path is not set",
    "--config=experiments/pile_mini.py --config.data.path=/nowhere": "/nowhere is not a folder",
    "": "say --config=FILE",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_gets_one_line_and_exit_code_2(
    arguments: str, fails_in_one_line: Callable, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    line = fails_in_one_line("looped_jax.main", *arguments.split(), f"--workdir={workdir}")
    assert BAD[arguments] in line
    assert not workdir.exists()


def test_a_folder_of_other_files_is_not_taken_as_workdir(
    fails_in_one_line: Callable, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    line = fails_in_one_line("looped_jax.main", QUICKSTART, f"--workdir={tmp_path}")
    assert "exists and is not a run" in line
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
