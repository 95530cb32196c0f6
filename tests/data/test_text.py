"""Reading prepared text: the same rows everywhere; what is wrong is said before a run starts."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from etils import epath
from helpers import share, small_config, write_language_model, write_pile

from looped_jax.data import pipeline, preparation
from looped_jax.data.run_data import resolve
from looped_jax.errors import UserError


def config(path: pathlib.Path, **overrides: Any) -> Any:
    defaults = dict(data__task="text", data__length=32, data__path=str(path))
    return small_config(**{**defaults, "prepare__shards": 3, "train__batch_size": 8, **overrides})


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pile")
    write_pile(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(pile: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("prepared") / "out"
    preparation.prepare(config(pile), epath.Path(output))
    return output


def batches(config: Any, steps: list[int], local: Any = None) -> list[dict]:
    iterator = pipeline.train_batches(resolve(config), config, local)
    every = [next(iterator) for _ in range(max(steps) + 1)]
    return [every[step] for step in steps]


def assert_same(here: list[dict], there: list[dict]) -> None:
    for a, b in zip(here, there, strict=True):
        assert set(a) == set(b)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_batches_are_the_same_for_any_number_of_hosts_and_threads(
    prepared: pathlib.Path, processes: int, threads: int
) -> None:
    steps = [0, 1, 100]  # 100 is in the fourth epoch.
    whole = batches(config(prepared), steps)
    own = config(prepared, data__read_threads=threads)
    parts = [
        batches(own, steps, share(i, processes, own.train.batch_size)) for i in range(processes)
    ]
    joined = [
        {key: np.concatenate([part[step][key] for part in parts]) for key in whole[step]}
        for step in range(len(steps))
    ]
    assert_same(joined, whole)


def test_a_host_reads_only_its_part(prepared: pathlib.Path) -> None:
    own = config(prepared)
    source = resolve(own).source("train")
    asked: list[int] = []

    class Recording:
        def __len__(self) -> int:
            return source.num_rows

        def __getitems__(self, indices: list[int]) -> Any:
            asked.extend(indices)
            return source.records.__getitems__(indices)

    recording = dataclasses.replace(source, records=Recording())
    iterator = pipeline.train_batches(
        resolve(own), own, share(1, 4, own.train.batch_size), source=recording
    )
    for _ in range(3):
        next(iterator)
    assert len(asked) % 2 == 0 and len(set(asked)) == len(asked)
    assert len(asked) <= 2 * (3 + pipeline.PREFETCHED_BATCHES + 1)


def test_every_epoch_sees_each_row_once_in_another_order(prepared: pathlib.Path) -> None:
    source = resolve(config(prepared)).source("train")
    size = 8
    own = config(prepared)
    iterator = pipeline.train_batches(resolve(own), own, source=source)
    epoch = source.num_rows // size
    whole = source.rows(np.arange(source.num_rows))["tokens"]
    seen = [np.concatenate([next(iterator)["tokens"] for _ in range(epoch)]) for _ in range(2)]
    everything = {row.tobytes() for row in whole}
    for rows in seen:
        assert {row.tobytes() for row in rows} <= everything
    assert not np.array_equal(*seen)
    assert not np.array_equal(seen[0], whole[: len(seen[0])])


def test_a_position_saved_by_two_hosts_is_taken_up_by_one(prepared: pathlib.Path) -> None:
    own = config(prepared)
    source = resolve(own).source("train")
    halves = [share(i, 2, own.train.batch_size) for i in range(2)]
    two = [pipeline.train_batches(resolve(own), own, half, source=source) for half in halves]
    for _ in range(5):
        for iterator in two:
            next(iterator)
    states = [json.dumps(iterator.state()) for iterator in two]
    assert states[0] == states[1]
    one = pipeline.train_batches(resolve(own), own, source=source)
    one.set_state(json.loads(states[0]))
    assert_same([next(one)], batches(own, [5]))


def test_other_data_under_the_same_path_is_refused_on_resume(
    pile: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    preparation.prepare(config(pile, prepare__seed=1), epath.Path(tmp_path / "other"))
    iterator = pipeline.train_batches(resolve(config(prepared)), config(prepared))
    other = config(tmp_path / "other")
    elsewhere = pipeline.train_batches(resolve(other), other)
    with pytest.raises(UserError, match="is not what this run was trained on"):
        elsewhere.check_same(iterator.state())
    assert not elsewhere.has_same_data(iterator.state())
    # A copy of the same data is the same data.
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    copied = pipeline.train_batches(resolve(config(copy)), config(copy))
    copied.check_same(iterator.state())


def test_more_steps_than_rows_are_announced(prepared: pathlib.Path) -> None:
    source = resolve(config(prepared)).source("train")
    steps = 2 * source.num_rows // 8
    said = pipeline.announce_epochs(source, config(prepared, train__steps=steps))
    assert said is not None and f"the data has {source.num_rows}: 2.00 epochs" in said
    assert pipeline.announce_epochs(source, config(prepared, train__steps=3)) is None
    synthetic = small_config(train__steps=10**9)
    assert pipeline.announce_epochs(resolve(synthetic).source("train"), synthetic) is None


def damaged(prepared: pathlib.Path, tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    return copy, copy / "train-00001-of-00003.array_record"


def test_what_does_not_fit_is_said_before_the_run_starts(
    prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for overrides, message in (
        (dict(data__length=16), "length=16, but .* was prepared with length 32"),
        (
            dict(data__vocabulary="pile_mini_32k"),
            r"is not the vocabulary that .* \('bytes', 259 ids",
        ),
    ):
        with pytest.raises(UserError, match=message):
            resolve(config(prepared, **overrides)).check()
    with pytest.raises(UserError, match="has no test split; it has train, validation"):
        resolve(config(prepared)).source("test")
    copy, shard = damaged(prepared, tmp_path)
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{shard.name} has .* not whole"):
        resolve(config(copy)).check()
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        resolve(config(copy)).check()
    manifest = copy / "manifest.json"
    content = manifest.read_text()
    manifest.write_text(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        resolve(config(copy)).check()
    shards = json.loads(content)
    shards["splits"]["train"]["shards"].pop()
    manifest.write_text(json.dumps(shards))
    with pytest.raises(UserError, match="was changed by hand"):
        resolve(config(copy)).check()


def test_a_shard_that_vanishes_during_a_run_is_named_and_the_run_can_go_on(
    prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy, shard = damaged(prepared, tmp_path)
    experiment = tmp_path / "run.py"
    write_language_model(
        experiment,
        data__length=32,
        train__steps=2000,
        train__log_every=1,
        checkpoint__every=5,
        eval__every=1000,
        eval__examples=8,
    )
    command = [
        *(sys.executable, "-m", "looped_jax.main", f"--config={experiment}"),
        *(f"--config.data.path={copy}", f"--workdir={tmp_path / 'run'}"),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and metrics.read_text().count("\n") >= 6
    ):
        pass
    content = shard.read_bytes()
    with shard.open("r+b") as file:  # The shard is held open: only its content can go.
        file.truncate(0)
    errors = process.communicate(timeout=300)[1].strip().splitlines()[-1]
    assert process.returncode == 1
    assert str(copy) in errors and "cannot be read" in errors and "at step" in errors
    assert "the last good checkpoint is" in errors
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"{shard.name} has 0 bytes" in done.stderr
    shard.write_bytes(content)
    again = [*command, "--config.train.steps=2000"]
    process = subprocess.Popen(again, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines = metrics.read_text().count("\n")
    while process.poll() is None and metrics.read_text().count("\n") < lines + 3:
        pass
    process.terminate()
    assert process.wait(timeout=300) == 0


def test_evaluation_takes_any_prepared_split(
    prepared: pathlib.Path, run_module: Callable, tmp_path: pathlib.Path
) -> None:
    experiment = tmp_path / "run.py"
    write_language_model(
        experiment,
        data__length=32,
        train__steps=2000,
        train__log_every=1,
        checkpoint__every=5,
        eval__every=1000,
        eval__examples=8,
    )
    workdir = tmp_path / "run"
    path = f"--config.data.path={prepared}"
    steps = "--config.train.steps=5"
    done = run_module(
        "looped_jax.main", f"--config={experiment}", path, steps, f"--workdir={workdir}"
    )
    assert done.returncode == 0, done.stderr
    done = run_module("looped_jax.evaluate", f"--workdir={workdir}")
    metrics = json.loads(done.stdout)
    for component in ("ArXiv/", "Github/", "PG-19/", ""):
        for name in ("loss", "perplexity", "bits_per_byte"):
            assert np.isfinite(metrics[f"eval/text/{component}{name}"])
