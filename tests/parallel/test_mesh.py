"""The same numbers on every mesh of eight devices."""

from typing import Any

import jax
import numpy as np
import pytest
from helpers import MESHES, random_rows, small_config

from looped_jax.errors import UserError
from looped_jax.parallel.mesh import make_mesh, put_batch
from looped_jax.training.job import make_job
from looped_jax.training.state import init_state, jitted_init
from looped_jax.training.train_step import loss_and_grads

# Sums of float32 in another order; gradients here are of size 0.01 to 1.
TOLERANCE = dict(rtol=2e-5, atol=2e-6)
WIDTHS = dict(
    data__length=8, model__vocab_size=16, train__batch_size=16, optimizer__name="adafactor"
)


def one_step(**mesh: int) -> tuple[Any, Any, Any]:
    job = make_job(small_config(**WIDTHS, **mesh))
    state = init_state(job.model, job.optimizer, 0, job.layout)
    batch = put_batch(random_rows(rows=16, length=8, vocab=10), job.mesh)
    with job.context():
        compute = jax.jit(lambda params, batch: loss_and_grads(job.model, params, batch))
        metrics, grads = compute(state.params, batch)
    return state, metrics["loss"], jax.device_get(grads)


@pytest.fixture(scope="module")
def on_one_device() -> tuple[Any, Any, Any]:
    return one_step(**MESHES["1"])


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_loss_and_gradients_are_the_same_on_every_mesh(on_one_device: Any, name: str) -> None:
    state, loss, grads = one_step(**MESHES[name])
    state_1, loss_1, grads_1 = on_one_device
    assert jax.tree.leaves(state.params)[0].sharding.mesh.size == 8
    here, there = jax.device_get((state.params, state_1.params))
    jax.tree.map(np.testing.assert_array_equal, here, there)
    np.testing.assert_allclose(loss, loss_1, **TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), grads, grads_1)


def test_parameters_and_their_moments_are_spread_over_fsdp_and_tensor() -> None:
    mesh = MESHES["2 data, 2 fsdp, 2 tensor"]
    job = make_job(small_config(**{**WIDTHS, "optimizer__name": "adamw"}, **mesh))
    state = init_state(job.model, job.optimizer, 0, job.layout)
    kernel = state.params["segment_0"]["layers"]["layer"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (1, 16, 32)
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 8, 16)
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.shape == kernel.shape]
    assert len(moments) >= 2
    for moment in moments:
        assert moment.sharding.shard_shape(moment.shape) in ((1, 8, 16), (1, 16, 8))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(mesh__data=16), "needs 16 devices; there are 8"),
        (dict(mesh__data=-1, mesh__fsdp=3), "8 devices do not divide by 3"),
        (dict(mesh__data=-1, mesh__fsdp=-1), "one may be -1"),
        (dict(mesh__data=0), "sizes are positive"),
        (dict(train__batch_size=12), "do not divide over data x fsdp = 8"),
        (dict(train__grad_accumulation=4), "gives 4 rows"),
        (dict(eval__batch_size=12), "config.eval.batch_size=12 does not divide"),
        (dict(mesh__rules=(("batch", ("data", "fdsp")),)), "'fdsp', .* did you mean 'fsdp'"),
    ],
)
def test_a_mesh_that_cannot_be_says_why(overrides: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_mesh(small_config(**overrides))


def test_a_parameter_that_does_not_divide_is_named() -> None:
    with pytest.raises(UserError, match=r"mlp.*kernel.*does not divide over mesh axes"):
        make_job(small_config(model__d_ff=33, mesh__data=4, mesh__tensor=2))


def test_no_device_ever_holds_the_whole_state_while_it_is_initialised() -> None:
    wide = dict(model__vocab_size=4096, model__d_model=64, optimizer__name="adamw")
    job = make_job(small_config(mesh__data=1, mesh__fsdp=8, **wide))
    fresh = jitted_init(job.model, job.optimizer, 0, job.layout)
    memory = fresh.lower().compile().memory_analysis()
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(job.layout.abstract))
    largest = 4096 * 64 * 4  # The embedding's bytes.
    assert memory.output_size_in_bytes < whole / 6
    assert memory.temp_size_in_bytes < largest / 2
