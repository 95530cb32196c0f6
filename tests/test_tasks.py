"""The command `python -m looped_jax.tasks`."""

import json
import pathlib
import re
from collections.abc import Callable

from looped_jax.data.tasks import task_names
from looped_jax.data.tasks.downstream import TASKS

Run = Callable[..., object]


def test_list_prints_one_name_a_line(run_module: Callable) -> None:
    done = run_module("looped_jax.tasks", "--list")
    assert done.returncode == 0
    names = done.stdout.splitlines()
    assert set(names) == {*task_names(), *TASKS}
    assert len(set(names)) == len(names)
    for name in ("addition", "addition_n8", "phop_p16_n256", "igsm", "group_s3_n8"):
        assert name in names
    for depth in (0, 1):
        for form in ("math", "code"):
            assert f"varassign_depth{depth}_{form}" in names


def test_examples_are_json_lines_and_nothing_else(run_module: Callable) -> None:
    arguments = ("--task=phop_p3_n20", "--split=validation", "--num=5", "--seed=3")
    done = run_module("looped_jax.tasks", *arguments)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 5
    assert all(set(line) == {"inputs", "targets"} for line in lines)
    assert all(len(line["inputs"]) == 20 and line["targets"] in "abcd" for line in lines)


def test_an_unknown_task_or_split_is_named(fails_in_one_line: Callable) -> None:
    line = fails_in_one_line("looped_jax.tasks", "--task=adition")
    assert "no task 'adition'; did you mean 'addition'?" in line
    line = fails_in_one_line("looped_jax.tasks", "--task=igsm", "--split=dev")
    assert "split 'dev' is not one of train, validation, test" in line


def test_a_generated_task_is_printed_in_the_style_asked_for(run_module: Callable) -> None:
    arguments = ("--task=varassign_depth0_math", "--num=1")
    plain, line = (
        json.loads(run_module("looped_jax.tasks", *arguments, *style).stdout)
        for style in ((), ("--style=line",))
    )
    assert plain["targets"] == line["targets"]
    assert re.fullmatch(r"(\w=\d+, ){5}\w=\?", line["inputs"])


def test_a_downstream_task_is_printed_as_it_is_asked(
    run_module: Callable, fails_in_one_line: Callable, tmp_path: pathlib.Path
) -> None:
    record = {"id": "1", "question": "1 and 1?", "answers": ["2 (apples)"], "split": "eval"}
    (tmp_path / "asdiv.jsonl").write_text(json.dumps(record) + "\n")
    arguments = ("--task=asdiv", "--split=validation", f"--data_dir={tmp_path}")
    done = run_module("looped_jax.tasks", *arguments)
    assert json.loads(done.stdout) == {"inputs": "Question: 1 and 1?\nAnswer:", "targets": "2"}
    done = run_module("looped_jax.tasks", *arguments, "--documents", "--num=1")
    assert json.loads(done.stdout) == {
        "prompt": "Question: 1 and 1?\nAnswer:",
        "text": " 2",
        "meta": {"pile_set_name": "asdiv"},
    }
    line = fails_in_one_line("looped_jax.tasks", *arguments, "--style=line")
    assert "task asdiv has no style 'line'; it has default" in line
    line = fails_in_one_line("looped_jax.tasks", "--task=asdif", "--documents")
    assert "--documents is for downstream tasks; 'asdif' is none; did you mean 'asdiv'?" in line
    line = fails_in_one_line("looped_jax.tasks", "--task=addition", "--style=line")
    assert "--style is for downstream tasks; 'addition' is none" in line
    line = fails_in_one_line("looped_jax.tasks", "--task=asdiv")
    assert "task asdiv: its files are needed" in line and "get ASDiv.xml" in line
