"""The adapter to the lm-evaluation-harness, through that package's own API."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from helpers import write_language_model, write_pile

from looped_jax.errors import UserError

lm_eval = pytest.importorskip(
    "lm_eval", reason="the extra lm-eval is not installed: pip install -e '.[lm-eval]'"
)


class Request:
    def __init__(self, *args: Any):
        self.args = args


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lm")
    write_pile(folder / "pile")
    write_language_model(
        folder / "run.py", data__length=48, train__steps=20, eval__every=20, eval__examples=8
    )
    command = [
        *(sys.executable, "-m", "looped_jax.main", f"--config={folder / 'run.py'}"),
        *(f"--config.data.path={folder / 'pile'}", f"--workdir={folder / 'run'}"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return str(folder / "run")


@pytest.fixture(scope="module")
def model(workdir: str) -> Any:
    from looped_jax.interop.lm_eval_model import LoopedJax

    return LoopedJax(workdir, batch_size=4)


def test_a_local_task_runs_through_the_harness(model: Any, tmp_path: pathlib.Path) -> None:
    questions = [{"question": f"{i} is", "answer": "loop"} for i in range(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    common = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "data.jsonl"}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
"""
    (tmp_path / "pick.yaml").write_text(
        "task: local_pick\noutput_type: multiple_choice\ndoc_to_choice: [loop, layer]\n"
        + common.replace('doc_to_target: "{{answer}}"', "doc_to_target: 0")
        + "metric_list: [{metric: acc}]\n"
    )
    (tmp_path / "say.yaml").write_text(
        "task: local_say\noutput_type: generate_until\n"
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 8}\n'
        + common
        + "metric_list: [{metric: exact_match}]\n"
    )
    (tmp_path / "roll.yaml").write_text(
        "task: local_roll\noutput_type: loglikelihood_rolling\n"
        + common.replace('doc_to_target: "{{answer}}"', 'doc_to_target: "{{question}}"')
        + "metric_list: [{metric: bits_per_byte}]\n"
    )
    from lm_eval.tasks import TaskManager

    names = ["local_pick", "local_say", "local_roll"]
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=names, task_manager=manager, bootstrap_iters=0
    )["results"]
    pairs = [
        Request(q["question"], f" {choice}") for q in questions for choice in ("loop", "layer")
    ]
    scores = np.array([score for score, _ in model.loglikelihood(pairs)]).reshape(-1, 2)
    assert found["local_pick"]["acc,none"] == pytest.approx(np.mean(scores.argmax(1) == 0))
    rolled = model.loglikelihood_rolling([Request(q["question"]) for q in questions])
    size = sum(len(q["question"].encode()) for q in questions)
    expected = -sum(rolled) / size / np.log(2)
    assert found["local_roll"]["bits_per_byte,none"] == pytest.approx(expected)
    assert 0 <= found["local_say"]["exact_match,none"] <= 1


def test_log_likelihoods_add_up(model: Any) -> None:
    text = "und der loop "
    whole = model.loglikelihood_rolling([Request(text)])[0]
    (first, _), (second, _) = model.loglikelihood(
        [Request("", "und der"), Request("und der", " loop ")]
    )
    assert whole == pytest.approx(first + second, rel=1e-4)


def test_a_choice_that_merges_with_its_context_is_scored_by_itself(model: Any) -> None:
    choices = [Request("der l", text) for text in ("oop", "ayer")]
    assert all(score < -0.1 for score, _ in model.loglikelihood(choices))


def test_long_texts_are_scored_whole_and_long_contexts_lose_their_beginning(model: Any) -> None:
    long = "x" * 200
    windows = model.loglikelihood_rolling([Request(long)])[0]
    assert windows < model.loglikelihood_rolling([Request(long[:48])])[0] < 0
    (cut, _), (short, _) = model.loglikelihood([Request(long, "y"), Request(long[:60], "y")])
    assert cut == pytest.approx(short, rel=1e-4)
    (text,) = model.generate_until([Request(long, {"until": ["\n"], "max_gen_toks": 4})])
    assert len(text.encode(errors="replace")) <= 3 * 4
    # As many new tokens as the model reads, or more: the harness's own default is 256.
    for count in (48, 256):
        model.generate_until([Request(long, {"until": ["\n"], "max_gen_toks": count})])
    model.loglikelihood([Request("x", long)])


def test_generation_stops_before_the_stop_text(model: Any) -> None:
    settings = {"until": [], "max_gen_toks": 24}
    (free,) = model.generate_until([Request("loop", settings)])
    assert free
    stop = free[len(free) // 2]
    (stopped,) = model.generate_until([Request("loop", {**settings, "until": [stop]})])
    assert stopped == free[: free.index(stop)]


def test_caches_and_exits_are_the_harness_s_model_arguments(workdir: str, model: Any) -> None:
    from looped_jax.interop.lm_eval_model import LoopedJax

    first = LoopedJax(workdir, batch_size=4, loops=2, exit="state:1e9")
    after_one = LoopedJax(workdir, batch_size=4, loops=1)
    request = Request("und der", " loop ")
    found, expected = (m.loglikelihood([request])[0] for m in (first, after_one))
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[0] != pytest.approx(model.loglikelihood([request])[0][0], rel=1e-4)
    # With a cache that loops share, scores are those of decoding with it (test_forced.py).
    shared, exact = (
        LoopedJax(workdir, batch_size=4, loops=2, cache=cache).loglikelihood([request])[0][0]
        for cache in ("last", "per_loop")
    )
    assert shared != pytest.approx(exact, rel=1e-4)
    says = Request("loop", {"until": [], "max_gen_toks": 12})
    drafting = LoopedJax(workdir, batch_size=4, draft="1:3")
    assert drafting.generate_until([says]) == model.generate_until([says])
    assert drafting.generator.usage.of_draft
    with pytest.raises(UserError, match="asks a gate"):
        LoopedJax(workdir, exit="cdf:0.5")
