"""Cache policies and exits: what is decoded is what a plain `for` over tokens, loops and layers
says, one row at a time."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from helpers import init, small_config, small_model, token_logits

from looped_jax.errors import UserError
from looped_jax.inference.cache import cache_bytes, decode, prefill
from looped_jax.inference.generator import Generator
from looped_jax.inference.policy import Policy
from looped_jax.models.layers import KeyValues, Layer, LayerInputs, norm, rope_angles
from looped_jax.models.loops.exits import ExitRule
from looped_jax.models.loops.gate import exit_log_p
from looped_jax.models.loops.segment import Wanted
from looped_jax.models.transformer import forward, logits
from looped_jax.parallel.mesh import make_mesh

LENGTHS = np.array([3, 6, 1], np.int32)
MORE = 4
TOKENS = np.random.default_rng(0).integers(3, 16, size=(3, 12)).astype(np.int32)
MODEL = small_model("1x1,1x4,1x1", num_kv_heads=2, loop=(("gate", "linear"),))
LOOPED = 1
# Cache, exit; thresholds between what the tokens have.
CASES = [
    ("last", "none"),
    ("mean", "none"),
    ("first", "none"),
    ("ring:3", "none"),
    ("per_loop", "cdf:0.6"),
    ("ring:2", "state:0.7:2"),
    ("mean", "kl:0.2"),
    ("last", "cdf:0.6"),
]


@pytest.fixture(scope="module")
def params() -> Any:
    leaves, tree = jax.tree.flatten(init(MODEL))
    rng = np.random.default_rng(0)
    return tree.unflatten([leaf + 0.3 * rng.normal(size=leaf.shape) for leaf in leaves])


def depth_by_hand(exit: str, gates: Any, states: Any, log_ps: Any) -> int:
    """Of one token: gates and log p of each loop, states with the first one's input in front."""
    loops = len(gates)
    name, *numbers = exit.split(":")
    if name == "none":
        return loops
    least = int(numbers[1]) if len(numbers) > 1 else 1
    for t in range(1, loops + 1):
        stop = [1 / (1 + np.exp(-gate)) for gate in gates[:t]]
        if name == "cdf":
            p = [stop[j] * np.prod([1 - s for s in stop[:j]]) for j in range(t)]
            ends = sum(p) >= float(numbers[0])
        elif name == "state":
            change = np.linalg.norm(states[t] - states[t - 1]) / np.linalg.norm(states[t])
            ends = change < float(numbers[0])
        else:
            before = log_ps[t - 2] if t > 1 else np.full(16, -np.log(16))
            ends = np.sum(np.exp(before) * (before - log_ps[t - 1])) < float(numbers[0])
        if ends and t >= least:
            return t
    return loops


def kept_by_hand(cache: str, loops: list[Any]) -> list[Any]:
    """Of what a token left in each loop that it ran, all slots."""
    if cache == "per_loop":
        return loops + [loops[-1]] * (4 - len(loops))
    if cache == "mean":
        return [np.mean(loops, axis=0)]
    if cache == "first":
        return [loops[0]]
    slots = 1 if cache == "last" else int(cache[-1])
    kept = [loops[-1]] * slots
    for t, of in enumerate(loops):
        kept[t % slots] = of
    return kept


@jax.jit
def one_layer(params: Any, x: Any, inputs: Any) -> Any:
    return Layer(MODEL.config, True).apply({"params": params}, x, inputs, (0, 0))


class ByHand:
    """Reads one row; of each segment it has [S tokens][slots] keys and values."""

    def __init__(self, params: Any, cache: str, exit: str):
        self.params, self.cache, self.exit = params, cache, exit
        self.past: list[list[Any]] = [[], [], []]

    def block(self, index: int, slot: int, x: Any, inputs: Any) -> tuple[Any, Any]:
        """One loop of a segment; what it left, [T][2, G, K]."""
        past = self.past[index]
        if past:
            # Padded, or every length would compile.
            pad = np.zeros((12 - len(past), 2, 2, 4), np.float32)
            kv = np.concatenate([np.stack([slots[slot] for slots in past]), pad])
            k, v = (kv[:, i].swapaxes(0, 1)[None, None, None] for i in (0, 1))
            seen = (np.arange(12) < len(past))[None]
            inputs = inputs.replace(cache=KeyValues(k, v), seen_BS=seen)
        layer = jax.tree.map(lambda a: a[0], self.params[f"segment_{index}"]["layers"]["layer"])
        x, kept = one_layer(layer, x, inputs)
        kv = np.stack([kept.k[0], kept.v[0]])  # [2, G, T, K]
        return x, list(kv.transpose(2, 0, 1, 3))

    def after(self, x: Any, inputs: Any) -> tuple[Any, Any]:
        """logits of what follows the looped segment, and what the last one left."""
        x, kept = self.block(2, 0, x, inputs)
        x = norm(MODEL.config, None).apply({"params": self.params["final_norm"]}, x)
        return np.asarray(x @ self.params["embed"]["embedding"].T), kept

    def read(self, tokens: np.ndarray, first: int) -> tuple[np.ndarray, int]:
        """logits after the last of the tokens, and the loops it took."""
        positions = first + np.arange(len(tokens))[None]
        inputs = LayerInputs(rope_angles(MODEL.config, positions))
        x = self.params["embed"]["embedding"][tokens[None]] * 4.0  # sqrt(16)
        x, before = self.block(0, 0, x, inputs)
        states, loops = [np.asarray(x)], []
        for t in range(4):
            x, kept = self.block(LOOPED, t % max(1, self.slots()), x, inputs)
            states.append(np.asarray(x))
            loops.append(kept)
        gate = self.params["segment_1"]["gate"]
        gates = [h[0] @ gate["weight"] + gate["bias"] for h in states[1:]]
        log_ps = [jax.nn.log_softmax(self.after(h, inputs)[0][0]) for h in states[1:]]
        depths = [
            depth_by_hand(self.exit, *(np.asarray(a)[:, i] for a in (gates, _rows(states), log_ps)))
            for i in range(len(tokens))
        ]
        chosen = np.stack([states[n][:, i] for i, n in enumerate(depths)], axis=1)
        logits, last = self.after(chosen, inputs)
        ran = [4] * len(tokens) if len(tokens) > 1 or first == 0 else depths
        for i in range(len(tokens)):
            self.past[0].append([before[i]])
            self.past[1].append(kept_by_hand(self.cache, [kept[i] for kept in loops[: ran[i]]]))
            self.past[2].append([last[i]])
        return logits[0, -1], depths[-1]

    def slots(self) -> int:
        return len(self.past[1][0]) if self.past[1] else 1


def _rows(states: list[Any]) -> list[Any]:
    return [state[0] for state in states]


def decoded(params: Any, policy: Policy) -> tuple[list[Any], list[Any]]:
    """logits_BV and depth_B after the prompts and after each further token."""
    read = jax.jit(lambda p, t, n: prefill(MODEL, p, t, n, 12, policy=policy))
    step = jax.jit(lambda p, t, c: decode(MODEL, p, t, c, policy=policy))
    logits, cache = read(params, TOKENS[:, :6], LENGTHS)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.segments))
    assert size == cache_bytes(MODEL.config, 3, 12, policy=policy)
    found = [(logits, cache.depth_B)]
    for i in range(MORE):
        logits, cache = step(params, TOKENS[np.arange(3), LENGTHS + i], cache)
        found.append((logits, cache.depth_B))
    return [logits for logits, _ in found], [depth for _, depth in found]


@pytest.mark.parametrize(("cache", "exit"), CASES)
def test_decoding_equals_a_plain_loop_over_each_row_alone(
    params: Any, cache: str, exit: str
) -> None:
    logits, depths = decoded(params, Policy.parse(cache, exit))
    seen = set()
    for row, length in enumerate(LENGTHS):
        by_hand = ByHand(params, cache, exit)
        tokens, first = TOKENS[row, :length], 0
        for i in range(MORE + 1):
            expected, depth = by_hand.read(tokens, first)
            np.testing.assert_allclose(logits[i][row], expected, rtol=1e-3, atol=1e-4)
            assert exit == "none" or depths[i][row] == depth
            seen.add(depth)
            first += len(tokens)
            tokens = TOKENS[row, length + i : length + i + 1]
    assert exit == "none" or len(seen) > 1, "the thresholds should divide the tokens"


def whole_pass(params: Any, exit: str, tokens: Any = TOKENS) -> tuple[Any, Any]:
    """logits_BTV and depth_BT of a pass over whole rows."""
    rule = ExitRule.parse(exit)

    def run(params: Any, tokens: Any) -> tuple[Any, Any]:
        output = forward(MODEL, params, tokens, exit=rule)
        return logits(MODEL.config, output), output.depth_BT

    return jax.jit(run)(params, tokens)


def with_gate(params: Any, bias: float) -> Any:
    """A gate that says the same of every token."""
    gate = params["segment_1"]["gate"]
    gate = {"weight": 0 * gate["weight"], "bias": np.full((), bias, np.float32)}
    return {**params, "segment_1": {**params["segment_1"], "gate": gate}}


@pytest.mark.parametrize(("exit", "loops"), [("cdf:0.5", 1), ("cdf:0.5:3", 3)])
def test_where_all_tokens_leave_after_n_loops_it_is_the_pass_of_n(
    params: Any, exit: str, loops: int
) -> None:
    sure = with_gate(params, 30.0)
    found, depth = whole_pass(sure, exit)
    assert (depth == loops).all()
    expected = jax.jit(lambda p, t: token_logits(MODEL, p, t, loops))(sure, TOKENS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_gate_that_never_stops_is_the_fixed_pass(params: Any) -> None:
    # Every loop stops with probability 1 - 2e-9, and together they are never certain.
    for of, exit in ((with_gate(params, 20.0), "cdf:1"), (with_gate(params, -30.0), "cdf:0.5")):
        found, depth = whole_pass(of, exit)
        assert (depth == 4).all()
        expected = jax.jit(lambda p, t: token_logits(MODEL, p, t))(of, TOKENS)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_gates_exits_follow_from_what_a_loss_makes_of_it(params: Any) -> None:
    output = forward(MODEL, params, TOKENS, wanted=Wanted(emitted=True))
    cdf = np.cumsum(np.exp(exit_log_p(output.segments[LOOPED].emitted["gate"])), axis=0)
    expected = 1 + np.argmax(cdf >= 0.6 - 1e-6, axis=0)
    assert (whole_pass(params, "cdf:0.6")[1] == expected).all()
    assert len(set(expected.flat)) > 2


@pytest.mark.parametrize("exit", ["cdf:0.6", "state:0.7:2", "kl:0.2"])
def test_a_prompt_is_read_as_a_whole_pass_reads_it(params: Any, exit: str) -> None:
    found, depth = whole_pass(params, exit, TOKENS[:, :6])
    read, cache = jax.jit(
        lambda p, t, n: prefill(MODEL, p, t, n, 12, policy=Policy.parse("per_loop", exit))
    )(params, TOKENS[:, :6], LENGTHS)
    rows = np.arange(3)
    np.testing.assert_allclose(read, found[rows, LENGTHS - 1], rtol=1e-4, atol=1e-5)
    assert (cache.depth_B == depth[rows, LENGTHS - 1]).all()


def generator(params: Any, batch_size: int, policy: Policy, **mesh: int) -> Generator:
    config = small_config(**{f"mesh__{k}": v for k, v in {"data": 1, **mesh}.items()})
    parts = (MODEL, params, make_mesh(config), config.mesh.rules)
    return Generator(*parts, batch_size=batch_size, policy=policy)


def test_a_batch_and_eight_devices_generate_what_one_row_does(params: Any) -> None:
    policy = Policy.parse("ring:2", "cdf:0.6")
    prompts = [[1, 5, 6], [1], [1, 7, 3, 4], [1, 9, 9]]
    alone = generator(params, 1, policy)
    expected = [alone.generate([prompt], 6)[0] for prompt in prompts]
    assert all(len(row.depths) == len(row.tokens) for row in expected)
    assert len({depth for row in expected for depth in row.depths}) > 1
    assert alone.usage.depths.total() == sum(len(row.tokens) for row in expected)
    assert generator(params, 4, policy).generate(prompts, 6) == expected
    there = generator(params, 4, policy, data=2, fsdp=2, tensor=2)
    assert there.generate(prompts, 6) == expected
    pairs = [(prompt, [3, 4]) for prompt in prompts]
    scored = alone.score(pairs)
    for row, of in zip(there.score(pairs), scored, strict=True):
        assert row.depths == of.depths
        np.testing.assert_allclose(row.log_p, of.log_p, rtol=1e-4, atol=1e-5)


def test_without_an_exit_all_tokens_take_the_plans_loops(params: Any) -> None:
    (row,) = generator(params, 1, Policy.parse("mean", "none")).generate([[1, 5]], 3)
    assert row.depths == [4] * len(row.tokens)


@pytest.mark.parametrize(
    ("loop", "loops"),
    [
        ((("per_loop", "embedding"), ("injection", "decay"), ("last_norm", "every_loop")), 5),
        ((("per_loop", "lora"), ("lanes", "hyper"), ("injection", "add")), 2),
        ((("per_loop", "time"), ("lanes", "hyperloop")), 3),
    ],
)
def test_kinds_of_loops_leave_as_they_end(loop: tuple, loops: int) -> None:
    """Parameters of each loop are its own, and what a kind does after the last is done."""
    model = small_model("1x3,1x1", loop=loop)
    leaves, tree = jax.tree.flatten(init(model))
    rng = np.random.default_rng(0)
    params = tree.unflatten([leaf + 0.3 * rng.normal(size=leaf.shape) for leaf in leaves])

    @functools.partial(jax.jit, static_argnums=1)
    def run(params: Any, rule: ExitRule | None) -> Any:
        output = forward(model, params, TOKENS, loops=loops, exit=rule)
        return logits(model.config, output)

    never, expected = ExitRule("kl", 1e-30), run(params, None)
    np.testing.assert_allclose(run(params, never), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("plan", "cache", "exit", "message"),
    [
        ("1x4", "ring", "none", "cache='ring' is none of per_loop, last, mean, first, ring:C"),
        ("1x4", "ring:0", "none", "cache='ring:0' needs at least one slot"),
        ("1x4", "ring:5", "none", "cache=ring:5 has more slots than the 4 loops"),
        ("2x1", "last", "none", "cache=last: plan 2x1 has no looped segment"),
        ("1x4", "last", "cfd:1", "exit='cfd:1' is none of none, cdf:Q"),
        ("1x4", "last", "kl:x", "exit='kl:x' is none of none, cdf:Q"),
        ("1x4", "last", "cdf:1.5", "the threshold must be above 0 and at most 1"),
        ("1x4", "last", "kl:nan", "the threshold must be above 0"),
        ("1x4", "last", "cdf:0.5", "exit=cdf:0.5 asks a gate; the model has none"),
        (
            "1x4",
            "last",
            "kl:0.01:5",
            "exit=kl:0.01:5 is for at least 5 loops; there are 4 (--loops)",
        ),
        ("2x1", "per_loop", "kl:1", "exit=kl:1: plan 2x1 has no looped segment"),
        ("1x2,1x2", "per_loop", "kl:1", "plan 1x2,1x2 has 2 looped segments; an exit needs one"),
    ],
)
def test_what_cannot_be_is_refused(plan: str, cache: str, exit: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        Policy.parse(cache, exit).check(small_model(plan).config, None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_exits_least_loops_are_those_asked_for_at_most() -> None:
    policy = Policy.parse("last", "kl:0.01:5")
    policy.check(small_model("1x4").config, 5)
    with pytest.raises(UserError, match="at least 5 loops; there are 3"):
        policy.check(small_model("1x8").config, 3)


def test_tokens_that_halt_by_themselves_take_no_other_exit() -> None:
    model = small_model("1x4", loop=(("gate", "act"),))
    with pytest.raises(UserError, match="tokens halt by that"):
        Policy.parse("last", "cdf:0.5").check(model.config, None)
    Policy.parse("last", "none").check(model.config, None)
