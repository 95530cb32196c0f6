import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import small_config

from looped_jax.data.pipeline import train_batches
from looped_jax.errors import RunError, UserError
from looped_jax.parallel import distributed
from looped_jax.training import checkpoint
from looped_jax.training.checkpoint import (
    Checkpointer,
    read_meta,
    read_params,
    restore,
    saved_steps,
    start_from,
)
from looped_jax.training.checksums import checksums
from looped_jax.training.job import Job, make_job
from looped_jax.training.state import init_state


@pytest.fixture(scope="module")
def job() -> Job:
    return make_job(small_config(mesh__fsdp=8, mesh__data=1))


def fresh_batches(job: Job) -> Any:
    return train_batches(job.data, job.config)


@pytest.fixture(scope="module")
def workdir(job: Job, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """Checkpoints of steps 1 to 4, of which the newest two are kept."""
    folder = epath.Path(tmp_path_factory.mktemp("checkpoints"))
    state = init_state(job.model, job.optimizer, 3, job.layout)
    batches = train_batches(job.data, job.config)
    with Checkpointer(folder, keep=2) as checkpointer:
        for step in (1, 2, 3, 4):
            next(batches)
            checkpointer.save(step, state, batches, job.config.to_dict())
    return folder


def test_the_newest_are_kept(workdir: epath.Path) -> None:
    assert saved_steps(workdir) == [3, 4]


def test_state_and_data_position_come_back(workdir: epath.Path, job: Job) -> None:
    expected = init_state(job.model, job.optimizer, 3, job.layout)
    batches = train_batches(job.data, job.config)
    with Checkpointer(workdir, keep=2) as checkpointer:
        state = checkpointer.restore(4, job.layout, batches)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    fifth = job.data.source("train").rows(np.arange(4 * 16, 5 * 16))
    np.testing.assert_array_equal(next(batches)["tokens"], fifth["tokens"])


@pytest.mark.parametrize("mesh", [dict(mesh__data=8), dict(mesh__tensor=4), dict(mesh__fsdp=2)])
def test_a_checkpoint_of_eight_devices_is_restored_onto_another_mesh(
    mesh: dict[str, Any], workdir: epath.Path, job: Job
) -> None:
    other = make_job(small_config(**{"mesh__data": 1, **mesh}))
    state = restore(workdir / "checkpoints" / "4", other.layout, fresh_batches(other))
    jax.tree.map(
        np.testing.assert_array_equal, state, init_state(job.model, job.optimizer, 3, job.layout)
    )
    sharding = jax.tree.leaves(state.params)[0].sharding
    assert sharding.mesh.shape == other.mesh.shape


def test_a_damaged_checkpoint_is_named_with_what_to_do(
    workdir: epath.Path, job: Job, tmp_path: epath.Path
) -> None:
    copy = epath.Path(tmp_path) / "checkpoints" / "4"
    shutil.copytree(workdir / "checkpoints" / "4", copy)
    files = (p for p in pathlib.Path(copy / "state").rglob("*") if p.is_file())
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(b"\0" * 100)
    with pytest.raises(RunError, match=r"cannot be read .*remove that folder to go on"):
        restore(copy, job.layout, fresh_batches(job))


def test_what_is_not_a_checkpoint_is_refused(tmp_path: epath.Path, job: Job) -> None:
    with pytest.raises(UserError, match="it must be RUN/checkpoints/STEP"):
        restore(epath.Path(tmp_path), job.layout, fresh_batches(job))


def test_parameters_are_read_without_the_optimizer(workdir: epath.Path, job: Job) -> None:
    params = read_params(workdir / "checkpoints" / "4", job.layout)
    expected = init_state(job.model, job.optimizer, 3, job.layout).params
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("bit", [0, 9, 31])
def test_one_flipped_bit_in_any_array_is_found(workdir: epath.Path, job: Job, bit: int) -> None:
    path = workdir / "checkpoints" / "4"
    meta = read_meta(path)
    state = init_state(job.model, job.optimizer, 3, job.layout)
    saved = checksums(state)
    assert saved == {name: sums for name, sums in meta["checksums"].items()}
    leaves, tree = jax.tree.flatten(state)
    names = list(saved)
    for i, leaf in enumerate(leaves):
        bits = np.array(leaf).view(np.uint32)
        place = tuple(n // 2 for n in bits.shape)
        bits[place] ^= np.uint32(1 << bit)
        flipped = jax.device_put(bits.view(leaf.dtype), leaf.sharding)
        here = checksums(tree.unflatten([*leaves[:i], flipped, *leaves[i + 1 :]]))
        assert [name for name in names if here[name] != saved[name]] == [names[i]]


def test_devices_and_host_find_the_same_checksums(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {
        "state": init_state(job.model, job.optimizer, 3, job.layout),
        "half": jax.device_put(np.arange(24, dtype=jnp.bfloat16).reshape(2, 3, 4), _one(job)),
        "number": jax.device_put(np.float32(3.5), _one(job)),
    }
    by_host = checksums(tree)
    monkeypatch.setattr(distributed, "several", lambda: True)
    assert checksums(tree) == by_host
    assert all(by_host[name] for name in ("half", "number"))


def _one(job: Job) -> Any:
    return jax.sharding.NamedSharding(job.mesh, jax.sharding.PartitionSpec())


def test_swapped_numbers_are_found(job: Job) -> None:
    state = init_state(job.model, job.optimizer, 3, job.layout)
    table = state.params["embed"]["embedding"]
    swapped = jax.device_put(np.array(table)[::-1], table.sharding)
    assert checksums({"a": table}) != checksums({"a": swapped})


def test_a_flipped_bit_on_disk_is_never_restored(
    workdir: epath.Path, job: Job, tmp_path: pathlib.Path
) -> None:
    origin = pathlib.Path(workdir / "checkpoints" / "4")
    # Arrays as small as these lie here; what a process wrote of them is not read again.
    files = sorted((origin / "state" / "d").iterdir())
    rng = np.random.default_rng(0)
    restored = 0
    for i in range(12):
        copy = tmp_path / str(i) / "4"
        shutil.copytree(origin, copy)
        file = copy / files[i % len(files)].relative_to(origin)
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        try:
            state = restore(epath.Path(copy), job.layout, fresh_batches(job))
        except RunError as error:
            assert "remove that folder" in str(error)
            continue
        restored += 1  # The bit was in no array.
        expected = init_state(job.model, job.optimizer, 3, job.layout)
        jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert restored < 4


def test_a_checkpoint_of_another_numerics_format_is_refused(
    workdir: epath.Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "MODEL_FORMAT", 99)
    with pytest.raises(UserError, match=r"is of numerics format \d+, and this version computes f"):
        restore(workdir / "checkpoints" / "4", job.layout, fresh_batches(job))


def test_a_changed_description_is_found(
    workdir: epath.Path, job: Job, tmp_path: pathlib.Path
) -> None:
    copy = epath.Path(tmp_path) / "4"
    shutil.copytree(workdir / "checkpoints" / "4", copy)
    path = copy / "meta" / "metadata"
    path.write_text(
        path.read_text().replace('"rows": 64', '"rows": 65').replace('"rows":64', '"rows":65')
    )
    with pytest.raises(RunError, match="its description was changed"):
        read_meta(copy)


def test_a_folder_that_is_not_a_whole_checkpoint_hides_no_other(
    workdir: epath.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "30").mkdir()
    (tmp_path / "run" / "checkpoints" / "40" / "state").mkdir(parents=True)
    assert saved_steps(epath.Path(tmp_path / "run")) == [3, 4]
    with Checkpointer(epath.Path(tmp_path / "run"), keep=2) as checkpointer:
        assert checkpointer.latest() == 4
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"3", "4", "30.incomplete", "40.incomplete"}


def start(job: Job, path: epath.Path) -> tuple[Any, str, Any]:
    batches = fresh_batches(job)
    return (*start_from(path, job.layout, job.optimizer, batches), batches)


def test_another_batch_size_goes_on_at_the_next_row(workdir: epath.Path) -> None:
    job = make_job(small_config(mesh__data=1, train__batch_size=8))
    _, taken, batches = start(job, workdir / "checkpoints" / "4")
    assert "step 4, row 64" in taken
    source = job.data.source("train")
    np.testing.assert_array_equal(next(batches)["tokens"], source.rows(np.arange(64, 72))["tokens"])


@pytest.mark.parametrize(
    ("changed", "other"),
    [
        (dict(optimizer__name="adafactor"), "optimizer"),
        (dict(optimizer__name="sgd"), "optimizer"),
    ],
)
def test_another_optimizer_takes_the_parameters_alone(
    changed: dict, other: str, workdir: epath.Path, job: Job
) -> None:
    fresh = make_job(small_config(mesh__data=1, **changed))
    state, taken, batches = start(fresh, workdir / "checkpoints" / "4")
    assert f"with other {other}: step and rows count from 0" in taken
    expected = init_state(job.model, job.optimizer, 3, job.layout).params
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)
    assert int(state.step) == 0
    assert batches.state()["rows"] == 0


@pytest.mark.parametrize(
    "changed",
    [dict(seed=1), dict(data__task="group_z7_n3"), dict(data__targets="running")],
    ids=str,
)
def test_other_examples_of_a_synthetic_task_are_other_data(
    changed: dict, workdir: epath.Path
) -> None:
    fresh = make_job(small_config(mesh__data=1, data__length=5, **changed))
    state, taken, batches = start(fresh, workdir / "checkpoints" / "4")
    assert "with other data: step and rows count from 0" in taken
    assert (int(state.step), batches.state()["rows"]) == (0, 0)


def test_another_vocabulary_is_refused(workdir: epath.Path) -> None:
    job = make_job(small_config(mesh__data=1, data__task="group_s3_n4", model__vocab_size=16))
    with pytest.raises(UserError, match="is not the one that the model was trained with"):
        start(job, workdir / "checkpoints" / "4")
