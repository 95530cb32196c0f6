"""Kinds of loops: each equals a plain `for`, on every mesh and with every way of execution."""

import dataclasses
import functools
import itertools
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from helpers import (
    MESHES,
    TWO_MESHES,
    assert_close,
    batch_logits,
    distinct_tokens,
    init,
    layer_by_hand,
    random_params,
    random_rows,
    small_config,
    small_model,
    step_on_mesh,
)
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.config import KEYS, default_config
from looped_jax.errors import UserError
from looped_jax.inference.cache import decode, prefill, verify
from looped_jax.models.layers import MLP, Attention, LayerInputs, norm, rope_angles
from looped_jax.models.loops import VARIANTS
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant, rows_of
from looped_jax.models.loops.injection_decay import DecayInput
from looped_jax.models.loops.segment import Wanted
from looped_jax.models.loops.state import noise
from looped_jax.models.transformer import batch_forward, check_loops
from looped_jax.parallel.mesh import make_mesh, mesh_context
from looped_jax.training.job import make_job
from looped_jax.training.state import parameter_axes
from looped_jax.training.train_step import loss_and_grads

ROWS = random_rows(rows=3)
ADD, EMBEDDING = ("injection", "add"), ("per_loop", "embedding")
# Every variant by itself, and all options together so often that each variant is there once.
NEEDS = {"state": (ADD,)}  # Another option, without which it makes no sense.
ALONE = {
    f"{option}={name}": (*NEEDS.get(option, ()), (option, name))
    for option, of in VARIANTS.items()
    for name in of
}
MOST = max(map(len, VARIANTS.values()))


def together(options: Iterable[str], i: int) -> tuple[tuple[str, str], ...]:
    return tuple((option, list(VARIANTS[option])[i % len(VARIANTS[option])]) for option in options)


# With loops of two speeds, and with tokens that are not in all loops, go some options only.
ALIKE = [option for option in VARIANTS if option not in ("nest", "routing", "messages")]
TOGETHER = {f"together {i}": together(ALIKE, i) for i in range(MOST)}
ROUTED = {f"routed {i}": together(("routing", "injection", "per_loop"), i) for i in range(3)}
NESTED = {
    "nested two": (("nest", "two_stacks"), ("injection", "concat"), EMBEDDING),
    "nested one": (("nest", "one_stack"), ("state", "noise"), ADD, ("per_loop", "lora")),
}
TOLD = {
    "told": (("messages", "blocks"), ("gate", "linear"), ("last_norm", "every_loop"), EMBEDDING)
}
KINDS = {**ALONE, **TOGETHER, **NESTED, **ROUTED, **TOLD}
FIXED = "routing=token_choice"  # Has the plan's loops only.


def in_turn(cases: Iterable[Any], kinds: Iterable[str] = TOGETHER) -> list[tuple[Any, str]]:
    """Each case with one of TOGETHER: all pairs would take long."""
    return list(zip(cases, itertools.cycle(kinds)))


PLAN = "1x1,2x3"


def model_of(kind: str, plan: str = PLAN, **fields: Any) -> Any:
    """With cycles of three loops, where it has cycles, and messages of every layer."""
    fields = {"low_loops": 2, "message_block": 1, "message_rank": 3, **fields}
    return small_model(plan, loop=KINDS[kind], **fields)


def with_lora(weights: Any, thin: Any) -> Any:
    """A layer's weights with W + A B for W, as they are stored, [in …, out …]."""
    merged: Any = {}
    for name, of in weights.items():
        if "lora_a" in thin.get(name, {}):
            product = jnp.tensordot(thin[name]["lora_a"], thin[name]["lora_b"], axes=1)
            merged[name] = {**of, "kernel": of["kernel"] + product}
        else:
            merged[name] = with_lora(of, thin[name]) if name in thin else of
    return merged


def time_by_hand(part: Any, loop: int, loops: int) -> jax.Array:
    frequencies = np.asarray([10000 ** (-i / 128) for i in range(128)])

    def mlp(name: str, at: float) -> jax.Array:
        x = np.concatenate([np.cos(at * frequencies), np.sin(at * frequencies)])
        for of in (f"{name}_in", f"{name}_out"):
            x = x @ part[of]["kernel"] + part[of]["bias"]
            x = jax.nn.silu(x) if of.endswith("in") else x
        return x

    return mlp("time", loop / loops) + mlp("step", 1 / loops)


def timed_layer_by_hand(config: Any, weights: Any, x: Any, inputs: Any, time: Any) -> Any:
    """Of a layer with norms in front only."""
    told = jax.nn.silu(time) @ weights["modulation"]["kernel"] + weights["modulation"]["bias"]
    gates, scales = jnp.split(told, 2)
    blocks = {"attention": Attention(config), "mlp": MLP(config)}
    for (name, block), gate, scale in zip(
        blocks.items(), jnp.split(gates, 2), jnp.split(scales, 2), strict=True
    ):
        given = norm(config, "n").apply({"params": weights[f"{name}_norm"]}, x) * (1 + scale)
        arguments = (given, inputs) if name == "attention" else (given,)
        made: Any = block.apply({"params": weights[name]}, *arguments)
        x = x + gate * (made[0] if name == "attention" else made)
    return x


def told_by_hand(config: Any, weights: Any, x: Any, inputs: Any, said: Any) -> Any:
    """A layer whose inputs are mixed with messages, if there are any."""

    def root(x: Any) -> Any:
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_eps)

    def told(reader: str, x: Any) -> Any:
        if not said:
            return x
        scaled = [root(of) for of in said]
        scores = jnp.stack([of @ weights[f"{reader}_asks"] / config.d_model**0.5 for of in scaled])
        message = sum(
            p[..., None] * of for p, of in zip(jax.nn.softmax(scores, 0), scaled, strict=True)
        )
        z = jnp.concatenate([root(x), root(message)], -1) @ weights[f"{reader}_down"]["kernel"]
        forget, take = (
            jnp.tanh(z @ weights[f"{reader}_{g}"]["kernel"]) for g in ("forget", "take")
        )
        return (1 - forget) * x + take * message

    def normed(block: str, x: Any) -> Any:
        return norm(config, "n").apply({"params": weights[f"{block}_norm"]}, x)

    read = tuple(normed("attention", told(of, x)) for of in ("query", "key", "value"))
    made: Any = Attention(config).apply({"params": weights["attention"]}, read, inputs)
    x = x + made[0]
    return x + MLP(config).apply({"params": weights["mlp"]}, normed("mlp", told("mlp", x)))


def by_hand(model: Any, params: Any, rows: dict[str, Any], loops: int | None = None) -> jax.Array:
    """The same network in plain Python: a `for` over segments, loops and layers, with lines for
    each variant."""
    config = model.config
    plain = dataclasses.replace(config, loop=())
    table = params["embed"]["embedding"]
    x = table[rows["tokens"]] * config.d_model**0.5
    inputs = LayerInputs(rope_angles(config, rows["positions"]), rows["segment_ids"])

    def normed(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * scale

    def row(loop: int, rows: jax.Array) -> jax.Array:
        beyond = rows[-1] if config.beyond_trained == "last" else rows.mean(0)
        return rows[loop] if loop < len(rows) else beyond

    def noise_at(position: int) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), position)
        return (2 / 5) ** 0.5 * jax.random.truncated_normal(own, -3.0, 3.0, (config.d_model,))

    for index, segment in enumerate(config.plan.with_loops(loops).segments):
        here = inputs
        own = params[f"segment_{index}"]
        chosen = dict(config.loop) if segment.trained_loops > 1 else {}
        x0 = x
        of_loops = params.get("per_loop", {}).get(f"segment_{index}", {})
        if chosen.get("state") == "noise":  # Of the position alone.
            x = jnp.stack([jnp.stack([*map(noise_at, row)]) for row in rows["positions"]])
        if chosen.get("state") == "zero":
            x = 0 * x
        lanes = [x] * {"hyper": 2, "hyperloop": 4}.get(chosen.get("lanes", ""), 1)
        halted, mixed = jnp.zeros(x.shape[:2]), 0 * x  # Sums of halting probabilities, of shares.
        nest, low, high = chosen.get("nest"), 0 * x, x
        if nest:
            low = low + jax.lax.stop_gradient(own["nest"]["low"])
        said: list[Any] = []
        active = jnp.ones(x.shape[:2], bool)
        if chosen.get("routing") == "token_choice":
            p_depths = jax.nn.softmax(x @ own["routing"]["weight"])
        for loop in range(segment.loops):
            before, lanes_before = x, lanes
            is_high = (loop + 1) % (config.low_loops + 1) == 0
            second = nest == "two_stacks" and is_high
            stacked = own["more_layers_0" if second else "layers"]["layer"]
            if nest:
                x = low + high
            of_loop = jax.tree.map(functools.partial(row, loop), of_loops)
            if "messages" in chosen:
                x, heard, said = x0, said, []
            if chosen.get("routing") == "expert_choice":
                p_chosen = jax.nn.sigmoid(x @ of_loop["routing"]["weight"])
                active = active & (p_chosen > 0.5)
            if chosen.get("routing") == "token_choice":
                active = p_depths.argmax(-1) >= loop
            if "routing" in chosen:
                documents = jnp.where(active, rows["segment_ids"], -1)
                here = LayerInputs(inputs.rotation, documents)
            if chosen.get("lanes") == "hyper":
                part = of_loop["lanes"]
                x = sum(share * lane for share, lane in zip(part["read"], lanes, strict=True))
            if chosen.get("lanes") == "hyperloop":
                part = of_loop["lanes"]
                z = normed(jnp.concatenate(lanes, axis=-1), 1.0)
                read, write, keep = (
                    jax.nn.sigmoid(part[f"{of}_factor"] * z @ part[of] + part[f"{of}_bias"])
                    for of in ("read", "write", "keep")
                )
                x = sum(read[..., n : n + 1] * lane for n, lane in enumerate(lanes))
            if chosen.get("injection") == "add":
                x = x + x0
            if chosen.get("injection") == "unit_add":
                x = sum(
                    of / jnp.sqrt(jnp.sum(of**2, axis=-1, keepdims=True) + config.norm_eps)
                    for of in (x, x0)
                )
            if chosen.get("injection") == "concat":
                top, bottom = jnp.split(own["injection"]["kernel"], 2)
                x = x @ top + x0 @ bottom
            if chosen.get("injection") == "decay":
                part = own["injection"]
                step = jnp.log1p(jnp.exp(part["step"]))
                flows = normed(x0, part["norm"]["scale"]) @ part["input"]
                x = jnp.exp(-step * jnp.exp(part["rate"])) * x + step * flows
            if chosen.get("per_loop") == "embedding":
                x = x + of_loop["per_loop"]["vector"]
            entered = x
            for layer in range(segment.layers):
                weights = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
                if "messages" in chosen:
                    said += [x] if layer and layer % config.message_block == 0 else []
                    x = told_by_hand(plain, weights, x, here, heard)
                    continue
                if chosen.get("per_loop") == "time":
                    time = time_by_hand(own["per_loop"], loop, segment.loops)
                    x = timed_layer_by_hand(plain, weights, x, here, time)
                    continue
                if chosen.get("per_loop") == "lora":
                    thin = jax.tree.map(lambda leaf, layer=layer: leaf[layer], of_loop["layers"])
                    weights = with_lora(weights, thin["layer"])
                x = layer_by_hand(plain, weights, x, here)
            if chosen.get("per_loop") == "step":
                x = entered + of_loop["per_loop"]["size"] * (x - entered)
            if chosen.get("lanes") == "hyper":
                part = of_loop["lanes"]
                made = normed(x, own["lanes"]["norm"]["scale"])
                lanes = [
                    part["mix"][n, 0] * lanes[0] + part["mix"][n, 1] * lanes[1] + share * made
                    for n, share in enumerate(part["write"])
                ]
                x = sum(lanes)
            if chosen.get("lanes") == "hyperloop":
                made = x + of_loop["lanes"]["vector"]
                lanes = [
                    keep[..., n : n + 1] * lane + 2 * write[..., n : n + 1] * made
                    for n, lane in enumerate(lanes)
                ]
                x = sum(lanes) / 4
            if chosen.get("last_norm") == "every_loop":
                x = normed(x, own["last_norm"]["norm"]["scale"])
            if nest:
                x = normed(x, own["nest"]["norms_1" if second else "norms_0"]["scale"])
                low, high = (low, x) if is_high else (x, high)
            said.append(x)
            if chosen.get("gate") == "act":
                p = jax.nn.sigmoid(before @ own["gate"]["weight"] + own["gate"]["bias"])
                is_last = (loop == segment.loops - 1) | (halted + p > 0.99)
                runs = (halted < 1)[..., None]
                x = jnp.where(runs, x, before)
                lanes = [jnp.where(runs, *pair) for pair in zip(lanes, lanes_before, strict=True)]
                share = jnp.where(halted < 1, jnp.where(is_last, 1 - halted, p), 0.0)
                mixed = mixed + share[..., None] * x
                halted = jnp.where(is_last, 1.0, halted + share)
            if chosen.get("routing") == "expert_choice":
                x = jnp.where(active[..., None], before + 0.1 * p_chosen[..., None] * x, before)
            if chosen.get("routing") == "token_choice":
                out = x0 + p_depths.max(-1, keepdims=True) * x
                ends = p_depths.argmax(-1, keepdims=True) == loop
                x = jnp.where(ends, out, jnp.where(active[..., None], x, before))
        if chosen.get("gate") == "act":
            x = mixed
        if chosen.get("injection") == "decay":
            x = x @ own["injection"]["output"]
    if not {"last_norm", "nest"} & set(chosen):
        x = normed(x, params["final_norm"]["scale"])
    return x @ table.T


@functools.cache
def value_and_grad(kind: str, loops: int | None = None, **fields: Any) -> Any:
    model = model_of(kind, **fields)
    forward = by_hand if fields.get("unroll") == "by hand" else batch_logits
    loss = lambda p: jnp.sum(jnp.sin(forward(model, p, ROWS, loops)))  # noqa: E731
    compute = jax.value_and_grad(loss)
    # A plain `for` takes longer to compile than to run.
    compute = compute if forward is by_hand else jax.jit(compute)
    return compute(random_params(model_of(kind)))


@pytest.mark.parametrize(
    ("kind", "loops"),
    [(k, 6 if k.startswith("nest") else None if k == FIXED else 4) for k in (*ALONE, *NESTED)]
    + [(k, n) for n, k in in_turn((None, 2, None, 4))]
    + [("routed 0", 2), ("routed 1", None), ("routed 2", 5), ("told", 5)],
)
def test_a_variant_equals_a_plain_for_at_any_loop_count(kind: str, loops: int | None) -> None:
    assert_close(
        value_and_grad(kind, loops, unroll="none"), value_and_grad(kind, loops, unroll="by hand")
    )


EXECUTIONS = [
    {"unroll": "full"},
    *({"remat": how} for how in ("layer", "loop", "dots")),
    {"remat": "names", "saved_names": ("query", "mlp_up")},
]


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        *in_turn(EXECUTIONS),
        *in_turn(EXECUTIONS[:3], NESTED),
        *zip(EXECUTIONS[:3], ROUTED, strict=True),
        *in_turn(EXECUTIONS[2:4], TOLD),
    ],
    ids=str,
)
def test_execution_does_not_change_a_variant(how: dict[str, Any], kind: str) -> None:
    assert_close(value_and_grad(kind, **how), value_and_grad(kind, unroll="none"))


@pytest.mark.exact_bits
def test_a_loop_embedding_begins_as_the_plain_loop() -> None:
    model = small_model(PLAN, loop=(EMBEDDING,))
    params = init(model)
    plain = small_model(PLAN)
    shared = {name: tree for name, tree in params.items() if name != "per_loop"}
    jax.tree.map(np.testing.assert_array_equal, shared, init(plain))
    assert jax.tree.map(jnp.shape, params["per_loop"]) == {
        "segment_1": {"per_loop": {"vector": (3, 16)}}  # Segment 0 is not looped.
    }
    np.testing.assert_array_equal(
        batch_logits(model, params, ROWS), batch_logits(plain, shared, ROWS)
    )


@given(st.floats(-4, 3), st.floats(-6, 6))
def test_parcaes_decay_lies_between_0_and_1_whatever_is_learned(rate: float, step: float) -> None:
    part = DecayInput(small_model("2x3").config)
    params = {"rate": jnp.full(16, rate), "step": jnp.full(16, step)}
    params |= {"input": jnp.eye(16), "output": jnp.eye(16)}
    a_D = part.apply({"params": params}, method="decay_D")
    assert np.all((a_D >= 0) & (a_D < 1))


def test_parcaes_decay_begins_at_the_root_of_a_fifth() -> None:
    part = DecayInput(small_model("2x3").config)
    params = init(small_model("2x3", loop=(("injection", "decay"),)))["segment_0"]["injection"]
    a_D = part.apply({"params": params}, method="decay_D")
    np.testing.assert_allclose(a_D, 0.2**0.5, rtol=1e-6)


def test_noise_has_the_published_size_and_differs_by_row_place_and_step() -> None:
    drawn = noise(jax.random.key(1), jnp.arange(8)[None].repeat(64, 0), 32, True)
    assert float(jnp.std(drawn)) == pytest.approx((2 / 5) ** 0.5, rel=0.03)  # Cut at 3 deviations.
    assert float(jnp.max(jnp.abs(drawn))) <= 3 * (2 / 5) ** 0.5
    assert len(np.unique(np.asarray(drawn)[..., 0])) == 64 * 8
    other = noise(jax.random.key(2), jnp.arange(8)[None], 32, False)
    assert not np.any(other == drawn[:1])


def test_loops_beyond_the_trained_ones_follow_the_rule() -> None:
    rows = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(rows_of(rows, 2, "last"), rows[:2])
    np.testing.assert_array_equal(rows_of(rows, 5, "last"), rows[[0, 1, 2, 2, 2]])
    np.testing.assert_array_equal(rows_of(rows, 4, "mean"), [*rows, [2.0, 3.0]])
    averaging = small_model(PLAN, loop=KINDS["together 0"], beyond_trained="mean")
    params = random_params(averaging)
    assert_close(batch_logits(averaging, params, ROWS, 5), by_hand(averaging, params, ROWS, 5))


@pytest.mark.parametrize("kind", ALONE)
def test_more_loops_are_refused_exactly_where_parameters_are_missing(kind: str) -> None:
    model = model_of(kind, "2x3", beyond_trained="refuse")
    if kind == FIXED:
        for loops in (2, 4):
            with pytest.raises(UserError, match=f"loops={loops}: .* choose among the 3 loops"):
                check_loops(model, loops)
        return
    if kind.startswith("nest"):
        check_loops(model, 6)
        return
    check_loops(model, 2)
    if "per_loop" in jax.eval_shape(lambda: init(model)):
        with pytest.raises(UserError, match="loops=4: the model has parameters for 3 loops"):
            check_loops(model, 4)
    else:
        check_loops(model, 4)


WIDTHS = dict(
    data__length=8,
    model__plan="1x2",
    model__vocab_size=16,
    train__batch_size=16,
    loop__low_loops=1,
)


def options(kind: str) -> dict[str, str]:
    return {f"loop__{option}": name for option, name in KINDS[kind]}


@functools.cache
def one_step(name: str, kind: str) -> tuple[Any, Any]:
    rows = random_rows(rows=16, length=8, vocab=10)
    if "routing" in dict(KINDS[kind]):  # Of equal tokens the last bit would choose.
        rows["tokens"] = distinct_tokens(16, 8)
    return step_on_mesh(small_config(**WIDTHS, **options(kind), **MESHES[name]), rows)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *in_turn(("8 data", "8 fsdp, gathered", *TWO_MESHES)),
        *in_turn(TWO_MESHES, NESTED),
        *in_turn(TWO_MESHES, ROUTED),
        (TWO_MESHES[0], "told"),
    ],
)
def test_loss_and_gradients_are_the_same_on_every_mesh(name: str, kind: str) -> None:
    # Gates of layers leave little to norm in a state of zeros: parameters that change in their last
    # bits move gradients by 1e-4.
    tolerance = 5e-4 if ("per_loop", "time") in KINDS[kind] else 2e-5
    assert_close(one_step(name, kind), one_step("1", kind), tolerance)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        *in_turn([(None, "last"), (1, "last"), (5, "mean")]),
        *in_turn([(6, "last"), (None, "last")], NESTED),
        *(((None, "last"), "routed 1"), ((5, "mean"), "routed 2"), ((5, "last"), "told")),
    ],
    ids=str,
)
def test_decoding_equals_the_full_pass(asked: tuple[int | None, str], kind: str) -> None:
    loops, beyond = asked
    model = model_of(kind, beyond_trained=beyond)
    params = random_params(model)
    tokens = np.random.default_rng(0).integers(3, 16, size=(2, 8)).astype(np.int32)
    rows = {"tokens": tokens, "segment_ids": None, "positions": None}
    full = jax.jit(lambda p: batch_logits(model, p, rows, loops))(params)
    read = jax.jit(lambda p: prefill(model, p, tokens[:, :4], np.full(2, 4), 10, loops))
    step = jax.jit(lambda p, token_B, cache: decode(model, p, token_B, cache, loops))
    logits, cache = read(params)
    for i in range(4, 6):
        np.testing.assert_allclose(logits, full[:, i - 1], rtol=2e-4, atol=2e-5)
        logits, cache = step(params, tokens[:, i], cache)
    more = jax.jit(lambda p, tokens_BT, cache: verify(model, p, tokens_BT, cache, loops))
    together, _ = more(params, tokens[:, 6:], cache)
    np.testing.assert_allclose(together, full[:, 6:], rtol=2e-4, atol=2e-5)


def test_per_loop_parameters_are_sharded_and_optimised_as_matrices() -> None:
    config = small_config(
        **WIDTHS,
        loop__per_loop="embedding",
        optimizer__name="adafactor",
        mesh__data=1,
        mesh__fsdp=8,
    )
    job = make_job(config)
    path = ("per_loop", "segment_0", "per_loop", "vector")
    names = functools.reduce(lambda tree, key: tree[key], path, parameter_axes(job.model))
    assert tuple(names) == ("loops", "embed")
    vector = functools.reduce(lambda tree, key: tree[key], path, job.layout.abstract.params)
    assert vector.sharding.shard_shape(vector.shape) == (2, 2)


def test_every_variant_can_be_chosen_and_no_other() -> None:
    for option, variants in VARIANTS.items():
        known = KEYS[f"loop.{option}"]
        assert known.choices == (known.default, *variants)
    others = {"beyond_trained", "lora_rank", "norms", "low_loops", "low_gradient_loops"}
    others |= {
        "message_block",
        "message_rank",
        "selection_weight",
        "balance_weight",
        "routed_tokens",
    }
    assert set(VARIANTS) == set(default_config().loop) - others


class Noisy(LoopVariant):
    """Begins at its input plus noise that it also says, loop by loop, and adds a number at the end:
    all steps that a variant can replace."""

    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        noise = jax.random.normal(self.make_rng("loop"), state.x_BTD.shape)
        return dataclasses.replace(state, x_BTD=state.x_BTD + noise, extra={"noise": noise})

    def leave(self, state: LoopState, context: LoopContext, loop: Any) -> LoopState:
        return dataclasses.replace(state, extra={"noise": state.extra["noise"] + 1})

    def emit(self, state: LoopState, loop: Any) -> Any:
        return state.extra["noise"][..., 0]

    def finish(self, state: LoopState, context: LoopContext) -> LoopState:
        return dataclasses.replace(state, x_BTD=state.x_BTD + 1)


def test_a_variant_can_draw_carry_and_emit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS["injection"], "noisy", Noisy)
    model = small_model("2x3", loop=(("injection", "noisy"),))
    params = init(small_model("2x3"))
    wanted = Wanted(states=True, emitted=True)
    outputs = [
        batch_forward(model, params, ROWS, key=jax.random.key(seed), wanted=wanted)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(outputs[0].x_BTD, outputs[1].x_BTD)
    assert not np.allclose(outputs[0].x_BTD, outputs[2].x_BTD)
    (segment,) = outputs[0].segments
    assert segment.kept is None
    assert segment.x_BTD.shape == (3, 3, 12, 16)
    emitted = segment.emitted["injection"]
    np.testing.assert_allclose(emitted[2] - emitted[0], 2.0, rtol=1e-5)
    final = norm(model.config, "n").apply({"params": params["final_norm"]}, segment.x_BTD[-1] + 1)
    np.testing.assert_allclose(outputs[0].x_BTD, final, rtol=1e-5, atol=1e-5)


class Telling(LoopVariant):
    """Multiplies by a number per loop, carries and says the stream's first entry."""

    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        return dataclasses.replace(state, extra={"first": state.x_BTD[:, 0, 0]})

    @nn.compact
    def leave(self, state: LoopState, context: LoopContext, loop: Any) -> LoopState:
        number = self.per_loop("number", nn.initializers.ones_init(), ())
        assert number.dtype == jnp.float32
        x_BTD = state.x_BTD * number.astype(state.x_BTD.dtype)
        return dataclasses.replace(state, x_BTD=x_BTD, extra={"first": x_BTD[:, 0, 0]})

    def emit(self, state: LoopState, loop: Any) -> Any:
        return state.extra["first"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_gathered_once_change_nothing_for_a_variant(
    monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    monkeypatch.setitem(VARIANTS["injection"], "telling", Telling)
    config = small_config(mesh__data=1, mesh__fsdp=8)
    rows = random_rows(rows=8)

    def passed(gather: str) -> Any:
        model = small_model("2x3", loop=(("injection", "telling"),), gather=gather, dtype=dtype)
        params = random_params(model)

        def run(params: Any) -> Any:
            output = batch_forward(model, params, rows, wanted=Wanted(emitted=True))
            return output.x_BTD, output.segments[0].emitted["injection"]

        with mesh_context(make_mesh(config), config.mesh.rules, dtype):
            return jax.device_get(jax.jit(run)(params))

    (x_BTD, first_LB), expected = passed("segment"), passed("layer")
    assert first_LB.shape == (3, 8)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.15  # Of a stream of 4 or so, 8 bits.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a.astype(float), b.astype(float), rtol=tolerance, atol=tolerance
        ),
        (x_BTD, first_LB),
        expected,
    )


def test_what_a_training_step_draws_follows_from_seed_step_and_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(VARIANTS["injection"], "noisy", Noisy)
    model = small_model("1x2", loop=(("injection", "noisy"),))
    params = init(small_model("1x2"))
    rows = random_rows(rows=4)
    twice = {
        name: np.concatenate([value[:2], value[:2]])[[0, 2, 1, 3]] for name, value in rows.items()
    }

    def loss(key: int, parts: int) -> float:
        found = jax.jit(
            lambda p, b: loss_and_grads(model, p, b, parts=parts, key=jax.random.key(key))
        )
        return float(found(params, twice)[0]["loss"])

    assert loss(0, 1) == loss(0, 1) != loss(1, 1)
    assert np.isfinite(loss(0, 2)) and loss(0, 2) != loss(1, 2)


def example_of_the_docs() -> str:
    page = (ROOT / "docs" / "loop_variants.md").read_text()
    return textwrap.dedent(page.split("```python\n")[1].split("```")[0])


def test_the_variant_of_the_docs_is_typed_as_the_project_is(tmp_path: pathlib.Path) -> None:
    (tmp_path / "scalar_gate.py").write_text(example_of_the_docs())
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml"]
    done = subprocess.run(
        [*command, str(tmp_path / "scalar_gate.py")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_variant_of_the_docs_works(monkeypatch: pytest.MonkeyPatch) -> None:
    code = example_of_the_docs()
    made: dict[str, Any] = {}
    exec(code, made)  # The page's own text.
    monkeypatch.setitem(VARIANTS, "share", {"scalar": made["ScalarGate"]})
    model = small_model("2x3", loop=(("share", "scalar"), ADD))
    plain = small_model("2x3", loop=(ADD,))
    params = init(model)
    shared = {name: tree for name, tree in params.items() if name != "per_loop"}
    closed = jax.tree.map(jnp.zeros_like, params["per_loop"])
    assert jax.tree.map(jnp.shape, closed) == {"segment_0": {"share": {"gate": (3,)}}}
    logits = batch_logits(plain, shared, ROWS)
    np.testing.assert_allclose(batch_logits(model, params, ROWS), logits, rtol=1e-4, atol=1e-5)
    of_nothing = batch_forward(model, {**shared, "per_loop": closed}, ROWS).x_BTD
    x0_BTD = shared["embed"]["embedding"][ROWS["tokens"]] * 4.0  # The root of D = 16.
    # Each of three loops adds the input before the gate remembers the stream.
    final = norm(model.config, "n").apply({"params": shared["final_norm"]}, 4 * x0_BTD)
    np.testing.assert_allclose(of_nothing, final, rtol=1e-4, atol=1e-5)
