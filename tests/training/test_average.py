"""The average of the parameters: its formula, where it is kept, and who uses it."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from helpers import random_rows, small_config
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.data.pipeline import train_batches
from looped_jax.parallel.mesh import put_batch
from looped_jax.training.average import averaged, fresh_average
from looped_jax.training.checkpoint import Checkpointer, start_from
from looped_jax.training.evaluations import Evaluations
from looped_jax.training.job import jitted_train_step, make_job
from looped_jax.training.run import open_run
from looped_jax.training.state import init_state
from looped_jax.training.trainer import train


@given(st.floats(0.01, 0.99999), st.integers(1, 30), st.integers(0, 99))
def test_it_is_the_librarys_moving_average_without_its_bias(
    decay: float, updates: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    params = [{"a": jnp.asarray(rng.normal(size=3), jnp.float32)} for _ in range(updates + 1)]
    average = fresh_average(params[0])
    weights = decay ** np.arange(updates)[::-1]
    for i in range(1, updates + 1):
        average = averaged(average, params[i], jnp.int32(i), decay)
    expected = np.average([p["a"] for p in params[1:]], axis=0, weights=weights)
    np.testing.assert_allclose(average["a"], expected, rtol=1e-4, atol=1e-5)
    if decay < 0.999:  # Beyond, 1 - decay in float32 is what it has.
        library = optax.ema(decay)
        state = library.init(params[0])
        for i in range(1, updates + 1):
            theirs, state = library.update(params[i], state)
        np.testing.assert_allclose(average["a"], theirs["a"], rtol=1e-3, atol=1e-4)


@given(st.floats(0.01, 0.99999), st.integers(1, 10**6))
def test_it_stays_exactly_where_a_parameter_does(decay: float, updates: int) -> None:
    params = {"a": jnp.linspace(-3, 3, 7)}
    np.testing.assert_array_equal(
        averaged(params, params, jnp.int32(updates), decay)["a"], params["a"]
    )


@pytest.mark.exact_bits
@pytest.mark.parametrize("mesh", [dict(mesh__data=1), dict(mesh__data=1, mesh__fsdp=8)])
def test_training_keeps_the_average_of_the_parameters_it_makes(mesh: dict[str, int]) -> None:
    states, jobs = [], []
    for ema in (0.0, 0.5):
        job = make_job(small_config(optimizer__ema=ema, **mesh))
        states.append(init_state(job.model, job.optimizer, 0, job.layout))
        jobs.append(job)
    plain, kept = states
    assert plain.average is None
    steps = [jitted_train_step(job) for job in jobs]
    made = []
    for i in range(3):
        batch = put_batch(random_rows(rows=16, length=4, vocab=9, seed=i), jobs[0].mesh)
        with jobs[0].context():
            plain, _ = steps[0](plain, batch)
        made.append(jax.device_get(plain.params))
        with jobs[1].context():
            kept, _ = steps[1](kept, batch)
    jax.tree.map(np.testing.assert_array_equal, plain.params, kept.params)
    jax.tree.map(
        lambda found, a, b, c: np.testing.assert_allclose(
            found, (a + 2 * b + 4 * c) / 7, rtol=1e-5, atol=1e-6
        ),
        kept.average,
        *made,
    )
    for average, param in zip(
        jax.tree.leaves(kept.average), jax.tree.leaves(kept.params), strict=True
    ):
        assert average.sharding.is_equivalent_to(param.sharding, param.ndim)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """A run of 12 steps with an average, checkpoints of 4, 8 and 12."""
    folder = epath.Path(tmp_path_factory.mktemp("averaged") / "run")
    train(make_job(small_config(optimizer__ema=0.9, checkpoint__keep=9, mesh__data=1)), folder)
    return folder


def stored(workdir: epath.Path, step: int) -> set[str]:
    meta = json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    return {name.split("/")[0] for name in meta["checksums"]}


def test_a_state_without_it_is_stored_as_it_always_was(
    workdir: epath.Path, tmp_path: pathlib.Path
) -> None:
    job = make_job(small_config(mesh__data=1))
    state = init_state(job.model, job.optimizer, 0, job.layout)
    with Checkpointer(epath.Path(tmp_path), keep=1) as checkpointer:
        batches = train_batches(job.data, job.config)
        checkpointer.save(4, state, batches, job.config.to_dict())
    assert stored(epath.Path(tmp_path), 4) == {"step", "params", "optimizer"}
    tree = json.loads((tmp_path / "checkpoints" / "4" / "state" / "_METADATA").read_text())
    assert not any("average" in name for name in tree["tree_metadata"])
    assert stored(workdir, 12) == {"step", "params", "optimizer", "average"}


def test_a_resumed_run_ends_in_the_same_bits(workdir: epath.Path, tmp_path: pathlib.Path) -> None:
    class Killed(BaseException):
        pass

    config = small_config(optimizer__ema=0.9, checkpoint__keep=9, mesh__data=1)
    save = Checkpointer.save

    def save_then_die(self: Checkpointer, step: int, *args: Any) -> None:
        save(self, step, *args)
        self.wait()
        raise Killed

    folder = epath.Path(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "save", save_then_die)
        with pytest.raises(Killed):
            train(make_job(config), folder)
    train(make_job(config), folder)
    sums = [
        json.loads((path / "checkpoints" / "12" / "meta" / "metadata").read_text())["checksums"]
        for path in (workdir, folder)
    ]
    assert sums[0] == sums[1]


def evaluations(workdir: epath.Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {k: v for k, v in line.items() if k.startswith("eval/")}
        for line in lines
        if any(k.startswith("eval/") for k in line)
    }


def test_a_run_evaluates_the_average_and_so_does_who_opens_it(workdir: epath.Path) -> None:
    opened, raw = open_run(str(workdir)), open_run(str(workdir), None, {"optimizer.ema": "0"})
    assert opened.identity() != raw.identity()
    measured = Evaluations(opened.job).measure(opened.parameters(), lambda: False)
    of_raw = Evaluations(raw.job).measure(raw.parameters(), lambda: False)
    assert measured is not None
    assert of_raw is not None
    there = evaluations(workdir)[12]
    assert measured == pytest.approx({k: there[k] for k in measured}, rel=1e-5)
    assert of_raw["eval/group_z7_n4/loss"] != pytest.approx(measured["eval/group_z7_n4/loss"])


def from_checkpoint(path: epath.Path, **overrides: Any) -> tuple[Any, str]:
    job = make_job(small_config(mesh__data=1, **overrides))
    return start_from(path, job.layout, job.optimizer, train_batches(job.data, job.config))


def test_another_run_starts_from_what_there_is(workdir: epath.Path) -> None:
    path = workdir / "checkpoints" / "12"
    opened = open_run(str(workdir))
    average = opened.parameters()
    state, taken = from_checkpoint(path, optimizer__ema=0.5)
    assert "step 12" in taken
    jax.tree.map(np.testing.assert_array_equal, state.average, average)
    raw = jax.device_get(state.params)
    # It goes on without an average, with the parameters as they were.
    state, taken = from_checkpoint(path)
    assert state.average is None
    jax.tree.map(np.testing.assert_array_equal, state.params, raw)
    # Fine-tuning begins with the parameters that were evaluated.
    state, taken = from_checkpoint(path, optimizer__name="sgd", optimizer__ema=0.5)
    assert taken.startswith("the averaged parameters of")
    jax.tree.map(np.testing.assert_array_equal, state.params, average)
    jax.tree.map(np.testing.assert_array_equal, state.average, average)
    assert int(state.step) == 0


def test_an_average_that_a_run_did_not_keep_begins_as_its_parameters(
    tmp_path: pathlib.Path,
) -> None:
    job = make_job(small_config(mesh__data=1))
    state = init_state(job.model, job.optimizer, 3, job.layout)
    with Checkpointer(epath.Path(tmp_path), keep=1) as checkpointer:
        batches = train_batches(job.data, job.config)
        checkpointer.save(4, state, batches, job.config.to_dict())
    path = epath.Path(tmp_path / "checkpoints" / "4")
    found, taken = from_checkpoint(path, optimizer__ema=0.9)
    assert taken.startswith("goes on")
    jax.tree.map(np.testing.assert_array_equal, found.average, state.params)
    pairs = zip(jax.tree.leaves(found.average), jax.tree.leaves(found.params), strict=True)
    # The step takes over the state's buffers: none may be there twice.
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)
