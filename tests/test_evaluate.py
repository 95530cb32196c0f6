"""The command `python -m looped_jax.evaluate`."""

import json
import pathlib
from collections.abc import Callable
from hashlib import sha256

import pytest
from helpers import write_language_model, write_pile


def test_evaluating_the_last_checkpoint_repeats_the_runs_own_numbers(
    variants_run: pathlib.Path, run_module: Callable
) -> None:
    done = run_module("looped_jax.evaluate", f"--workdir={variants_run / 'looped'}")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics.pop("step") == 12
    lines = (variants_run / "looped" / "metrics.jsonl").read_text().splitlines()
    last = next(
        line for line in map(json.loads, reversed(lines)) if any("eval/" in k for k in line)
    )
    for name, value in metrics.items():
        assert value == pytest.approx(last[name], rel=1e-5)


def test_loops_step_tasks_and_split_can_be_chosen(
    variants_run: pathlib.Path, run_module: Callable
) -> None:
    workdir = f"--workdir={variants_run / 'looped'}"
    more = ("--loops=5,2", "--step=8", "--tasks=group_z7_n3,group_z7_n4", "--split=test")
    done = run_module("looped_jax.evaluate", workdir, *more)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(metrics["step"], metrics["loops"]) for metrics in found] == [(8, 5), (8, 2)]
    # On the screen each count is above what was found with it.
    shown = [line for line in done.stderr.splitlines() if line.startswith(("with", "group"))]
    expected = []
    for metrics in found:
        expected.append(f"with {metrics['loops']} loops:")
        for task in ("group_z7_n3", "group_z7_n4"):
            expected.append(f"{task} {100 * metrics[f'eval/{task}/accuracy']:.1f}%")
    assert shown == expected
    for metrics in found:
        assert {"eval/group_z7_n3/accuracy", "eval/group_z7_n4/accuracy"} < set(metrics)
    # What a report reads.
    kept = (variants_run / "looped" / "evaluations" / "held_out.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in kept[-4:]]  # Two loop counts, two tasks.
    assert {(line["step"], line["split"]) for line in last} == {(8, "test")}
    said = [
        {"step": 8, "loops": one["loops"], **one["metrics"], **other["metrics"]}
        for one, other in zip(last[::2], last[1::2], strict=True)
    ]
    assert said == found
    assert len({line["checkpoint"] for line in last}) == 1
    assert all(line["overrides"] == {} for line in last)


def test_with_an_exit_the_loops_that_tokens_took_are_said(
    variants_run: pathlib.Path, run_module: Callable
) -> None:
    workdir = variants_run / "looped"
    more = ("--exit=state:1e9:2", "--cache=last", "--loops=3,2")
    done = run_module("looped_jax.evaluate", f"--workdir={workdir}", *more)
    assert done.returncode == 0, done.stderr
    after_two, fixed = (json.loads(line) for line in done.stdout.splitlines())
    assert (after_two["exit"], after_two["cache"]) == ("state:1e+09:2", "last")
    assert after_two["eval/group_z7_n4/loops_used"] == 2.0
    assert after_two["eval/group_z7_n4/exit_2"] == 1.0
    loss = "eval/group_z7_n4/loss"
    assert after_two[loss] == pytest.approx(fixed[loss], rel=1e-5)
    kept = (workdir / "evaluations" / "held_out.jsonl").read_text().splitlines()
    # A report keeps it apart from what the model does by itself.
    assert json.loads(kept[-1])["overrides"] == {
        "cache": "last",
        "exit": "state:1e+09:2",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draft=1:2"], "draft=1:2: none of the tasks generates; say some by --tasks"),
        (["--exit=cdf:0.5"], "asks a gate; the model has none"),
        (["--step=7"], "has no checkpoint of step 7; it has 8, 12"),
        (["--tasks=addition"], "addition has another vocabulary than group_z7_n4"),
        (["--loops=2,3000000000"], "loops=3000000000 is more than 1,000,000; say fewer"),
        (["--loops=2", "--exit=kl:0.1:3"], "exit=kl:0.1:3 is for at least 3 loops; there are 2"),
        (["--loops=2,x"], "--loops=x is not a loop count"),
        (["--config.train.stepz=1"], "did you mean 'train.steps'"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], message: str, variants_run: pathlib.Path, fails_in_one_line: Callable
) -> None:
    workdir = f"--workdir={variants_run / 'looped'}"
    assert message in fails_in_one_line("looped_jax.evaluate", workdir, *arguments)


def test_loops_of_a_plan_without_loops_are_refused(
    variants_run: pathlib.Path, fails_in_one_line: Callable
) -> None:
    line = fails_in_one_line(
        "looped_jax.evaluate", f"--workdir={variants_run / 'base'}", "--loops=2"
    )
    assert "plan 1x1 has no looped segment" in line


def test_a_folder_without_a_run_is_refused(
    tmp_path: pathlib.Path, fails_in_one_line: Callable
) -> None:
    line = fails_in_one_line("looped_jax.evaluate", f"--workdir={tmp_path}")
    assert "holds no run with a checkpoint" in line


def test_downstream_tasks_are_evaluated_within_training_and_after_it(
    tmp_path: pathlib.Path, run_module: Callable, fails_in_one_line: Callable
) -> None:
    write_pile(tmp_path / "pile")
    write_language_model(
        tmp_path / "lm.py",
        data__length=96,
        train__steps=4,
        eval__every=2,
        eval__examples=4,
        eval__tasks=("text", "svamp"),
    )
    (tmp_path / "evals").mkdir()
    records = [
        {"id": f"{s}{i}", "question": f"{i}?", "answers": [str(i)], "split": s}
        for s in ("fewshot", "eval")
        for i in range(8)
    ]
    content = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "evals" / "svamp.jsonl").write_text(content)
    workdir = f"--workdir={tmp_path / 'run'}"
    data = f"--config.eval.data_dir={tmp_path / 'evals'}"
    train = (f"--config={tmp_path / 'lm.py'}", f"--config.data.path={tmp_path / 'pile'}")
    line = fails_in_one_line("looped_jax.main", *train, workdir)
    assert "task svamp: its files are needed: set --config.eval.data_dir" in line
    assert "get SVAMP.json" in line
    assert not (tmp_path / "run").exists()
    done = run_module("looped_jax.main", *train, workdir, data)
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [x for x in metrics if "eval/svamp/accuracy" in x]
    assert [x["step"] for x in evaluated] == [2, 4]
    assert all("eval/text/bits_per_byte" in x for x in evaluated)

    text = []
    for cache in ((), ("--cache=last",)):
        done = run_module("looped_jax.evaluate", workdir, "--tasks=text", "--loops=3", *cache)
        assert done.returncode == 0, done.stderr
        text.append(json.loads(done.stdout))
    assert text[1].pop("cache") == "last" and text[1].keys() == text[0].keys()
    assert text[1]["eval/text/loss"] != pytest.approx(text[0]["eval/text/loss"], rel=1e-6)
    assert text[1]["eval/text/loss"] == pytest.approx(text[0]["eval/text/loss"], rel=0.2)

    tasks = "--tasks=svamp,varassign_depth0_math"
    done = run_module("looped_jax.evaluate", workdir, tasks, "--limit=4", "--loops=3", data)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"eval/svamp/accuracy", "eval/varassign_depth0_math/accuracy"} < set(found)
    assert "95% interval" in done.stderr
    folder = tmp_path / "run" / "evaluations" / "step4_default_loops3_limit4"
    assert len((folder / "svamp.jsonl").read_text().splitlines()) == 4
    drafts = ("--tasks=svamp", "--limit=4", "--loops=3", "--draft=1:3", data)
    done = run_module("looped_jax.evaluate", workdir, *drafts)
    assert done.returncode == 0, done.stderr
    drafted = json.loads(done.stdout)
    assert drafted["draft"] == "1:3" and 0 <= drafted["eval/svamp/accepted"] <= 1
    assert 1 <= drafted["eval/svamp/tokens_per_pass"] <= 4
    predictions = [
        [json.loads(line)["prediction"] for line in (of / "svamp.jsonl").read_text().splitlines()]
        for of in (folder, folder.with_name(folder.name + "_draft-1-3"))
    ]
    assert predictions[0] == predictions[1]
    line = fails_in_one_line("looped_jax.evaluate", workdir, "--tasks=swamp", data)
    assert "did you mean 'svamp'" in line

    # The very prompts, for a model that is run elsewhere.
    done = run_module(
        "looped_jax.evaluate", workdir, "--tasks=svamp", "--limit=4", "--prompts", data
    )
    assert done.returncode == 0, done.stderr
    asked = [json.loads(line) for line in done.stdout.splitlines()]
    kept = [json.loads(line) for line in (folder / "svamp.jsonl").read_text().splitlines()]
    assert [(p["task"], p["id"], p["answers"], p["stop"]) for p in asked] == [
        ("svamp", line["id"], line["answers"], ["\n"]) for line in kept
    ]
    hashes = [sha256(p["prompt"].encode()).hexdigest()[:12] for p in asked]
    assert hashes == [line["prompt_hash"] for line in kept]
    line = fails_in_one_line("looped_jax.evaluate", workdir, "--tasks=text", "--prompts")
    assert "--prompts: none of the tasks has prompts; say some by --tasks" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hf=DIR", "--workdir=runs/x"], "--workdir does not go with --hf"),
        (["--hf=DIR", "--loops=2"], "--loops does not go with --hf"),
        (["--workdir=runs/x", "--out=y"], "--out does not go without --hf"),
        (["--hf=DIR"], "say --tasks=paper, groups or names of downstream tasks"),
        (["--hf=DIR", "--tasks=text,svamp"], "--tasks=text: held-out rows are tokens of a run's"),
        (["--hf=DIR", "--tasks=svamp"], "say --out=DIR: predictions do not go into the model's"),
        (["--hf=DIR", "--tasks=svamp", "--config.model.plan=2x1"], "--config.model.plan is of a"),
        (["--hf=DIR", "--tasks=svamp", "--prompts"], "holds no model of transformers: there is no"),
    ],
)
def test_what_does_not_go_with_another_projects_model_gets_one_line(
    arguments: list[str], message: str, tmp_path: pathlib.Path, fails_in_one_line: Callable
) -> None:
    asked = [argument.replace("DIR", str(tmp_path)) for argument in arguments]
    assert message in fails_in_one_line("looped_jax.evaluate", *asked)
    assert list(tmp_path.iterdir()) == []
