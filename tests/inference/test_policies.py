"""Cache policies and exits: what is decoded is what a plain `for` over tokens, loops and layers
says, one row at a time."""

from typing import Any

import jax
import numpy as np
import pytest
from helpers import init, small_model

from looped_jax.inference.cache import cache_bytes, decode, prefill
from looped_jax.inference.policy import Policy
from looped_jax.models.layers import KeyValues, Layer, LayerInputs, norm, rope_angles

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


class ByHand:
    """Reads one row; of each segment it has [S tokens][slots] keys and values."""

    def __init__(self, params: Any, cache: str, exit: str):
        self.params, self.cache, self.exit = params, cache, exit
        self.past: list[list[Any]] = [[], [], []]
        self.layer = jax.jit(
            lambda p, x, inputs: Layer(MODEL.config, True).apply({"params": p}, x, inputs, (0, 0))
        )

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
        x, kept = self.layer(layer, x, inputs)
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
