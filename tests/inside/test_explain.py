"""The page that shows what happens inside: what it says, that it stands alone, what is refused."""

import json
import pathlib
import subprocess
import types
from collections.abc import Callable

import numpy as np
import pytest
from etils import epath
from helpers import small_config, small_model, write_language_model, write_pile

from looped_jax.inside.explanation import (
    explain,
    names,
    of_prompt,
    of_task,
    rules_for,
    write,
)
from looped_jax.inside.opened import Opened, load
from looped_jax.training.job import make_job
from looped_jax.training.trainer import train

Run = Callable[..., subprocess.CompletedProcess[str]]
Fails = Callable[..., str]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run") / "a <b> $c"
    config = small_config(model__plan="1x1,1x3", train__steps=2, loop__gate="linear", mesh__data=1)
    train(make_job(config), epath.Path(folder))
    return folder


@pytest.fixture(scope="module")
def opened(workdir: pathlib.Path) -> Opened:
    return load(workdir)


def test_the_page_says_what_the_model_would_say(opened: Opened) -> None:
    asked = of_task(opened, "group_z7_n4", 3)
    # The answer of composition is the running product.
    numbers = [int(word) for word in opened.vocabulary.decode(asked.tokens).split()]
    assert asked.targets[:-1] == [-1] * 4
    assert opened.vocabulary.decode(asked.targets[-1:]) == str(sum(numbers) % 7)
    document, data = explain(opened, asked)
    logits = opened.logits([asked.tokens])[0]
    assert data["lens"]["top"][-1] == np.argsort(-logits, axis=-1)[:, :5].tolist()
    assert len(data["lens"]["kl"]) == 3 and len(data["lens_more"]["kl"]) == 6
    assert data["lens"]["update"][0] == [None] * 5
    assert set(data["exits"]) == {"state:0.03", "kl:0.0005", "cdf:0.5", "cdf:0.9"}
    grid = document.sections[1].parts[0]
    said = names(opened.vocabulary, logits.argmax(-1).tolist())
    assert [cells[2].text for _, cells in grid.rows] == said


def test_the_page_stands_alone_and_names_are_shown_as_they_are(
    opened: Opened, tmp_path: pathlib.Path
) -> None:
    write(*explain(opened, of_prompt(opened, "3 1 2 5")), epath.Path(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert "a &lt;b&gt; $c" in page and "<b>" not in page
    for outside in ("http:", "https:", "<script", 'src="/', "url("):
        assert outside not in page
    there = {path.name for path in tmp_path.iterdir()}
    assert there >= {"data.json", "lens.png", "states.png", "attention.png", "means.csv"}
    assert json.loads((tmp_path / "data.json").read_text())["targets"][-1] == -1


def test_tokens_are_called_as_their_own_vocabulary_has_them() -> None:
    words = types.SimpleNamespace(bos=4, eos=5, decode=lambda ids: "abcd\ne"[ids[0]])
    assert names(words, [1, 2, 4, 5]) == ["b", "c", "<bos>", "<eos>"]  # 1 and 2 are words.


@pytest.mark.parametrize("options", [{"gate": "act"}, {"routing": "expert_choice"}], ids=str)
def test_models_whose_tokens_stop_by_themselves_have_no_exit_rules(options: dict[str, str]) -> None:
    model = small_model("1x3", loop=tuple(options.items()))
    assert rules_for(types.SimpleNamespace(model=model)) == []


def test_an_intervention_changes_the_page(opened: Opened) -> None:
    asked = of_task(opened, "group_z7_n4", 0)
    _, whole = explain(opened, asked)
    _, skipped = explain(opened.intervened("skip:2"), asked)
    assert skipped["lens"]["norm"][1] == skipped["lens"]["norm"][0] != whole["lens"]["norm"][1]
    assert skipped["lens"]["kl"][1] == skipped["lens"]["kl"][0]


def test_a_text_is_explained_by_the_command(run_module: Run, tmp_path: pathlib.Path) -> None:
    write_pile(tmp_path / "pile")
    values = dict(data__path=str(tmp_path / "pile"), data__length=32, train__steps=1)
    write_language_model(tmp_path / "lm.py", **values, eval__examples=4)
    made = (f"--config={tmp_path / 'lm.py'}", f"--workdir={tmp_path / 'run'}")
    assert run_module("looped_jax.main", *made).returncode == 0
    asked = (f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'page'}")
    done = run_module("looped_jax.explain", *asked, "--prompt=<i>loop</i>\nund", "--loops=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'page' / 'index.html'}\n"
    page = (tmp_path / "page" / "index.html").read_text()
    assert "&lt;i&gt;loop" in page and "<i>" not in page and "shown at 3." in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say --prompt=TEXT, or --task=NAME"),
        (("--prompt=",), "an empty prompt has nothing to explain"),
        (("--prompt=3 x",), "'x' is not in this task's vocabulary"),
        (("--prompt=" + "3 " * 50,), "prompt 0 has 51 tokens; this model reads 1 to"),
        (("--task=phop_p4_n16",), "another vocabulary"),
        (("--prompt=3", "--intervene=skip:7"), "skip:7: the model goes through 3 loops"),
    ],
)
def test_bad_input_is_one_line(
    fails_in_one_line: Fails,
    workdir: pathlib.Path,
    tmp_path: pathlib.Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    given = (f"--workdir={workdir}", f"--out={tmp_path / 'page'}", *arguments)
    assert message in fails_in_one_line("looped_jax.explain", *given)
    assert not list(tmp_path.iterdir())
