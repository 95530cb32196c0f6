"""The command `python -m looped_jax.main`: several runs in turn, bad input; the list of runs."""

import csv
import json
import pathlib
import shutil
import subprocess
from collections.abc import Callable

import pytest
from etils import epath
from matplotlib import image

from looped_jax.training.workdir import locked

Run = Callable[..., subprocess.CompletedProcess[str]]
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


def test_a_run_goes_on_from_its_folder_alone(
    variants_run: pathlib.Path, run_module: Run, tmp_path: pathlib.Path
) -> None:
    whole, folder = variants_run / "looped", tmp_path / "moved"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "12")
    done = run_module("looped_jax.main", f"--workdir={folder}", "--config.train.log_every=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"done: {folder}\n"
    assert "resumed from step 8" in done.stderr
    expected, found = (_evaluated(workdir) for workdir in (whole, folder))
    assert [line["step"] for line in found] == [4, 8, 12]
    assert found == expected
    config = json.loads((folder / "config.json").read_text())
    assert (config["train"]["log_every"], config["name"]) == (2, "variants/looped")


def _evaluated(workdir: pathlib.Path) -> list[dict[str, float]]:
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval/group_z7_n4/accuracy" in line]


def test_several_runs_go_on_from_their_folder_alone(
    variants_run: pathlib.Path, run_module: Run, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(variants_run, folder)
    shutil.rmtree(folder / "iso_flop")
    done = run_module("looped_jax.main", f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    assert _evaluated(folder / "iso_flop") == _evaluated(variants_run / "iso_flop")
    table = (folder / "comparison.csv").read_text()
    assert table == (variants_run / "comparison.csv").read_text()


def test_a_folder_that_holds_no_run_does_not_stand_for_a_config(
    fails_in_one_line: Callable, tmp_path: pathlib.Path
) -> None:
    line = fails_in_one_line("looped_jax.main", f"--workdir={tmp_path}")
    assert line.endswith(f"{tmp_path} holds no run to go on with")
    (tmp_path / "config.json").write_text("{")
    line = fails_in_one_line("looped_jax.main", f"--workdir={tmp_path}")
    assert f"{tmp_path / 'config.json'} cannot be read: not JSON" in line


def test_a_folder_of_other_files_is_not_taken_as_workdir(
    fails_in_one_line: Callable, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    line = fails_in_one_line("looped_jax.main", QUICKSTART, f"--workdir={tmp_path}")
    assert "exists and is not a run" in line
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_runs_are_listed_with_their_state(run_module: Run, variants_run: pathlib.Path) -> None:
    (variants_run / "looped" / "metrics.jsonl").rename(variants_run / "kept")
    lines = (variants_run / "kept").read_text().splitlines()
    stopped = [line for line in lines if '"step": 12' not in line]
    (variants_run / "looped" / "metrics.jsonl").write_text("\n".join(stopped) + "\n")
    try:
        with locked(epath.Path(variants_run / "iso_flop")):
            done = run_module("looped_jax.runs", str(variants_run))
    finally:
        (variants_run / "kept").replace(variants_run / "looped" / "metrics.jsonl")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()[2:]}
    assert rows["base"][1:6] == ["1x1", "done", "12", "12", "0"]
    assert rows["looped"][1:5] == ["1x2", "stopped", "8", "12"]
    assert rows["iso_flop"][2] == "training"
    assert rows["base"][6] == "eval/group_z7_n4/accuracy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no folder: say python -m looped_jax.runs DIR"),
        (("--workdir=x",), "Unknown command line flag 'workdir'"),
        (("runs", "--config.seed=1"), "config.seed changes nothing: say python -m looped_jax.runs"),
        (("nowhere",), "no folder nowhere"),
    ],
)
def test_what_is_no_folder_of_runs_gets_one_line(
    fails_in_one_line: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in fails_in_one_line("looped_jax.runs", *arguments)
