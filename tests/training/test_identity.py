"""A run knows what made it: code, numerics, data and vocabulary by content."""

import json
import pathlib
import re
import shutil
from typing import Any

import jax
import pytest
import zstandard
from etils import epath
from helpers import small_config, write_pile

from looped_jax.analysis import compare
from looped_jax.analysis.groups import task_groups
from looped_jax.analysis.records import find_runs
from looped_jax.config import ConfigDict, to_json
from looped_jax.data.pipeline import Sample
from looped_jax.data.run_data import resolve
from looped_jax.data.vocabulary import train_sentencepiece
from looped_jax.errors import UserError
from looped_jax.models.format import MODEL_FORMAT
from looped_jax.parallel.mesh import make_mesh
from looped_jax.training import identity
from looped_jax.training.job import make_job
from looped_jax.training.run import open_run
from looped_jax.training.trainer import train


def text_config(path: pathlib.Path, **more: Any) -> Any:
    return small_config(
        **dict(
            data__task="text",
            data__length=32,
            data__path=str(path),
            train__steps=4,
            checkpoint__every=2,
            eval__every=4,
            eval__examples=16,
        )
        | more
    )


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pile")
    write_pile(folder)
    return folder


@pytest.fixture(scope="module")
def run(pile: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("run") / "r"
    train(make_job(text_config(pile)), epath.Path(workdir))
    return workdir


def test_a_run_says_what_made_it(run: pathlib.Path) -> None:
    content = json.loads((run / "run.json").read_text())
    assert content["numerics_format"] == MODEL_FORMAT
    assert content["matmul_precision"] == "highest"
    assert re.fullmatch(r"[0-9a-f]{40}", content["code"]["commit"])
    assert content["code"]["changed"] in (True, False)
    assert content["versions"]["jax"] == jax.__version__
    assert content["devices"] == {"kind": "cpu", "count": 8, "processes": 1}
    assert content["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert content["held_out"]["text"]["rows"] == 16
    assert content["started"] <= content["ended"]
    assert (content["from_step"], content["to_step"], content["earlier"]) == (0, 4, [])


def test_each_start_of_a_run_is_kept(tmp_path: pathlib.Path) -> None:
    workdir = epath.Path(tmp_path / "r")
    workdir.mkdir()
    for steps in (2, 4):
        identity.RunFile(workdir, {"started": f"at {steps}", "ended": None}, steps - 2)
    content = identity.read_run_file(workdir)
    assert content is not None
    assert [content["started"], *(e["started"] for e in content["earlier"])] == ["at 4", "at 2"]
    assert all("earlier" not in entry for entry in content["earlier"])


def rewritten(shard: pathlib.Path, old: bytes, new: bytes) -> None:
    """Another text in a file of the same name."""
    text = zstandard.ZstdDecompressor().decompressobj().decompress(shard.read_bytes())
    shard.write_bytes(zstandard.ZstdCompressor().compress(text.replace(old, new)))


def test_a_start_on_other_data_is_refused_and_changes_nothing(
    pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "r"
    train(make_job(text_config(pile, train__steps=2)), epath.Path(workdir))
    before = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    write_pile(tmp_path / "other", seed=1)
    shutil.copytree(pile, tmp_path / "held out")
    shutil.copy(tmp_path / "other" / "val.jsonl.zst", tmp_path / "held out")
    for other, message in (
        ("other", "is not what this run was trained on"),
        ("held out", "text is not evaluated on what workdir .* was evaluated on"),
    ):
        with pytest.raises(UserError, match=message):
            train(make_job(text_config(tmp_path / other, train__steps=2)), epath.Path(workdir))
        after = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
        assert after == before
    # The same data elsewhere are the same data; a finished run keeps what is known of its making.
    shutil.copytree(pile, tmp_path / "moved")
    train(make_job(text_config(tmp_path / "moved", train__steps=2)), epath.Path(workdir))
    assert (workdir / "run.json").read_bytes() == before["run.json"]
    assert json.loads((workdir / "config.json").read_text())["data"]["path"].endswith("moved")


def pretend_run(workdir: pathlib.Path, config: ConfigDict) -> None:
    """What a run of this config leaves for a report, without training it."""
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(to_json(config))
    (workdir / "metrics.jsonl").write_text('{"step": 2, "eval/text/loss": 2.0}\n')
    held_out = Sample.of(resolve(config).source("validation"), config.eval.examples)
    data = resolve(config).source("train").fingerprint
    start = identity.describe(make_mesh(config), "float32", data, {"text": held_out.identity})
    identity.RunFile(epath.Path(workdir), start, 0)


def test_runs_are_of_the_same_data_by_content(pile: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Not by the path, under which there may be others by now."""
    place, elsewhere, runs = tmp_path / "pile", tmp_path / "moved", tmp_path / "runs"
    shutil.copytree(pile, place)
    for seed in (0, 1):
        pretend_run(runs / str(seed), text_config(place, seed=seed))
    place.rename(elsewhere)
    pretend_run(runs / "2", text_config(elsewhere, seed=2))
    rewritten(elsewhere / "train-00000.jsonl.zst", b"loop", b"pool")
    elsewhere.rename(place)
    pretend_run(runs / "3", text_config(place, seed=3))
    groups, left_out = task_groups(find_runs([str(runs)])[0])
    seeds = [[r.seed for model in group.models for r in model.records] for group in groups]
    assert seeds == [[0, 1, 2], [3]]
    assert not left_out
    assert len({group.title for group in groups}) == 2
    found = [
        compare.read_run(name, epath.Path(runs / name), text_config(place), 1, 1, "eval/text/loss")
        for name in "023"
    ]
    assert found[0].data == found[1].data != found[2].data


def test_raw_text_that_was_edited_in_place_is_refused(
    pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    write_pile(tmp_path / "pile")
    first = resolve(text_config(tmp_path / "pile")).source("train").fingerprint
    assert first == resolve(text_config(pile)).source("train").fingerprint  # Content, not place.
    workdir = epath.Path(tmp_path / "r")
    config = text_config(tmp_path / "pile", train__steps=2)
    train(make_job(config), workdir)
    shard = tmp_path / "pile" / "train-00000.jsonl.zst"
    rewritten(shard, b"loop", b"pool")
    assert resolve(config).source("train").fingerprint != first
    with pytest.raises(UserError, match="is not what this run was trained on"):
        train(make_job(config), workdir)


def test_a_vocabulary_that_was_replaced_is_refused(
    pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = ["loop layer und", "one two three four"]
    model = tmp_path / "own.model"
    model.write_bytes(train_sentencepiece((f"{words[i % 2]} {i}" for i in range(400)), 300))
    config = text_config(pile, data__vocabulary=str(model), train__steps=2)
    workdir = epath.Path(tmp_path / "r")
    train(make_job(config), workdir)
    assert open_run(str(workdir)).parameters()
    other = train_sentencepiece((f"{i} {words[i % 2][::-1]}" for i in range(400)), 300)
    model.write_bytes(other)
    for use in (
        lambda: open_run(str(workdir)).parameters(),
        lambda: train(make_job(config), workdir),
        lambda: train(
            make_job(
                text_config(
                    pile,
                    data__vocabulary=str(model),
                    train__start_from=str(workdir / "checkpoints" / "2"),
                )
            ),
            epath.Path(tmp_path / "next"),
        ),
    ):
        with pytest.raises(UserError, match="is not the one that the model was trained with"):
            use()


def test_fine_tuning_on_other_text_takes_the_parameters_and_begins_at_its_first_row(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    write_pile(tmp_path / "other", seed=1)
    origin = str(run / "checkpoints" / "4")
    config = text_config(tmp_path / "other", train__start_from=origin, train__steps=2)
    train(make_job(config), epath.Path(tmp_path / "r"))
    assert "with other data: step and rows count from 0" in capsys.readouterr().err
    assert open_run(str(tmp_path / "r")).meta["data"]["rows"] == 2 * 16


def test_a_run_opens_on_whatever_devices_are_here(
    pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = text_config(
        pile,
        mesh__data=2,
        mesh__fsdp=4,
        model__gather="segment",
        train__batch_size=24,
        train__grad_accumulation=3,
        train__steps=2,
    )
    train(make_job(config), epath.Path(tmp_path / "r"))
    path = tmp_path / "r" / "config.json"
    content = json.loads(path.read_text())
    content["mesh"].update(data=-1, fsdp=16)  # As on a slice of 16 chips or more.
    content["train"].update(batch_size=36)
    path.write_text(json.dumps(content))
    opened = open_run(str(tmp_path / "r"))
    assert dict(opened.job.mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert opened.job.config.eval.batch_size == 40
    assert opened.parameters()


def test_an_identity_tells_checkpoints_overrides_and_loops_apart(run: pathlib.Path) -> None:
    def known(step: int = 4, loops: int | None = None, **overrides: str) -> str:
        return open_run(
            str(run), step, {k.replace("__", "."): v for k, v in overrides.items()}
        ).identity(loops)

    same = known()
    assert known() == same
    assert known(eval__examples="5", eval__tasks="text", model__remat="layer") == same
    assert len({same, known(2), known(loops=3), known(model__dtype="bfloat16")}) == 4
    assert open_run(str(run), 4, {"eval.examples": "5"}).overridden == {"eval.examples": 5}
