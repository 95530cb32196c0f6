"""Tokens that are not in all loops (config.loop.routing): training equals a plain loop that takes
each row's chosen tokens out, gathered as masked; elsewhere no token knows what comes later."""

import functools
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    MESHES,
    distinct_tokens,
    init,
    layer_by_hand,
    random_rows,
    small_config,
    small_model,
    step_on_mesh,
)
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.config import validate
from looped_jax.cost.compiled import cost
from looped_jax.errors import UserError
from looped_jax.evaluation.held_out import row_sums
from looped_jax.inference.cache import cache_bytes, decode, prefill
from looped_jax.inference.policy import Policy
from looped_jax.models.flops import forward_flops, train_flops
from looped_jax.models.layers import LayerInputs, rope_angles
from looped_jax.models.loops.routing_expert import ExpertChoice, highest
from looped_jax.models.transformer import batch_forward, forward, logits
from looped_jax.training.job import make_job
from looped_jax.training.train_step import loss_and_grads

EXPERT, TOKEN = ("routing", "expert_choice"), ("routing", "token_choice")
PLAN, LOOPS = "1x1,1x3", 3
assert_close = functools.partial(helpers.assert_close, share=0.1)
ROWS = random_rows(rows=2)
# Rows are packed from two documents; the last row ends in padding, to which no loss belongs.
ROWS["segment_ids"][1, 7:] = 0
ROWS["loss_weights"][1, 7:] = 0.0
COUNT, LENGTH = ROWS["tokens"].shape


def model_of(kind: tuple[str, str], *others: tuple[str, str], **fields: Any) -> Any:
    fields = dict(selection_weight=0.3, balance_weight=0.7) | fields
    return small_model(PLAN, loop=(kind, *others), **fields)


def params_of(model: Any) -> Any:
    leaves, tree = jax.tree.flatten(init(model))
    rng = np.random.default_rng(0)
    return tree.unflatten([leaf + 0.3 * rng.normal(size=leaf.shape) for leaf in leaves])


def xent(z: Any, said: Any) -> Any:
    """Binary cross-entropy of logits."""
    return -jnp.where(said, jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z))


def objective_by_hand(
    model: Any, kind: str, params: Any, choice: dict[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    """What is minimised and the cross-entropy, row by row: the tokens that are in a loop are taken
    out of the row, go through the layers among themselves, and are put back. ``choice`` has them by
    row and loop; where it has none (of expert choice) they are chosen by sorting and kept in it."""
    config = model.config
    plain = small_model(PLAN).config
    total = ROWS["loss_weights"].sum()
    own, table = params["segment_1"], params["embed"]["embedding"]
    loss, added = 0.0, 0.0

    def layers(x: Any, at: Any, index: int, row: int) -> Any:
        """The segment's layers, once, on the tokens at these places of the row."""
        positions, ids = (ROWS[name][row][None, at] for name in ("positions", "segment_ids"))
        inputs = LayerInputs(rope_angles(config, positions), ids)
        stacked = params[f"segment_{index}"]["layers"]["layer"]
        for layer in range(config.plan.segments[index].layers):
            weights = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
            x = layer_by_hand(plain, weights, x[None], inputs)[0]
        return x

    for row in range(COUNT):
        everyone = np.arange(LENGTH)
        x = layers(table[ROWS["tokens"][row]] * config.d_model**0.5, everyone, 0, row)
        tokens = [t for t in range(LENGTH) if ROWS["segment_ids"][row, t] != 0]
        x0, candidates = x, list(range(LENGTH))
        if kind == "token_choice":
            z = x @ own["routing"]["weight"]
            p = jax.nn.softmax(z)
            z_loss = jnp.mean(jax.nn.logsumexp(z[np.asarray(tokens)], axis=-1) ** 2)
            added += 1e-5 * z_loss
        for loop in range(LOOPS):
            if kind == "expert_choice":
                z = x @ params["per_loop"]["segment_1"]["routing"]["weight"][loop]
                if (row, loop) not in choice:
                    places = max(1, int((LOOPS - loop) / LOOPS * LENGTH + 1e-9))
                    best = sorted(candidates, key=lambda t: (t not in tokens, -float(z[t]), t))
                    choice[row, loop] = sorted(best[:places])
                among = np.asarray([t for t in candidates if t in tokens])
                said = np.isin(among, choice[row, loop])
                added += config.selection_weight * jnp.mean(xent(z[among], said))
            else:
                depths = choice[row].tolist()
                choice[row, loop] = [t for t in range(LENGTH) if depths[t] >= loop]
                share = np.mean([depths[t] == loop for t in tokens])
                mean_p = jnp.mean(p[np.asarray(tokens), loop])
                added += config.balance_weight * LOOPS * share * mean_p
            candidates = choice[row, loop]
            if not candidates:
                continue
            at = np.asarray(candidates)
            made = layers(x[at], at, 1, row)
            if kind == "expert_choice":
                x = x.at[at].add(0.1 * jax.nn.sigmoid(z[at])[:, None] * made)
            else:
                out = x0[at] + p[at].max(-1, keepdims=True) * made
                ends = np.asarray([depths[t] == loop for t in candidates])[:, None]
                x = x.at[at].set(jnp.where(ends, out, made))
        x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + config.norm_eps)
        log_p = jax.nn.log_softmax(x * params["final_norm"]["scale"] @ table.T)
        right = log_p[everyone, ROWS["targets"][row]]
        loss -= jnp.sum(ROWS["loss_weights"][row] * right) / total
    return loss + added / COUNT, loss


def depths_of(model: Any, params: Any) -> Any:
    """The loops of each token that is in some, from 0, evaluating."""
    depth_BT = jax.jit(lambda p: batch_forward(model, p, ROWS).depth_BT)(params)
    return np.asarray(depth_BT) - 1


@functools.cache
def trained(kind: tuple[str, str], parts: int = 1, *others: tuple[str, str], **fields: Any) -> Any:
    """Metrics and gradients of a training step."""
    model = model_of(kind, *others, **fields)
    compute = jax.jit(lambda p: loss_and_grads(model, p, ROWS, parts=parts))
    return jax.device_get(compute(params_of(model)))


@pytest.mark.parametrize("kind", [EXPERT, TOKEN])
def test_training_equals_a_plain_loop_over_the_chosen_tokens(kind: tuple[str, str]) -> None:
    model = model_of(kind)
    params = params_of(model)
    choice: dict[Any, Any] = dict(enumerate(depths_of(model, params))) if kind == TOKEN else {}
    objective_by_hand(model, kind[1], params, choice)  # Chooses.
    sizes = [[len(choice[row, loop]) for loop in range(LOOPS)] for row in range(COUNT)]
    assert sizes == [[12, 8, 4]] * COUNT if kind == EXPERT else len(np.unique(sizes)) > 3
    expected = jax.value_and_grad(
        lambda p: objective_by_hand(model, kind[1], p, dict(choice)), has_aux=True
    )
    (objective, loss), grads = expected(params)
    metrics, found = trained(kind)
    np.testing.assert_allclose(metrics["objective"], objective, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["routing/loss"], objective - loss, rtol=1e-3)
    assert_close(found, grads)
    for loop in range(LOOPS):
        of_row = [
            np.mean(np.isin(np.flatnonzero(ROWS["segment_ids"][row]), choice[row, loop]))
            for row in range(COUNT)
        ]
        share = metrics[f"routing/loop_{loop + 1}/share"]
        np.testing.assert_allclose(share, np.mean(of_row), rtol=1e-5)


@pytest.mark.parametrize("kind", [EXPERT, TOKEN])
def test_a_batch_in_parts_has_the_same_loss_and_gradients(kind: tuple[str, str]) -> None:
    assert_close(trained(kind, COUNT), trained(kind, 1))


@pytest.mark.parametrize(
    ("others", "fields"),
    [
        ((), {}),
        ((("per_loop", "time"), ("injection", "concat")), dict(remat="loop", num_kv_heads=2)),
    ],
    ids=str,
)
def test_gathered_tokens_train_as_masked_ones(others: Any, fields: dict[str, Any]) -> None:
    masked = trained(EXPERT, 1, *others, **fields)
    assert_close(trained(EXPERT, 1, *others, **fields, routed_tokens="gathered"), masked, 2e-5)


def test_gathered_tokens_train_the_same_on_a_mesh() -> None:
    def step(**mesh: Any) -> Any:
        config = small_config(
            **dict(data__length=8, model__plan="1x1,1x3", model__vocab_size=16),
            **dict(loop__routing="expert_choice", loop__routed_tokens="gathered"),
            **mesh,
        )
        rows = random_rows(rows=16, length=8, vocab=10) | {"tokens": distinct_tokens(16, 8)}
        return step_on_mesh(config, rows)

    split = MESHES["2 data, 2 fsdp, 2 tensor, gathered"]
    assert_close(step(**split), step(mesh__data=1), 2e-5)


@pytest.mark.parametrize("kind", [EXPERT, TOKEN])
def test_no_token_knows_what_comes_later_unless_loops_choose_in_training(
    kind: tuple[str, str],
) -> None:
    model = model_of(kind)
    params = params_of(model)
    tokens = ROWS["tokens"]
    changed = tokens.copy()
    changed[:, 8:] = 3 + (tokens[:, 8:] + 4) % 13

    @functools.partial(jax.jit, static_argnums=1)
    def before(tokens: Any, train: bool) -> Any:
        return logits(model.config, forward(model, params, tokens, train=train))[:, :8]

    np.testing.assert_array_equal(before(tokens, False), before(changed, False))
    same = np.allclose(before(tokens, True), before(changed, True), rtol=1e-4)
    assert same == (kind == TOKEN)


@given(st.integers(1, 9), st.integers(0, 12), st.randoms(use_true_random=False))
def test_each_row_has_as_many_tokens_as_its_capacity(loops: int, padding: int, random: Any) -> None:
    rng = np.random.default_rng(random.randrange(1000))
    token_BT = np.arange(12) < 12 - padding * np.arange(2)[:, None]
    among_BT = np.ones((2, 12), bool)
    for loop in range(loops):
        z_BT = rng.integers(0, 3, size=(2, 12)).astype(np.float32)  # With equal ones.
        count = ExpertChoice.places(loop, loops, 12)
        assert count == max(1, 12 * (loops - loop) // loops)
        assert count == ExpertChoice.places(jnp.int32(loop), loops, 12)
        chosen_BT = np.asarray(highest(z_BT, among_BT, token_BT, count))
        np.testing.assert_array_equal(chosen_BT.sum(1), count)
        assert not np.any(chosen_BT & ~among_BT)
        for chosen, token, among in zip(chosen_BT, token_BT, among_BT, strict=True):
            # Padding is chosen only where all tokens are that could be.
            assert not np.any(chosen & ~token) or np.all(chosen[token & among])
        among_BT = chosen_BT


def test_decoding_rows_of_different_prompts_equals_the_full_pass() -> None:
    length_B, lengths = np.array([2, 5, 3], np.int32), (2, 5, 3)
    tokens = np.random.default_rng(1).integers(3, 16, size=(3, 9)).astype(np.int32)
    for kind in (EXPERT, TOKEN):
        model = model_of(kind)
        params = params_of(model)
        output = jax.jit(functools.partial(forward, model))(params, tokens)
        full, depth_BT = logits(model.config, output), np.asarray(output.depth_BT)
        assert len(np.unique(depth_BT)) > 2
        read = jax.jit(lambda p, rows, m=model: prefill(m, p, rows, length_B, 12))
        more_read = jax.jit(functools.partial(decode, model))
        found, cache = read(params, tokens[:, :5])
        assert cache.segments[0].used is None and cache.segments[1].used.shape == (LOOPS, 3, 12)
        sizes = [leaf.nbytes for leaf in jax.tree.leaves(cache.segments)]
        assert sum(sizes) == cache_bytes(model.config, 3, 12)
        for more in range(4):
            for row, length in enumerate(lengths):
                expected = full[row, length + more - 1]
                np.testing.assert_allclose(found[row], expected, rtol=2e-4, atol=2e-4)
            following = tokens[np.arange(3), length_B + more]
            found, cache = more_read(params, following, cache)
            np.testing.assert_array_equal(cache.depth_B, depth_BT[np.arange(3), length_B + more])


def test_evaluation_says_how_many_loops_tokens_took() -> None:
    model = model_of(EXPERT)
    params = params_of(model)
    sums = jax.jit(lambda p: row_sums(model, p, ROWS, None, 1))(params)
    depth_BT = np.asarray(depths_of(model, params)) + 1
    by_hand = [ROWS["loss_weights"][depth_BT == n].sum() for n in range(LOOPS + 1)]
    np.testing.assert_allclose(sums["depths"], by_hand)
    assert np.count_nonzero(by_hand) > 2


SHAPE = dict(vocab_size=512, d_model=512, d_ff=2048, num_heads=8, num_kv_heads=8, max_length=64)


def test_gathered_tokens_cost_what_loops_with_fewer_tokens_do() -> None:
    masked, gathered = (
        small_model("2x3", loop=(EXPERT,), routed_tokens=how, unroll="none", **SHAPE)
        for how in ("masked", "gathered")
    )
    rows = random_rows(rows=4, length=64, vocab=512)
    for model in (masked, gathered):
        step = jax.jit(lambda params, batch, model=model: loss_and_grads(model, params, batch))
        program = step.lower(init(model), rows).compile().as_text()
        promised = train_flops(model.config, 4, 64)
        assert cost(program).flops == pytest.approx(promised, rel=0.01)
    of_both = [train_flops(model.config, 4, 64) for model in (masked, gathered)]
    read_out = 3 * 2 * 512 * 512 * 4 * 64
    share = (of_both[1] - read_out) / (of_both[0] - read_out)
    # (L + 1) / 2L of the layers, and attention among fewer.
    assert share == pytest.approx(4 / 6, rel=0.03) and share < 127 / (3 * 64)
    # Evaluating all work is done.
    assert forward_flops(gathered.config, 4, 64) == forward_flops(masked.config, 4, 64)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(loop__gate="linear"), "in all loops: it needs config.loop.gate='none', not 'linear'"),
        (dict(loop__lanes="hyper"), "config.loop.lanes='one', not 'hyper'"),
        (dict(loop__last_norm="every_loop"), "config.loop.last_norm"),
        (dict(loop__state="zero", loop__injection="add"), "config.loop.state"),
        (dict(loop_loss__kind="weighted"), "config.loop_loss.kind"),
        (dict(counts__distribution="poisson", counts__most=4), "config.counts.distribution"),
        (dict(counts__gradient_loops=1), "config.counts.gradient_loops"),
        (
            dict(loop__routing="token_choice", loop__routed_tokens="gathered"),
            "takes a fixed number of tokens: it needs config.loop.routing='expert_choice', not",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_with_routing_is_refused(more: dict[str, Any], message: str) -> None:
    config = small_config(**{"loop__routing": "expert_choice", **more})
    with pytest.raises(UserError, match=message):
        validate(config)


def test_where_loops_and_caches_cannot_be_is_said() -> None:
    model = model_of(EXPERT).config
    for cache, exit in (("last", "none"), ("per_loop", "state:0.1")):
        with pytest.raises(UserError, match=r"with config\.loop\.routing"):
            Policy.parse(cache, exit).check(model, None)
    split = dict(mesh__data=1, mesh__sequence=2, data__length=8)
    gathered = dict(loop__routing="expert_choice", loop__routed_tokens="gathered")
    with pytest.raises(UserError, match=r"split over config\.mesh\.sequence=2 devices"):
        make_job(small_config(**split, **gathered))
    with pytest.raises(UserError, match="about one looped segment; plan 1x2,1x3 has 2"):
        make_job(small_config(model__plan="1x2,1x3", loop__routing="token_choice"))
