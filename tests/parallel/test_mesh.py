"""The same numbers on every mesh of eight devices."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from helpers import MESHES, random_rows, small_config

from experiments import pile_12x2
from looped_jax.errors import UserError
from looped_jax.parallel.mesh import local_rows, make_mesh, put_batch
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


HOSTS, GPUS = 4, 8


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """One of several hosts' devices, numbered as XLA numbers them: each GPU's host is a slice."""

    id: int
    here: int = 0
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"

    @property
    def process_index(self) -> int:
        return self.id // GPUS

    @property
    def slice_index(self) -> int:
        return self.id // GPUS

    @property
    def client(self) -> Any:
        return SimpleNamespace(process_index=lambda: self.here)


def nodes(**of_each: Any) -> list[FakeDevice]:
    return [FakeDevice(id=number, **of_each) for number in range(HOSTS * GPUS)]


def hosts_of(mesh: Any, axes: tuple[str, ...]) -> set[int]:
    """On how many hosts devices are that differ in these axes only: the numbers that occur."""
    others = [axis for axis in mesh.axis_names if axis not in axes]
    order = [mesh.axis_names.index(axis) for axis in (*others, *axes)]
    width = int(np.prod([mesh.shape[axis] for axis in axes]))
    groups = mesh.devices.transpose(order).reshape(-1, width)
    return {len({device.process_index for device in group}) for group in groups}


@pytest.mark.parametrize(
    ("axes", "within_a_host"),
    [
        (dict(fsdp=-1), ()),
        (dict(fsdp=8, data=-1), ("fsdp",)),
        (dict(fsdp=8, tensor=4), ("tensor",)),
        (dict(data=2, fsdp=8, tensor=2), ("tensor",)),
        (dict(data=4, fsdp=2, tensor=2, sequence=2), ("fsdp", "tensor", "sequence")),
    ],
    ids=str,
)
def test_parameters_may_be_shared_out_over_gpus_of_several_hosts(
    axes: dict[str, int], within_a_host: tuple[str, ...]
) -> None:
    sizes = {f"mesh__{axis}": size for axis, size in {"data": 1, **axes}.items()}
    batch = dict(train__batch_size=64, eval__batch_size=64)
    mesh = make_mesh(small_config(**sizes, **batch), nodes())
    assert {device.id for device in mesh.devices.flat} == set(range(HOSTS * GPUS))
    if within_a_host:
        assert hosts_of(mesh, within_a_host) == {1}


def test_the_papers_config_as_it_is_runs_on_four_hosts_of_gpus_each_with_its_own_rows() -> None:
    config = pile_12x2.get_config()
    rows = [local_rows(make_mesh(config, nodes(here=host)), 512) for host in range(HOSTS)]
    assert [len(of_host) for of_host in rows] == [128] * HOSTS
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(512))


def test_hosts_of_gpus_share_out_data_where_they_can() -> None:
    config = small_config(mesh__data=8, mesh__fsdp=4, train__batch_size=64, eval__batch_size=64)
    mesh = make_mesh(config, nodes())
    places = mesh.devices.reshape(HOSTS, -1)
    assert [{device.process_index for device in part} for part in places] == [{0}, {1}, {2}, {3}]


def test_hosts_of_which_not_all_gpus_are_used_alike_keep_their_order() -> None:
    config = small_config(mesh__data=2, mesh__fsdp=6, train__batch_size=12, eval__batch_size=12)
    mesh = make_mesh(config, nodes())
    assert [device.id for device in mesh.devices.flat] == list(range(12))


def test_tpu_slices_share_out_data_and_nothing_else() -> None:
    slices = nodes(platform="tpu", device_kind="TPU v5e")
    batch = dict(train__batch_size=64, eval__batch_size=64)
    with pytest.raises(UserError, match=r"8 and 8 and 8 and 8 devices of 4 slices.* multiple of"):
        make_mesh(small_config(mesh__data=1, mesh__fsdp=32, **batch), slices)
