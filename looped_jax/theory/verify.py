"""Checks of the constructions against the definitions, and their loops in readable form."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from looped_jax.data.tasks.phop import hop
from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.theory import chain_of_thought, group_composition, p_hop, simulate_depth
from looped_jax.theory.construction import Construction, forward
from looped_jax.theory.groups import named_group

# Inputs up to this number are all tried.
EXHAUSTIVE = 5_000


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was tried, how it went, and the loop at work for one input."""

    name: str
    cases: int
    exact: int
    how: str
    construction: Construction
    # Rows of words: the state at each place, to begin with and after each loop.
    trace: list[list[str]]
    columns: list[str]  # The places.
    places: str  # What they are.
    words: tuple[str, ...]  # Lines that say what the words are.
    notes: tuple[str, ...] = ()
    settles: bool = True  # Whether a word that is the last loop's already has arrived.

    @property
    def ok(self) -> bool:
        return self.exact == self.cases


def verify_group_composition(group: str, n: int, cases: int, seed: int, dtype: str) -> Verification:
    """All inputs where they are few, random ones otherwise."""
    table = named_group(group)
    construction = group_composition.group_composition(table, n, dtype)
    rng = np.random.default_rng(seed)
    if table.order**n <= EXHAUSTIVE:
        elements_NS = np.array(list(itertools.product(range(table.order), repeat=n)))
        how = f"all {len(elements_NS):,} inputs"
    else:
        elements_NS = rng.integers(0, table.order, (cases, n))
        how = "random inputs"
    right = group_composition.answers(construction, elements_NS) == table.product(elements_NS)
    shown = rng.integers(0, table.order, n)
    rows = group_composition.trace(construction, table, shown)
    return Verification(
        f"composition of {n} elements of {group}",
        len(right),
        int(right.sum()),
        how,
        construction,
        rows,
        _numbered(0, n),
        "position; 0: the start token",
        (
            "each cell: the element that stands there, to begin with the input's (e at the start)",
            f"in a loop position i becomes the product of those at 2i - {n + 1} and 2i - {n}, or 0",
        ),
        (f"position {n} ends with the product of all",),
    )


def _numbered(first: int, last: int) -> list[str]:
    return [str(i) for i in range(first, last + 1)]


def verify_p_hop(p: int, n: int, alphabet: int, cases: int, seed: int, dtype: str) -> Verification:
    """Random sequences, and those that are hard: all equal, all different, and alternating ones,
    whose chains are the longest."""
    construction = p_hop.p_hop(p, n, alphabet, dtype)
    rng = np.random.default_rng(seed)
    special = [np.zeros(n, int), np.arange(n) % alphabet, np.arange(n) // 2 % alphabet]
    sequences = np.concatenate([np.stack(special), rng.integers(0, alphabet, (cases, n))])
    got = p_hop.answers(construction, sequences)
    want = [hop(row.tolist(), p) for row in sequences]
    # An example with an answer, if there is one.
    at = max((i for i, answer in enumerate(want) if answer is not None), default=len(want) - 1)
    shown = sequences[at]
    rows = [[chr(97 + c) for c in shown]]
    rows += [[str(i) for i in state["F"]] for state in p_hop.trace(construction, shown)]
    answer = want[at]
    end = "⊥" if answer is None else chr(97 + answer)
    return Verification(
        f"{p}-hop over {n} characters of {alphabet}",
        len(want),
        sum(a == b for a, b in zip(got, want, strict=True)),
        f"random, constant, periodic and doubled sequences; {want.count(None)} without p hops",
        construction,
        rows,
        _numbered(1, n),
        "position",
        (
            "input: the character there",
            "after a loop: the position that it points to so far (0: there is no such hop)",
        ),
        (f"the last position ends pointing to the place of the answer, {end}; 0: no hop",),
    )


def random_model(
    plan: str, seed: int, d_model: int = 32, vocabulary: int = 12, length: int = 24, ff: int = 64
) -> tuple[LoopedTransformer, Any]:
    """A random model of the theorems' class: biases too, and depth that does not explode."""
    heads = 4
    config = ModelConfig(
        plan=LoopPlan.parse(plan),
        vocab_size=vocabulary,
        max_length=length,
        d_model=d_model,
        num_heads=heads,
        num_kv_heads=heads,
        d_ff=ff,
        mlp="relu",
        bias=True,
        norm="none",
        positions="learned",
        unroll="none",
    )
    model = LoopedTransformer(config)
    variables = model.init(jax.random.key(seed), np.zeros((1, 2), np.int32))
    params = nn.unbox(variables)["params"]
    rng = np.random.default_rng(seed)
    depth = config.plan.effective_depth

    def noisy(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        scale = depth**-0.5 if "/output/" in name or "/down/" in name else 1.0
        noise = 0.05 * rng.normal(size=leaf.shape)
        return ((np.asarray(leaf) + noise) * scale).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(noisy, params)


def verify_simulate_depth(plan: str, cases: int, seed: int, dtype: str) -> Verification:
    """A random model against its one looped layer; logits within float error."""
    _float32_only(dtype)
    model, params = random_model(plan, seed)
    config = model.config
    rng = np.random.default_rng(seed)
    rows_BT = rng.integers(0, config.vocab_size, (cases, config.max_length)).astype(np.int32)
    want = forward(model, params, rows_BT)
    construction = simulate_depth.simulate_depth(model, params)
    scale = np.abs(want).max()
    error_B = np.abs(simulate_depth.logits(construction, rows_BT) - want).max(axis=(1, 2)) / scale
    needed = smallest_b(model, params, rows_BT, want)
    shown = (0, config.max_length // 2, config.max_length)
    trace = []
    idle, x = construction.slots["idle"], construction.slots["x"]
    for state_BTD in construction.states(simulate_depth.tokens(construction, rows_BT[:1])):
        turn = int(np.argmin(state_BTD[0, 0, idle]))
        norms = np.linalg.norm(state_BTD[0][:, x], axis=1)
        trace.append([str(turn), *(f"{norms[t]:.3g}" for t in shown)])
    return Verification(
        f"{config.plan.effective_depth} layers of {plan} as one",
        cases,
        int((error_B < TOLERANCE).sum()),
        f"random inputs of a random model, largest relative error {error_B.max():.1e}",
        construction,
        [["0", *[""] * len(shown)], *trace],
        ["next layer", *(f"|x| at {t}" for t in shown)],
        "what is read off the state",
        (
            f"next layer: whose turn it is, of layers 0 to {config.plan.distinct_layers - 1}",
            "|x| at t: norm of the simulated stream at position t (0: the start token '#')",
        ),
        (f"B needed: at least 2^{needed}; used 2^30",),
        settles=False,
    )


# Relative to the largest logit.
TOLERANCE = 1e-4


def smallest_b(model: LoopedTransformer, params: Any, rows_BT: np.ndarray, want: np.ndarray) -> int:
    """The least power of two, as exponent, with which a model is simulated within TOLERANCE."""
    low, high = -1, 30
    while high - low > 1:
        middle = (low + high) // 2
        looped = simulate_depth.simulate_depth(model, params, 2.0**middle)
        error = np.abs(simulate_depth.logits(looped, rows_BT) - want).max()
        if error < TOLERANCE * np.abs(want).max():
            high = middle
        else:
            low = middle
    return high


def verify_chain_of_thought(plan: str, m: int, cases: int, seed: int, dtype: str) -> Verification:
    """A random model that writes m tokens against the loop that does so at dummies."""
    _float32_only(dtype)
    model, params = random_model(plan, seed, length=m + 8)
    rng = np.random.default_rng(seed)
    inputs_BN = rng.integers(0, model.config.vocab_size, (cases, 8)).astype(np.int32)
    want_BM, margin = chain_of_thought.greedy(model, params, inputs_BN, m)
    construction = chain_of_thought.simulate_chain_of_thought(model, params, m)
    right = (chain_of_thought.answers(construction, inputs_BN) == want_BM).all(axis=1)
    rows = [["?"] * m]
    rows += [[str(t) for t in r] for r in chain_of_thought.trace(construction, inputs_BN[0])]
    return Verification(
        f"{m} tokens that {plan} writes",
        cases,
        int(right.sum()),
        f"random inputs of a random model, least margin of a token {margin:.1e}",
        construction,
        rows,
        _numbered(1, m),
        "dummy: a place where a token is to be written",
        ("each cell: the token at that dummy, by its number (?: none yet)",),
        (f"margins above {1 / chain_of_thought.SHARPNESS:.1e} are told apart",),
    )


def _float32_only(dtype: str) -> None:
    if dtype != "float32":
        raise UserError(
            f"this construction reproduces another model's float32 logits; {dtype} cannot"
        )
