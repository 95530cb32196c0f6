"""Preparing text: what goes in comes out, shuffled, whole or not at all, the same every time."""

import itertools
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from etils import epath
from helpers import small_config, write_pile

from looped_jax.data import preparation
from looped_jax.data.documents import Shards, parse
from looped_jax.data.packing import segments_of
from looped_jax.data.pipeline import Sample
from looped_jax.data.rows import BOS, EOS
from looped_jax.data.run_data import resolve
from looped_jax.data.vocabulary import Bytes
from looped_jax.errors import RunError, UserError

LENGTH = 32
EXPERIMENT = """
from looped_jax.config import default_config

def get_config():
    config = default_config()
    config.data.update(task="text", length=32, test_files="test.jsonl.zst")
    config.prepare.update(block_kb=1, shards=3, workers=2)
    return config
"""


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pile")
    write_pile(folder)
    return folder


def config(path: pathlib.Path, **overrides: Any) -> Any:
    defaults = dict(
        data__task="text",
        data__length=LENGTH,
        data__path=str(path),
        prepare__block_kb=1,
        prepare__shards=3,
        prepare__workers=1,
    )
    return small_config(**{**defaults, **overrides})


def prepare(pile: pathlib.Path, output: pathlib.Path, **overrides: Any) -> Any:
    return preparation.prepare(config(pile, **overrides), epath.Path(output))


@pytest.fixture(scope="module")
def prepared(pile: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("prepared") / "out"
    prepare(pile, output, data__test_files="test.jsonl.zst")
    return output


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def stored(folder: pathlib.Path, split: str = "train") -> list[bytes]:
    source = resolve(config(folder)).source(split)
    return list(source.records.__getitems__(range(source.num_rows)))


def documents(pile: pathlib.Path, pattern: str) -> list:
    shards = Shards.find(str(pile), pattern)
    return [document for block in shards.blocks(1 << 20) for document in parse(block)]


def test_every_token_of_every_document_is_in_exactly_one_row(
    pile: pathlib.Path, prepared: pathlib.Path
) -> None:
    source = resolve(config(prepared)).source("train")
    rows = source.rows(np.arange(source.num_rows))
    pairs = Counter()
    for tokens, targets, segments in zip(
        rows["tokens"], rows["targets"], rows["segment_ids"], strict=True
    ):
        pairs.update(zip(tokens[segments > 0], targets[segments > 0], strict=True))
    expected = Counter()
    for document in documents(pile, "train-*.jsonl.zst"):
        tokens = [BOS, *Bytes().encode(document.text), EOS]
        expected.update(itertools.pairwise(tokens))
    assert pairs == expected


def test_shuffled_rows_know_the_documents_and_components_of_their_tokens(
    pile: pathlib.Path, prepared: pathlib.Path
) -> None:
    source = resolve(config(prepared)).source("validation")
    sample = Sample.of(source, 10_000)
    rows = sample.rows(np.arange(len(sample.order)))
    real = rows["segment_ids"] > 0
    tokens = np.bincount(rows["document"][real])
    names = [source.components[i] for i in sample.component_of_document]
    own = documents(pile, "val.jsonl.zst")
    expected = [(d.component, len(d.text.encode()) + 1) for d in own]
    assert sorted(zip(names, tokens.tolist(), strict=True)) == sorted(expected)
    np.testing.assert_array_equal(
        sample.component_of_document[rows["document"][real]], rows["group"][real]
    )
    # Also where a document goes on in another row, and these are apart.
    pieces = {d: set(np.flatnonzero((rows["document"] == d).any(1))) for d in range(len(own))}
    assert any(max(p) - min(p) >= len(p) > 1 for p in pieces.values())


def test_the_manifest_counts_what_went_in_and_what_came_out(
    pile: pathlib.Path, prepared: pathlib.Path
) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert set(manifest["splits"]) == {"train", "validation", "test"}
    train = manifest["splits"]["train"]
    own = documents(pile, "train-*.jsonl.zst")
    for name, counts in train["components"].items():
        texts = [d.text.encode() for d in own if d.component == name]
        assert counts["documents"] == counts["copies"] == len(texts)
        assert counts["text_bytes"] == counts["text_tokens"] == sum(map(len, texts))
        assert counts["tokens"] == sum(len(text) + 1 for text in texts)
    rows = stored(prepared)
    assert train["rows"] == len(rows) == sum(shard["rows"] for shard in train["shards"])
    tokens = sum(sum(segment.runs) for row in rows for segment in segments_of(row))
    assert train["tokens"] == tokens
    assert train["padding"] == len(rows) * LENGTH - tokens
    sources = manifest["recipe"]["splits"]["train"]["sources"]
    assert [s["file"] for s in sources] == ["train-00000.jsonl.zst", "train-00001.jsonl.zst"]
    assert sorted(p.name for p in prepared.iterdir()) == [
        "bytes_of_id.npy",
        "manifest.json",
        "test-00000-of-00001.array_record",
        *(f"train-{i:05}-of-00003.array_record" for i in range(3)),
        "validation-00000-of-00001.array_record",
    ]


def test_the_result_does_not_depend_on_the_number_of_processes(
    pile: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    prepare(pile, tmp_path / "out", prepare__workers=3, data__test_files="test.jsonl.zst")
    assert files(tmp_path / "out") == files(prepared)


def test_another_seed_gives_the_same_rows_in_another_order(
    pile: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    prepare(pile, tmp_path / "out", prepare__seed=1)
    here, there = stored(tmp_path / "out"), stored(prepared)
    assert sorted(here) == sorted(there)
    assert here != there


def test_rows_are_shuffled_across_all_sources(
    pile: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The place of a row says nothing of its file: both halves hold some half of each."""
    from_first = set()
    for path in Shards.find(str(pile), "train-00000*").paths:
        only = tmp_path / "only"
        only.mkdir()
        (only / path.name).write_bytes(path.read_bytes())
        prepare(only, tmp_path / "out", data__validation_files="")
        from_first = set(stored(tmp_path / "out"))
    places = [row in from_first for row in stored(prepared)]
    half = len(places) // 2
    for part in (places[:half], places[half:]):
        assert 0.3 < np.mean(part) < 0.7


def test_weights_copy_and_leave_out_documents_of_the_training_split(
    pile: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    weights = (("ArXiv", 2.0), ("Github", 0.0), ("PG-19", 0.5))
    prepare(pile, tmp_path / "out", prepare__weights=weights)
    splits = json.loads((tmp_path / "out" / "manifest.json").read_text())["splits"]
    plain = json.loads((prepared / "manifest.json").read_text())["splits"]
    counts, before = splits["train"]["components"], plain["train"]["components"]
    assert counts["ArXiv"]["tokens"] == 2 * before["ArXiv"]["tokens"]
    assert counts["Github"]["tokens"] == 0
    assert counts["Github"]["documents"] == before["Github"]["documents"]
    share = counts["PG-19"]["copies"] / before["PG-19"]["documents"]
    assert 0.25 < share < 0.75
    assert splits["validation"] == plain["validation"]
    with pytest.raises(UserError, match="no document is left"):
        none = tuple((name, 0.0) for name in before)
        prepare(pile, tmp_path / "none", prepare__weights=none)


def test_a_long_document_continues_from_row_to_row(tmp_path: pathlib.Path) -> None:
    text = "0123456789" * 200_000
    (tmp_path / "train-0.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (tmp_path / "val.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    own = dict(data__train_files="train-*.jsonl", data__validation_files="val.jsonl")
    manifest = prepare(tmp_path, tmp_path / "out", **own)
    assert manifest.splits["train"]["tokens"] == len(text) + 1
    assert manifest.splits["train"]["rows"] == -(-(len(text) + 1) // LENGTH)


def run(
    pile: pathlib.Path, output: pathlib.Path, *more: str, **kwargs: Any
) -> "subprocess.Popen[str]":
    experiment = output.parent / f"{output.name}.py"
    experiment.write_text(EXPERIMENT)
    command = [
        *(sys.executable, "-m", "looped_jax.prepare", f"--config={experiment}"),
        *(f"--config.data.path={pile}", f"--output={output}", *more),
    ]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes, **kwargs)


def finish(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return out, errors.strip().splitlines()[-1] if errors.strip() else ""


def test_a_killed_preparation_ends_with_the_same_bytes(
    pile: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out"
    for blocks in (1, 4):
        process = run(pile, output)
        work = output / "work" / "train"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(list(work.glob("*.json"))) < blocks:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (output / "manifest.json").exists()
    # Half-written files, as a kill leaves them, are written anew.
    (output / "work" / "train" / "000009.rows").write_bytes(b"half")
    (output / "train-00000-of-00003.array_record").write_bytes(b"half")
    out, _ = finish(run(pile, output))
    assert "train" in out and "ArXiv" in out
    assert files(output) == files(prepared)


def test_workers_end_when_their_parent_is_killed(
    pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    process = run(pile, tmp_path / "out")
    while process.poll() is None and not list((tmp_path / "out").rglob("*.rows")):
        time.sleep(0.002)
    process.kill()
    process.communicate()

    def alive() -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    deadline = time.monotonic() + 30
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive()


def test_a_finished_preparation_is_left_alone(pile: pathlib.Path, prepared: pathlib.Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in prepared.iterdir()}
    manifest = prepare(pile, prepared, data__test_files="test.jsonl.zst", prepare__workers=2)
    assert manifest.splits["train"]["rows"] == len(stored(prepared))
    assert {p: p.stat().st_mtime_ns for p in prepared.iterdir()} == before


def test_another_preparation_is_never_mixed_in(
    pile: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    before = files(prepared)
    test = dict(data__test_files="test.jsonl.zst")
    with pytest.raises(UserError, match="length: 16 now, 32 there"):
        prepare(pile, prepared, data__length=16, **test)
    with pytest.raises(UserError, match="seed: 5 now, 0 there"):
        prepare(pile, prepared, prepare__seed=5, **test)
    with pytest.raises(UserError, match=r"vocabulary.name: 'pile_mini_32k' now, 'bytes' there"):
        prepare(pile, prepared, data__vocabulary="pile_mini_32k", **test)
    other = tmp_path / "other"
    write_pile(other)
    write_pile(tmp_path / "new", seed=1)
    changed = (tmp_path / "new" / "train-00001.jsonl.zst").read_bytes()
    (other / "train-00001.jsonl.zst").write_bytes(changed)
    with pytest.raises(UserError, match=r"sources train-00001.jsonl.zst"):
        prepare(other, prepared, **test)
    assert files(prepared) == before
    with pytest.raises(UserError, match="is not prepared data"):
        prepare(pile, pile)


def test_a_bad_record_is_named_and_nothing_passes_for_whole(
    pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    bad = tmp_path / "bad"
    write_pile(bad)
    (bad / "train-00002.jsonl").write_text('{"text": "good"}\n{"body": "bad"}\n')
    more = "--config.data.train_files=train-*.jsonl*"
    _, line = finish(run(bad, tmp_path / "out", more), code=2)
    assert 'train-00002.jsonl, line 2: no "text" field with a string' in line
    assert not list((tmp_path / "out").glob("*.array_record"))
    with pytest.raises(UserError):
        resolve(config(tmp_path / "out")).check()
    # With the shard mended the same command goes through.
    (bad / "train-00002.jsonl").write_text('{"text": "good"}\n')
    finish(run(bad, tmp_path / "out", more))
    finish(run(bad, tmp_path / "anew", more))
    assert files(tmp_path / "out") == files(tmp_path / "anew")


def test_a_shard_is_never_in_two_splits_nor_twice_in_one(
    pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    own = dict(data__train_files="*.jsonl.zst", data__validation_files="val.jsonl.zst")
    with pytest.raises(UserError, match=r"val\.jsonl\.zst is in both train and validation"):
        prepare(pile, tmp_path / "out", **own)
    # Raw shards are read by a run without being prepared.
    with pytest.raises(UserError, match=r"val\.jsonl\.zst is in both train and validation"):
        resolve(config(pile, **own)).check()
    twice = tmp_path / "twice"
    write_pile(twice)
    (twice / "train-00009.jsonl.zst").write_bytes((twice / "train-00000.jsonl.zst").read_bytes())
    (twice / "held_out.jsonl.zst").write_bytes((twice / "train-00001.jsonl.zst").read_bytes())
    same = "train-00000.jsonl.zst of train and train-00009.jsonl.zst of train have the same content"
    leak = "train-00001.jsonl.zst of train and held_out.jsonl.zst of validation have the same"
    with pytest.raises(UserError, match=same):
        prepare(twice, tmp_path / "out")
    with pytest.raises(UserError, match=same):
        resolve(config(twice)).check()
    (twice / "train-00009.jsonl.zst").unlink()
    for name in ("a", "b"):  # Files of one name in two folders, too.
        (twice / name).mkdir()
        (twice / name / "part.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match=r"part\.jsonl of train and part\.jsonl of train have"):
        resolve(config(twice, data__train_files="*/part.jsonl")).check()
    with pytest.raises(UserError, match=leak):
        prepare(twice, tmp_path / "out", data__validation_files="held_out.jsonl.zst")
    assert not (tmp_path / "out").exists()


def test_weights_of_no_component_are_refused_and_nothing_is_left(
    pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=r"component 'Arxiv'; did you mean 'ArXiv'\?"):
        prepare(pile, tmp_path / "out", prepare__weights=(("Arxiv", 2.0),))
    assert not (tmp_path / "out").exists()
    prepare(pile, tmp_path / "out", prepare__weights=(("ArXiv", 2.0),))


def test_weights_that_a_run_cannot_heed_are_refused(
    pile: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    weights = (("ArXiv", 2.0),)
    with pytest.raises(UserError, match=r"weights.* has no effect on .* is not prepared"):
        resolve(config(pile, prepare__weights=weights)).check()
    with pytest.raises(UserError, match=r"weights.* has no effect on .* was prepared with none"):
        resolve(config(prepared, prepare__weights=weights)).check()
    prepare(pile, tmp_path / "out", prepare__weights=weights)
    resolve(config(tmp_path / "out", prepare__weights=weights)).check()
    resolve(config(tmp_path / "out")).check()


def test_a_full_disk_ends_in_one_line_and_the_same_command_finishes(
    pile: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def no_room() -> None:  # A write beyond this size fails, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    output = tmp_path / "out"
    _, line = finish(run(pile, output, preexec_fn=no_room), code=1)
    assert "cannot write in" in line and "start the same command again" in line
    assert not (output / "manifest.json").exists()
    finish(run(pile, output))
    assert files(output) == files(prepared)


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_lost_shards_of_a_finished_preparation_are_made_again_by_the_same_command(
    pile: pathlib.Path,
    prepared: pathlib.Path,
    tmp_path: pathlib.Path,
    how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    shutil.copytree(prepared, output)
    shard = next(output.glob("train-*.array_record"))
    content = shard.read_bytes()
    shard.unlink()
    if how == "cut":
        shard.write_bytes(content[:-1])
    prepare(pile, output, data__test_files="test.jsonl.zst")
    assert f"1 of its shards ({shard.name}) are not there" in capsys.readouterr().err
    assert files(output) == files(prepared)


def test_what_a_kill_at_the_very_end_leaves_is_removed_by_the_same_command(
    pile: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(prepared, output)
    (output / "work" / "train").mkdir(parents=True)
    (output / "manifest.partial.json").write_text("{}")
    prepare(pile, output, data__test_files="test.jsonl.zst")
    assert files(output) == files(prepared)


def test_workers_that_cannot_be_started_are_one_line(
    pile: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", no_room)
    with pytest.raises(RunError, match=r"cannot be started \(No space left .* /dev/shm"):
        prepare(pile, tmp_path / "out")


def test_bad_flags_get_one_line(
    fails_in_one_line: Any, pile: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert "say --config=FILE and --output=DIR" in fails_in_one_line("looped_jax.prepare")
    arguments = ("--config=experiments/pile_12x2.py", f"--output={tmp_path / 'out'}")
    line = fails_in_one_line("looped_jax.prepare", *arguments, "--config.data.path=/nowhere")
    assert "/nowhere is not a folder" in line
    line = fails_in_one_line(
        "looped_jax.prepare", *arguments, "--config.prepare.weights=(('ArXiv',-1),)"
    )
    assert "is not (component, copies)" in line
    path = f"--config.data.path={pile}"
    line = fails_in_one_line("looped_jax.prepare", *arguments, path, "--config.data.length=0")
    assert "config.data.length must be set" in line
    assert not (tmp_path / "out").exists()
