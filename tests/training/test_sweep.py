"""Sweeps: what a file may say, what is skipped, resumed and printed."""

import json
import pathlib
import shlex
from collections.abc import Callable

import pytest
from etils import epath

from looped_jax.errors import UserError
from looped_jax.training.sweep import (
    Progress,
    check_unclaimed,
    commands,
    listed_runs,
    load_sweep,
)

EXPERIMENT = """
from looped_jax.config import default_config

def get_config(plan="1x1"):
    config = default_config()
    config.data.task = "group_z7_n4"
    config.model.update(plan=plan, d_model=16, num_heads=4, d_ff=32)
    config.optimizer.update(name="adamw", learning_rate=1e-2, warmup_steps=4)
    config.train.update(steps=4, batch_size=16, log_every=2)
    config.checkpoint.update(every=2, keep=2)
    config.eval.update(every=4, examples=32)
    return config
"""


def write_sweep(folder: pathlib.Path, runs: str) -> str:
    (folder / "tiny.py").write_text(EXPERIMENT)
    path = folder / "sweep.py"
    path.write_text(
        "from looped_jax.training.sweep import SweepRun\n\n"
        f"TINY = {str(folder / 'tiny.py')!r}\n\n\ndef get_sweep():\n    return ({runs},)\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ('SweepRun("a", TINY), SweepRun("a", TINY)', "two runs are named 'a'"),
        ('SweepRun("a/b", TINY)', "not a name for a folder"),
        ('SweepRun("logs", TINY)', "may not be named"),
        ('SweepRun("a", TINY, {"train.step": 3})', "run a: config has no key 'train.step'; did"),
        ('SweepRun("a", TINY + ":2y2")', "run a: plan '2y2'"),
        ('"a"', "tuple of SweepRun"),
    ],
)
def test_a_sweep_that_cannot_work_says_why(runs: str, message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=message):
        load_sweep(write_sweep(tmp_path, runs), {})


def test_overrides_of_the_command_line_are_on_top_of_the_files(tmp_path: pathlib.Path) -> None:
    runs = 'SweepRun("a", TINY, {"train.steps": 3, "eval.tasks": ("group_z7_n3",)})'
    ((run, config),) = load_sweep(write_sweep(tmp_path, runs), {"train.steps": "5"}).items()
    assert config.train.steps == 5
    assert config.eval.tasks == ("group_z7_n3",)
    (command,) = commands([run], epath.Path("runs/x"))
    assert shlex.split(command) == [
        *("python", "-m", "looped_jax.main", f"--config={tmp_path / 'tiny.py'}"),
        *("--workdir=runs/x/a", "--config.train.steps=5"),
        "--config.eval.tasks=('group_z7_n3',)",
    ]


def test_a_folder_of_another_config_is_refused_before_anything_runs(tmp_path: pathlib.Path) -> None:
    path = write_sweep(tmp_path, 'SweepRun("a", TINY)')
    ((_, config),) = load_sweep(path, {"seed": "1"}).items()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(UserError, match="another config"):
        check_unclaimed(load_sweep(path, {}), epath.Path(tmp_path))


def test_runs_are_trained_in_turn_and_the_same_command_finishes_what_failed(
    run_module: Callable[..., object], tmp_path: pathlib.Path
) -> None:
    runs = 'SweepRun("first", TINY), SweepRun("second", TINY + ":1x2")'
    sweep = (f"--sweep={write_sweep(tmp_path, runs)}", f"--workdir={tmp_path / 'out'}")
    # Something is in the way of the first run; the second is trained all the same.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "first").write_text("in the way")
    done = run_module("looped_jax.sweep", *sweep)
    assert done.returncode == 1, done.stderr  # type: ignore[attr-defined]
    assert "1 of 2 runs failed (first: " in done.stderr  # type: ignore[attr-defined]
    assert listed_runs(epath.Path(tmp_path / "out")) == ["first", "second"]
    second = tmp_path / "out" / "second" / "metrics.jsonl"
    before = second.stat().st_mtime_ns

    (tmp_path / "out" / "first").unlink()
    done = run_module("looped_jax.sweep", *sweep)
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    assert second.stat().st_mtime_ns == before  # Finished: not touched.
    assert (tmp_path / "out" / "first" / "checkpoints" / "4").is_dir()
    table = done.stderr  # type: ignore[attr-defined]
    assert table.count("finished") == 2
    assert "4/4" in table


def test_commands_are_printed_and_nothing_is_trained(
    run_module: Callable[..., object], tmp_path: pathlib.Path
) -> None:
    path = write_sweep(tmp_path, 'SweepRun("a", TINY), SweepRun("b", TINY + ":2x1")')
    arguments = (f"--sweep={path}", f"--workdir={tmp_path / 'out'}", "--print_commands")
    done = run_module("looped_jax.sweep", *arguments)
    lines = done.stdout.splitlines()  # type: ignore[attr-defined]
    assert [line.split("--workdir=")[1] for line in lines] == [
        f"{tmp_path / 'out' / name}" for name in ("a", "b")
    ]
    assert not (tmp_path / "out").exists()


def test_a_run_whose_last_checkpoint_is_empty_is_not_finished(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "checkpoints" / "4"
    folder.mkdir(parents=True)
    assert not Progress.of(epath.Path(tmp_path), 4).finished
    (folder / "meta").mkdir()  # A copy that was interrupted.
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
    assert not Progress.of(epath.Path(tmp_path), 4).finished


@pytest.mark.parametrize("text", ["", "[]", '{"runs": [{}]}', '{"runs": 3}'])
def test_a_damaged_list_of_runs_is_named(text: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        listed_runs(epath.Path(tmp_path))
