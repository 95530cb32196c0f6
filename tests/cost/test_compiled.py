"""Costs read from compiled programs against counts by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from looped_jax.cost.compiled import Instruction, cost, group_size, parse
from looped_jax.parallel.mesh import make_mesh

N = 64


def text(function: Any, *arguments: Any) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_product_in_nested_loops_counts_as_often_as_it_runs() -> None:
    def looped(x: Any, w: Any) -> Any:
        def outer(x: Any, _: Any) -> Any:
            return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, length=5)[0], None

        return jax.lax.scan(outer, x, length=3)[0]

    x = jnp.ones((8, N))
    assert cost(text(looped, x, jnp.ones((N, N)))).flops == 3 * 5 * 2 * 8 * N * N


def test_a_product_of_batches_is_counted() -> None:
    a, b = jnp.ones((4, 8, N)), jnp.ones((4, N, 16))
    assert cost(text(jnp.matmul, a, b)).flops == 2 * 4 * 8 * N * 16


def test_reading_one_layer_of_a_stack_is_not_reading_the_stack() -> None:
    def layers(x: Any, w: Any) -> Any:
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    once = cost(text(layers, jnp.ones((8, N)), jnp.ones((2, N, N)))).hbm_bytes
    twenty = cost(text(layers, jnp.ones((8, N)), jnp.ones((20, N, N)))).hbm_bytes
    assert 9.0 < twenty / once < 11.0  # Were it the stack each time, a hundred.


def test_a_convolution_counts_places_where_its_window_meets_elements() -> None:
    # What a TPU makes of a product over a batch of heads: dilated, so that each output meets one.
    hlo = """
ENTRY %main (a: f32[8,16,32], b: f32[8,32,4]) -> f32[8,16,4] {
  %a = f32[8,16,32]{2,1,0} parameter(0)
  %b = f32[8,32,4]{2,1,0} parameter(1)
  ROOT %c = f32[8,16,4]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, \
dim_labels=0bf_0io->0bf
}
"""
    assert cost(hlo).flops == 2 * 8 * 16 * 32 * 4


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,2,4},{1,3,5}}", 3),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=3] {'a','c'}", 6),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", 4),
        ("source_target_pairs={{0,3},{3,0}}", 2),
    ],
)
def test_sizes_of_groups_are_read_in_every_form(groups: str, expected: int) -> None:
    assert group_size(f"f32[] all-reduce(%x), {groups}, to_apply=%add") == expected


def test_unknown_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown groups"):
        group_size("replica_groups=new_form")


def on_mesh(function: Any, in_spec: Any, out_spec: Any, **axes: int) -> str:
    mesh = make_mesh(small_config(**{f"mesh__{name}": size for name, size in axes.items()}))
    run = jax.shard_map(function, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False)
    array = jax.ShapeDtypeStruct((64, N), jnp.float32, sharding=NamedSharding(mesh, in_spec))
    return jax.jit(run).lower(array).compile().as_text()


def test_collectives_are_counted_by_kind_and_by_what_a_ring_sends() -> None:
    whole = 64 * N * 4
    gather = functools.partial(jax.lax.all_gather, axis_name="fsdp", tiled=True)
    found = cost(on_mesh(gather, P("fsdp"), P(), data=1, fsdp=8))
    assert found.collective_bytes == {"all-gather": whole}
    assert found.wire_bytes == whole * 7 / 8
    add = functools.partial(jax.lax.psum, axis_name="data")
    found = cost(on_mesh(add, P("fsdp"), P("fsdp"), data=4, fsdp=2))
    assert found.collective_bytes == {"all-reduce": whole / 2}
    assert found.wire_bytes == 2 * whole / 2 * 3 / 4


def test_what_a_host_sends_to_other_slices_is_told_apart() -> None:
    hlo = """
ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %t = token[] after-all()
  %s = (f32[4,8]{1,0}, u32[], token[]) send(%a, %t), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %b = f32[4,8]{1,0} copy(%a)
}
"""
    found = cost(hlo)
    assert (found.bytes_between_slices, found.wire_bytes) == (4 * 8 * 4, 0)


def test_a_collective_in_pieces_of_one_chain_counts_once() -> None:
    piece = (
        'all-gather(%a), replica_groups={{0,1}}, dimensions={0}, frontend_attributes={chain_id="7"}'
    )
    hlo = f"""
ENTRY %main (a: f32[8]) -> f32[16] {{
  %a = f32[8]{{0}} parameter(0)
  %one = f32[16]{{0}} {piece}
  ROOT %two = f32[16]{{0}} {piece}
}}
"""
    assert cost(hlo).collective_bytes == {"all-gather": 64}


def test_arrays_outside_hbm_cost_no_traffic() -> None:
    hlo = """
ENTRY %main (a: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0} parameter(0)
  %b = f32[1024]{0:T(8,128)S(1)} negate(%a)
  ROOT %c = f32[1024]{0} negate(%b)
}
"""
    assert cost(hlo).hbm_bytes == 2 * 4096


def test_custom_calls_are_counted_by_the_function_given() -> None:
    hlo = """
ENTRY %main (a: f32[4,2]) -> f32[4,2] {
  %a = f32[4,2]{1,0} parameter(0)
  ROOT %kernel.1 = f32[4,2]{1,0} custom-call(%a), custom_call_target="k"
}
"""

    def flops(call: Instruction) -> float:
        assert (call.name, call.shapes[0].dims) == ("kernel.1", (4, 2))
        return 5.0

    assert cost(hlo, custom_call_flops=flops).flops == 5


def test_a_loop_whose_count_is_not_to_be_seen_is_refused() -> None:
    def until(x: Any) -> Any:
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100.0, lambda x: x * 2, x)

    with pytest.raises(ValueError, match="trip count"):
        cost(text(until, jnp.ones(4)))


def test_every_computation_of_a_real_program_is_found() -> None:
    hlo = text(lambda x: jnp.sum(jnp.sin(x) ** 2), np.ones(8, np.float32))
    computations, entry = parse(hlo)
    assert entry.startswith("main")
    assert sum(len(c.instructions) for c in computations.values()) == hlo.count(" = ")


def test_a_loop_in_larger_steps_runs_less_often() -> None:
    def pairs(x: Any, w: Any) -> Any:
        return jax.lax.while_loop(
            lambda state: state[0] < 9, lambda state: (state[0] + 2, state[1] @ w), (1, x)
        )[1]

    hlo = text(pairs, jnp.ones((8, N)), jnp.ones((N, N)))
    hlo = hlo.replace("known_trip_count", "forgotten")  # As from the TPU compiler.
    assert cost(hlo).flops == 4 * 2 * 8 * N * N  # At 1, 3, 5 and 7.
