import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from helpers import small_config

from looped_jax.config import RunError, UserError
from looped_jax.data.pipeline import make_source, train_batches
from looped_jax.training.checkpoint import Checkpointer, restore, saved_steps
from looped_jax.training.state import init_state
from looped_jax.training.trainer import Job, prepare


@pytest.fixture(scope="module")
def job() -> Job:
    return prepare(small_config(mesh__fsdp=8, mesh__data=1))


@pytest.fixture(scope="module")
def workdir(job: Job, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """Checkpoints of steps 1 to 4, of which the newest two are kept."""
    folder = epath.Path(tmp_path_factory.mktemp("checkpoints"))
    state = init_state(job.model, job.optimizer, 3, job.layout)
    batches = train_batches(make_source(job.config, "train"), job.config)
    with Checkpointer(folder, keep=2) as checkpointer:
        for step in (1, 2, 3, 4):
            next(batches)
            checkpointer.save(step, state, batches, job.config.to_dict())
    return folder


def test_the_newest_are_kept(workdir: epath.Path) -> None:
    assert saved_steps(workdir) == [3, 4]


def test_state_and_data_position_come_back(workdir: epath.Path, job: Job) -> None:
    expected = init_state(job.model, job.optimizer, 3, job.layout)
    batches = train_batches(make_source(job.config, "train"), job.config)
    with Checkpointer(workdir, keep=2) as checkpointer:
        state = checkpointer.restore(4, job.layout, batches)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    fifth = make_source(job.config, "train").rows(np.arange(4 * 16, 5 * 16))
    np.testing.assert_array_equal(next(batches)["tokens"], fifth["tokens"])


@pytest.mark.parametrize("mesh", [dict(mesh__data=8), dict(mesh__tensor=4), dict(mesh__fsdp=2)])
def test_a_checkpoint_of_eight_devices_is_restored_onto_another_mesh(
    mesh: dict[str, Any], workdir: epath.Path, job: Job
) -> None:
    other = prepare(small_config(**{"mesh__data": 1, **mesh}))
    state = restore(workdir / "checkpoints" / "4", other.layout)
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
        restore(copy, job.layout)


def test_what_is_not_a_checkpoint_is_refused(tmp_path: epath.Path, job: Job) -> None:
    with pytest.raises(UserError, match="it must be RUN/checkpoints/STEP"):
        restore(epath.Path(tmp_path), job.layout)
