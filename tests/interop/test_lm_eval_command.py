"""`python -m looped_jax.lm_eval` with the harness: options, model arguments, results."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from conftest import ROOT
from helpers import write_language_model, write_pile

from looped_jax.errors import UserError

lm_eval = pytest.importorskip(
    "lm_eval", reason="the extra lm-eval is not installed: pip install -e '.[lm-eval]'"
)
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("lm")
    write_pile(folder / "pile")
    write_language_model(
        folder / "run.py", data__length=48, train__steps=4, eval__every=4, eval__examples=8
    )
    command = [
        *(sys.executable, "-m", "looped_jax.main", f"--config={folder / 'run.py'}"),
        *(f"--config.data.path={folder / 'pile'}", f"--workdir={folder / 'run'}"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Tasks that need no network: YAML beside JSON."""
    folder = tmp_path_factory.mktemp("tasks")
    questions = [{"question": f"{i} is", "answer": " loop"} for i in range(6)]
    (folder / "data.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    common = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'data.jsonl'}}}}}\n"
        'test_split: test\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
    )
    (folder / "last.yaml").write_text(
        f"task: local_last\noutput_type: loglikelihood\n{common}"
        "metric_list: [{metric: perplexity}, {metric: acc}]\n"
    )
    (folder / "say.yaml").write_text(
        f"task: local_say\noutput_type: generate_until\n{common}"
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 4}\n'
        "metric_list: [{metric: exact_match}]\n"
    )
    return folder


def test_the_harness_runs_a_run_and_says_what_it_was(
    workdir: pathlib.Path, tasks: pathlib.Path, tmp_path: pathlib.Path, run_module: Callable
) -> None:
    done = run_module(
        "looped_jax.lm_eval",
        *("--model_args", f"workdir={workdir},loops=3,exit=state:1e9:2"),
        *("--include_path", str(tasks), "--tasks", "local_last,local_say", "--limit", "4"),
        *("--batch_size", "2", "--log_samples", "--output_path", str(tmp_path / "found.json")),
        env=OFFLINE,
    )
    assert done.returncode == 0, done.stderr
    assert "local_say" in done.stdout and "perplexity" in done.stdout
    assert "fork" not in done.stderr
    (path,) = tmp_path.glob("found_*.json")
    results = json.loads(path.read_text())
    config = results["config"]
    expected = {
        "model": "looped_jax",
        "checkpoint": str(workdir / "checkpoints" / "4"),
        "step": 4,
        "plan": "1x2",
        "loops": 3,
        "exit": "state:1e+09:2",
        "loops_used": 2.0,
        "batch_size": "2",
    }
    assert {key: config[key] for key in expected} == expected
    assert results["n-samples"]["local_say"]["effective"] == 4
    (samples,) = tmp_path.glob("samples_local_say_*.jsonl")
    assert len(samples.read_text().splitlines()) == 4


def test_the_python_interface_says_it_too_and_knows_the_model_by_name(
    workdir: pathlib.Path, tasks: pathlib.Path
) -> None:
    from lm_eval.tasks import TaskManager

    import looped_jax.interop.lm_eval_model as adapter

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=adapter.NAME,
        model_args=f"workdir={workdir},batch_size=2",
        tasks=["local_say"],
        task_manager=manager,
        bootstrap_iters=0,
    )["config"]
    assert (found["step"], found["plan"], found["loops"]) == (4, "1x2", 2)
    assert found["rows_at_a_time"] >= 2 and len(found["identity"]) == 64


def test_options_of_the_command_line_are_taken_as_it_passes_them(workdir: pathlib.Path) -> None:
    from looped_jax.interop.lm_eval_model import LoopedJax, _rows

    model = LoopedJax.create_from_arg_obj(
        {"workdir": str(workdir), "draft": "1:2", "config": {"model.unroll": "none"}},
        {"batch_size": "4", "max_batch_size": None, "device": "cuda:0"},
    )
    assert model.get_model_info()["draft"] == "1:2"
    assert [_rows(size, most) for size, most in (("4", 2), ("auto", None), ("auto:4", 2))] == [
        *(4, 16, 2)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workdir": ""}, "say which run: --model_args workdir=DIR"),
        ({"lops": 3}, "'lops' is unknown; did you mean 'loops'"),
        ({"loops": "two"}, "loops=two is not a whole number from 1 on"),
        ({"step": 2.5}, "step=2.5 is not a whole number from 0 on"),
        ({"batch_size": "many"}, "batch_size=many is none of auto, auto:N"),
        ({"device": "mps"}, "device=mps: a run computes on all devices of JAX, here"),
        ({"exit": "cdf:0.5"}, "asks a gate"),
        ({"config": {"model.plann": "1"}}, "did you mean 'model.plan'"),
    ],
)
def test_bad_model_arguments_are_refused(
    arguments: dict[str, Any], message: str, workdir: pathlib.Path
) -> None:
    from looped_jax.interop.lm_eval_model import LoopedJax

    with pytest.raises(UserError, match=message):
        LoopedJax(**{"workdir": str(workdir), **arguments})


def test_chat_templates_are_refused(workdir: pathlib.Path) -> None:
    from looped_jax.interop.lm_eval_model import LoopedJax

    model = LoopedJax(str(workdir))
    assert model.chat_template(False) is None
    for ask in (
        lambda: model.chat_template(True),
        lambda: model.apply_chat_template([]),
        lambda: model.tokenizer_name,
    ):
        with pytest.raises(UserError, match="a run has no chat template"):
            ask()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "nothing"], "Tasks not found: nothing"),
        (["--task"], "expected at least one argument"),
        (["--tasks", "local_say", "--log_samples"], "Specify --output_path"),
        (["--tasks", "local_say", "--apply_chat_template"], "a run has no chat template"),
    ],
)
def test_what_cannot_be_asked_is_said_in_the_last_line(
    arguments: list[str],
    message: str,
    workdir: pathlib.Path,
    tasks: pathlib.Path,
    run_module: Callable,
) -> None:
    model = ("--model_args", f"workdir={workdir}", "--include_path", str(tasks))
    done = run_module("looped_jax.lm_eval", *model, *arguments, env=OFFLINE)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in done.stderr.strip().splitlines()[-1]


def test_help_is_the_harness_s_own(run_module: Callable) -> None:
    done = run_module("looped_jax.lm_eval", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "workdir=runs/" in done.stdout and "--include_path" in done.stdout
