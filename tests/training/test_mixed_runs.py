"""Runs that read several sources at stated rates: measured by source, stopped, given others."""

import pathlib
import shutil
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from helpers import small_config, write_pile

from looped_jax.errors import UserError
from looped_jax.training import trainer
from looped_jax.training.checkpoint import read_meta
from looped_jax.training.job import make_job
from looped_jax.training.metrics_file import read_metrics
from looped_jax.training.workdir import check_owner

RATES = ((0, (("web", 0.75), ("code", 0.25))), (6, (("web", 0.25), ("code", 0.75))))
OTHERS = ((0, (("web", 0.5), ("code", 0.5))),)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, str], ...]:
    folder = tmp_path_factory.mktemp("sources")
    for seed, name in enumerate(("web", "code")):
        write_pile(folder / name, documents=30, seed=seed)
    return tuple((name, str(folder / name)) for name in ("web", "code"))


def config(sources: Any, **overrides: Any) -> Any:
    text = dict(data__task="text", data__length=32, data__sources=sources, data__rates=RATES)
    return small_config(**{**text, "eval__examples": 6, "checkpoint__keep": 5, **overrides})


def train(workdir: pathlib.Path, config: Any) -> list[dict[str, float]]:
    """Trains; returns the metrics apart from speeds."""
    trainer.train(make_job(config), epath.Path(workdir))
    lines = read_metrics(epath.Path(workdir))
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def parameters(workdir: pathlib.Path, step: int) -> list[np.ndarray]:
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore((workdir / "checkpoints" / str(step) / "state").resolve())
    return list(ocp.tree.to_flat_dict(state["params"]).values())


@pytest.fixture(scope="module")
def whole(sources: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train(workdir, config(sources))
    return workdir


def test_a_line_says_what_was_read_and_how_well_each_source_is_predicted(
    whole: pathlib.Path,
) -> None:
    lines = read_metrics(epath.Path(whole))
    read = {
        line["step"]: (line["train/rows/web"], line["train/rows/code"])
        for line in lines
        if "train/loss" in line
    }
    assert read[6] == (72, 24)
    assert read[12] == (72 + 24, 24 + 72)
    (last,) = [line for line in lines if line["step"] == 12 and "eval/text/loss" in line]
    of_sources = [last[f"eval/text/{name}/tokens"] for name in ("web", "code")]
    assert sum(of_sources) == last["eval/text/tokens"] and min(of_sources) > 100
    losses = [last[f"eval/text/{name}/loss"] for name in ("web", "code")]
    assert np.isclose(np.average(losses, weights=of_sources), last["eval/text/loss"])


@pytest.mark.parametrize("step", [4, 8])  # Before the change of rates, and after it.
def test_a_run_goes_on_exactly_from_a_checkpoint(
    step: int, sources: Any, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for later in range(step + 4, 13, 4):
        shutil.rmtree(workdir / "checkpoints" / str(later))
    lines = train(workdir, config(sources))
    again = train(tmp_path / "again", config(sources))
    assert lines == again
    here, there = parameters(workdir, 12), parameters(whole, 12)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_rates_are_refused_with_how_to_go_on_at_them(
    sources: Any, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    origin = whole / "checkpoints" / "8"  # At that of step 12 there is nothing left to do.
    later = (*RATES, (12, OTHERS[0][1]))
    with pytest.raises(UserError, match=r"data\.rates: .* now") as caught:
        check_owner(config(sources, data__rates=later), epath.Path(whole))
    said = f"with --config.train.start_from={origin}, it goes on from step 8 at these rates"
    assert said in str(caught.value)
    with pytest.raises(UserError) as caught:
        check_owner(config(sources, data__rates=later, seed=1), epath.Path(whole))
    assert "start_from" not in str(caught.value)


def test_a_run_goes_on_from_another_at_other_rates_and_is_resumed_so(
    sources: Any, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    keys = dict(train__start_from=str(whole / "checkpoints" / "8"), train__batch_size=32)
    other = config(sources, data__rates=OTHERS, checkpoint__every=2, **keys)
    lines = train(tmp_path / "other", other)
    # 8 steps of 16 rows, then 4 of 32.
    read = {line["step"]: line["train/rows/web"] for line in lines if "train/loss" in line}
    assert read == {10: 72 + 8 + 32, 12: 72 + 8 + 64}
    data = read_meta(epath.Path(tmp_path / "other" / "checkpoints" / "12"))["data"]
    assert [row for row, _ in data["mixture"]["parts"]] == [0, 96, 128]
    shutil.copytree(tmp_path / "other", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "12")
    assert train(tmp_path / "stopped", other) == lines  # From step 10.
    onwards = config(sources, data__rates=RATES, train__steps=14, **keys)
    onwards.unlock()
    onwards.train.start_from = str(tmp_path / "other" / "checkpoints" / "12")
    onwards.lock()
    lines = train(tmp_path / "onwards", onwards)
    # At step 12 the rates from step 6 on are in force.
    assert [line["train/rows/web"] for line in lines if "train/loss" in line] == [72 + 8 + 64 + 16]
