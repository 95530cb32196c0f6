"""Stages of growing depth: their steps, what growth does to a state, resume across it."""

import json
import pathlib

import jax
import numpy as np
import pytest
from etils import epath
from helpers import small_config

from looped_jax.config import ConfigDict
from looped_jax.errors import UserError
from looped_jax.training.checkpoint import Checkpointer
from looped_jax.training.job import make_job
from looped_jax.training.run import open_run
from looped_jax.training.stacking import grow, stage_at, stages
from looped_jax.training.state import init_state
from looped_jax.training.trainer import train


def stacked(**overrides: object) -> ConfigDict:
    return small_config(model__plan="3x1", stacking__block=1, **overrides)


def test_stages_share_the_steps_by_their_number_to_the_power() -> None:
    found = stages(stacked(train__steps=60))
    assert [(s.begin, s.end, s.config.model.plan) for s in found] == [
        (0, 10, "1x1"),
        (10, 30, "2x1"),
        (30, 60, "3x1"),
    ]
    even = stages(stacked(train__steps=60, stacking__power=0.0))
    assert [s.end for s in even] == [20, 40, 60]


def test_the_checkpoint_of_a_stages_last_step_has_its_depth() -> None:
    config = stacked(train__steps=60)
    plans = [stage_at(config, step).config.model.plan for step in (0, 10, 11, 30, 31, 60)]
    assert plans == ["1x1", "1x1", "2x1", "2x1", "3x1", "3x1"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__plan": "3x2"}, "not one untied stack"),
        ({"model__plan": "3x1", "stacking__block": 2}, "equal blocks"),
        ({"train__steps": 2}, "less than the 3 stages"),
        ({"regularizer__block": 1}, "cannot be used together"),
        ({"train__start_from": "RUN/checkpoints/4"}, "not with train.start_from"),
    ],
)
def test_what_cannot_be_stacked_is_refused_in_one_line(
    overrides: dict[str, object], message: str
) -> None:
    keys = {"model__plan": "3x1", "stacking__block": 1, **overrides}
    with pytest.raises(UserError, match=message):
        make_job(small_config(**keys))


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw", "muon"])
def test_growth_copies_parameters_and_optimizer_state_of_the_middle_layer(optimizer: str) -> None:
    # 128 and more: Adafactor factors the second moments of such matrices.
    both = dict(model__d_model=128, model__d_ff=128, optimizer__name=optimizer, optimizer__ema=0.9)
    config, bigger = (small_config(model__plan=plan, **both) for plan in ("2x1", "3x1"))
    before, after = make_job(config), make_job(bigger)
    small = init_state(before.model, before.optimizer, 0, before.layout)
    rng = np.random.default_rng(0)
    small = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.integers(1, 9, leaf.shape), leaf.dtype), small
    )
    big = grow(small, before.layout, after.layout, 1)
    assert jax.tree.map(lambda leaf: leaf.shape, big) == jax.tree.map(
        lambda leaf: leaf.shape, after.layout.abstract
    )
    changed = 0
    for old, new in zip(jax.tree.leaves(small), jax.tree.leaves(big), strict=True):
        if old.shape == new.shape:
            np.testing.assert_array_equal(old, new)
        else:
            changed += 1
            np.testing.assert_array_equal(new, np.asarray(old)[[0, 0, 1]])
    parameters = len(jax.tree.leaves(small.params["segment_0"]))
    # The parameters, their average, and the optimizer's moments of each.
    assert changed >= 3 * parameters


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("stacked") / "whole"
    train(make_job(stacked(checkpoint__keep=9)), epath.Path(workdir))
    return workdir


def final_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    params = open_run(str(workdir)).parameters()
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(params)}


@pytest.mark.exact_bits
@pytest.mark.parametrize("last", [2, 4])
def test_a_run_stopped_at_or_after_growth_ends_in_the_same_state(
    last: int, whole: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    save = Checkpointer.save

    def save_then_die(self: Checkpointer, step: int, *args: object) -> None:
        save(self, step, *args)  # type: ignore[arg-type]
        self.wait()
        if step == last:
            raise Killed

    config = stacked(checkpoint__every=1, checkpoint__keep=20)
    assert [stage.end for stage in stages(config)] == [2, 6, 12]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", save_then_die)
        with pytest.raises(Killed):
            train(make_job(config), epath.Path(tmp_path / "run"))
    train(make_job(config), epath.Path(tmp_path / "run"))

    there, here = final_state(whole), final_state(tmp_path / "run")
    assert there.keys() == here.keys()
    for name, value in there.items():
        np.testing.assert_array_equal(value, here[name], err_msg=name)
    for workdir in (whole, tmp_path / "run"):
        evaluated = [
            json.loads(line)["step"]
            for line in (workdir / "metrics.jsonl").read_text().splitlines()
            if "eval/" in line
        ]
        assert evaluated == [2, 6, 12]  # At the end of every stage, once.


def test_checkpoints_of_every_stage_can_be_opened(whole: pathlib.Path) -> None:
    plans = [str(open_run(str(whole), step).job.model.config.plan) for step in (2, 6, 12)]
    assert plans == ["1x1", "2x1", "3x1"]
