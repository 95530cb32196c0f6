"""The runner: real generation by a small model, predictions on disk, summaries."""

import json
import pathlib
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from etils import epath
from helpers import init, small_config, small_model

from looped_jax.data.tasks.downstream import TASKS, group_members
from looped_jax.data.vocabulary import Bytes
from looped_jax.evaluation import downstream
from looped_jax.evaluation.downstream import Settings, ask, evaluate_tasks
from looped_jax.evaluation.metric_table import Metric
from looped_jax.inference.generator import Generator
from looped_jax.parallel.mesh import make_mesh

LENGTH = 96


@pytest.fixture(scope="module")
def generator() -> Generator:
    model = small_model("1x2", vocab_size=264, max_length=LENGTH)
    config = small_config(mesh__data=1)
    return Generator(model, init(model), make_mesh(config), config.mesh.rules, batch_size=4)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("evals")
    records = [
        {
            "id": f"{split}{i}",
            "question": f"{i} and {i}?",
            "answers": [str(2 * i)],
            "split": split,
        }
        for split in ("fewshot", "eval")
        for i in range(10)
    ]
    (folder / "svamp.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    turns = [
        {
            "id": f"d{d}_{t}",
            "dialogue_id": f"d{d}",
            "question": f"{t}?",
            "context": "word " * 40,
            "answers": ["x"],
            "split": "eval",
        }
        for d in range(4)
        for t in range(3)
    ]
    (folder / "quac.jsonl").write_text("".join(json.dumps(r) + "\n" for r in turns))
    return folder


def run(
    generator: Generator,
    data_dir: pathlib.Path,
    folder: pathlib.Path,
    names: tuple[str, ...] = ("svamp",),
    model: str = "",
    **settings: Any,
) -> Any:
    own = Settings(str(data_dir), **settings)
    return evaluate_tasks(
        *(names, own, generator, Bytes(), epath.Path(folder)),
        show_progress=False,
        model={"identity": model},
    )


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predictions_and_summary_are_written(
    generator: Generator, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    summary = run(generator, data_dir, tmp_path / "out")["tasks"]["svamp"]
    records = lines(tmp_path / "out" / "svamp.jsonl")
    assert [r["id"] for r in records] == [f"eval{i}" for i in range(10)]
    for record in records:
        assert set(record["scores"]) == {"accuracy"}
        assert "\n" not in record["prediction"]
        assert len(record["prompt_hash"]) == 12
    right = np.mean([record["scores"]["accuracy"] for record in records])
    assert summary["metrics"]["accuracy"] == pytest.approx(100 * right)
    assert summary["examples"] == 10
    assert len(summary["exemplars"]) == 5
    # Both splits are in one file here; what it held can be told.
    content = (data_dir / "svamp.jsonl").read_bytes()
    source = {"file": "svamp.jsonl", "bytes": len(content), "sha256": sha256(content).hexdigest()}
    assert summary["sources"] == {"train": source, "validation": source}
    assert summary["counts"]["prompts_with_fewer_exemplars"] == 10  # 96 bytes are few.
    assert 0 < summary["prompt_padding"] < 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["tasks"]["svamp"]
    # looped_jax.score reads the file and agrees.
    from looped_jax.evaluation.metrics import metric_of
    from looped_jax.score import read_records

    scored, _ = read_records(epath.Path(tmp_path / "out" / "svamp.jsonl"))
    assert metric_of("svamp")(scored).totals == summary["metrics"]


def test_an_interrupted_run_goes_on_and_ends_the_same(
    generator: Generator,
    data_dir: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(generator, data_dir, tmp_path / "whole")
    run(generator, data_dir, tmp_path / "cut")
    path = tmp_path / "cut" / "svamp.jsonl"
    kept = path.read_text().splitlines(keepends=True)[:4]
    path.write_text("".join(kept) + '{"id": "eval4", "promp')  # As a kill leaves it.
    asked: list[int] = []
    complete = downstream.complete

    def counting(*arguments: Any, **kwargs: Any) -> list[str]:
        asked.append(len(arguments[2]))
        return complete(*arguments, **kwargs)

    monkeypatch.setattr(downstream, "complete", counting)
    run(generator, data_dir, tmp_path / "cut")
    assert sum(asked) == 6
    assert lines(path) == lines(tmp_path / "whole" / "svamp.jsonl")
    # Another way of asking is asked anew.
    run(generator, data_dir, tmp_path / "cut", shots=0)
    assert sum(asked) == 16


def test_whole_dialogues_are_chosen_and_long_contexts_cut(
    generator: Generator, data_dir: pathlib.Path
) -> None:
    settings = Settings(str(data_dir), limit=4)
    asked = ask(TASKS["quac"], settings, Bytes(), LENGTH)
    names = [e.fields["dialogue_id"] for e in asked.examples]
    assert len(names) == 6 and len(set(names)) == 2
    assert asked.examples == ask(TASKS["quac"], settings, Bytes(), LENGTH).examples
    assert all(prompt.context_cut and not prompt.too_long for prompt in asked.prompts)
    summary = downstream.run_task(asked, generator, Bytes(), show_progress=False)
    assert summary is not None
    assert summary["counts"]["prompts_with_cut_context"] == 6
    assert set(summary["metrics"]) == {"f1", "HEQ", "unfiltered_f1", "DHEQ"}


def test_what_does_not_fit_at_all_is_counted_and_not_asked(
    generator: Generator, data_dir: pathlib.Path
) -> None:
    asked = ask(TASKS["svamp"], Settings(str(data_dir)), Bytes(), 40)  # 32 of them to answer.
    assert all(prompt.too_long for prompt in asked.prompts)
    summary = downstream.run_task(asked, generator, Bytes(), show_progress=False)
    assert summary is not None
    assert summary["counts"]["prompts_too_long"] == 10
    assert summary["counts"]["missing_predictions"] == 10


def test_a_stop_is_heard_between_batches(generator: Generator, data_dir: pathlib.Path) -> None:
    asked = ask(TASKS["svamp"], Settings(str(data_dir)), Bytes(), LENGTH)
    calls = iter([False, True])
    stopped = downstream.run_task(
        asked, generator, Bytes(), stop=lambda: next(calls), show_progress=False
    )
    assert stopped is None


def test_predictions_of_another_model_are_never_taken_for_this_ones(
    generator: Generator, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first = run(generator, data_dir, tmp_path, ("svamp", "quac"), model="a", limit=3)
    assert set(first["tasks"]) == {"svamp", "quac"}
    path = tmp_path / "svamp.jsonl"
    made = lines(path)
    # As an earlier version wrote them, without a word of the model; and as another model's.
    for known in ({}, {"model": "b"}):
        others = [{k: v for k, v in r.items() if k != "model"} | known for r in made]
        path.write_text("".join(json.dumps({**r, "prediction": "?"}) + "\n" for r in others))
        run(generator, data_dir, tmp_path, model="a", limit=3)
        assert lines(path) == made
    # What the summary says of other tasks was of the other model.
    assert set(run(generator, data_dir, tmp_path, model="b", limit=3)["tasks"]) == {"svamp"}
    assert json.loads((tmp_path / "summary.json").read_text())["model"] == {"identity": "b"}
    assert {r["model"] for r in lines(path)} == {"b"}


def test_the_interval_of_a_conversation_task_is_over_dialogues(
    generator: Generator, data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    interval = downstream.mean_interval

    def recording(scores: Any, units: Any) -> Any:
        seen.append(list(units))
        return interval(scores, units)

    monkeypatch.setattr(downstream, "mean_interval", recording)
    asked = ask(TASKS["quac"], Settings(str(data_dir)), Bytes(), LENGTH)
    summary = downstream.run_task(asked, generator, Bytes(), show_progress=False)
    assert summary is not None and summary["metrics"]["f1"] == 0
    assert seen == [[f"d{d}" for d in range(4) for _ in range(3)]]
    # Wilson's for none of four: 1.96² / (4 + 1.96²).
    assert summary["interval_95"] == pytest.approx([0, 100 * 3.8415 / 7.8415], rel=1e-4)


def test_scalars_have_the_interval_that_a_comparison_needs() -> None:
    summary = {"headline": "exact", "metrics": {"exact": 25.0, "f1": 30.0}, "interval_95": [11, 47]}
    line = downstream.scalars("triviaqa", summary)
    assert line == pytest.approx(
        {
            "eval/triviaqa/exact": 0.25,
            "eval/triviaqa/f1": 0.3,
            "eval/triviaqa/exact_low": 0.11,
            "eval/triviaqa/exact_high": 0.47,
        }
    )
    assert Metric("eval/triviaqa/exact").noise(line, None) == pytest.approx((0.11, 0.47))
    few = downstream.scalars("triviaqa", summary | {"interval_95": None})
    assert set(few) == {"eval/triviaqa/exact", "eval/triviaqa/f1"}


def test_averages_are_of_complete_groups_and_the_papers_all_tasks() -> None:
    def summary(value: float) -> dict:
        return {"headline": "x", "metrics": {"x": value}}

    names = [name for group in downstream.GROUPS for name in group_members(group)]
    tasks = {name: summary(float(i)) for i, name in enumerate(names)}
    means = downstream.averages(tasks)
    assert means["closed_book_qa"] == pytest.approx(np.mean(range(4)))
    assert means["reasoning_primitives"] == pytest.approx(np.mean(range(15, 19)))
    assert means["all_tasks"] == pytest.approx(np.mean(range(15)))
    del tasks["svamp"]
    assert set(downstream.averages(tasks)) == {
        "closed_book_qa",
        "open_book_qa",
        "reasoning_primitives",
    }
