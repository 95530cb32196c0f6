"""What a looped model saves at inference: keys and values of which loops its cache keeps, when a
token stops looping, and whether tokens are drafted with few loops. All are spelled as commands take
them, and nothing is asked that the model cannot do."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import KeyValues
from looped_jax.models.loops.exits import ExitRule
from looped_jax.models.transformer import LoopedTransformer, check_loops

CACHES = ("per_loop", "last", "mean", "first")
CACHE_HELP = "Keys and values that loops keep: per_loop, last, mean, first or ring:C."
EXIT_HELP = "When a token stops looping: none, cdf:Q, state:EPS or kl:EPS, :N for at least N loops."
DRAFT_HELP = (
    "Tokens are drafted with few loops and verified with all, together: none, LOOPS or LOOPS:TOKENS"
    " (e.g. 1:4). Greedy only: what is said stays the same."
)


@dataclasses.dataclass(frozen=True)
class CachePolicy:
    """Of a token's keys and values in the n loops that it went through, those that are kept; loop t
    of a later token attends to slot t mod C of the C that there are.

    ``per_loop``: all, exactly what the model computes. ``last``, ``first`` and ``mean`` (over
    loops): one slot (Ouro, arXiv 2510.25741, section on KV sharing). ``ring`` with c slots: slot s
    has the latest loop t with t mod c = s (Huginn, arXiv 2502.05171). Where a token stopped before
    it came to a slot, this has its last loop's.

    Tokens that are read together (a prompt) attend to each other loop by loop: only what later
    tokens find is shared, as Ouro measured that sharing there costs much.
    """

    name: str = "per_loop"
    ring: int = 0  # c, where the name is `ring`.

    @classmethod
    def parse(cls, text: str) -> "CachePolicy":
        """Reads `per_loop`, `last`, `mean`, `first` or `ring:C`; UserError says these."""
        if text in CACHES:
            return cls(text)
        match = re.fullmatch(r"ring:(-?\d+)", text)
        if match is None:
            raise UserError(f"cache={text!r} is none of {', '.join(CACHES)}, ring:C (e.g. ring:4)")
        if int(match[1]) < 1:
            raise UserError(f"cache={text!r} needs at least one slot")
        return cls("ring", int(match[1]))

    def __str__(self) -> str:
        return f"ring:{self.ring}" if self.name == "ring" else self.name

    def slots(self, loops: int) -> int:
        """C, of a segment with so many loops."""
        if self.name == "per_loop":
            return loops
        return min(self.ring, loops) if self.name == "ring" else 1

    def check(self, config: ModelConfig, loops: int | None) -> None:
        """UserError if the model has no loops to share a cache, or fewer than a ring has slots, or
        tokens that are not in all loops."""
        counts = [s.loops for s in config.plan.with_loops(loops).segments if s.trained_loops > 1]
        if self.name != "per_loop" and not counts:
            raise UserError(f"cache={self}: plan {config.plan} has no looped segment")
        cycle = config.low_loops + 1
        alike = self.name == "per_loop" or (self.ring and self.ring % cycle == 0)
        if "nest" in dict(config.loop) and not alike:
            raise UserError(
                f"cache={self}: loops of config.loop.nest cannot share keys and values within a "
                f"cycle of {cycle}; per_loop, or ring:C with C a multiple of it"
            )
        if self.name != "per_loop" and "routing" in dict(config.loop):
            raise UserError(
                f"cache={self}: with config.loop.routing a loop sees only the tokens that were in "
                "it, so each has a cache of its own (cache=per_loop)"
            )
        if self.ring > max(counts, default=self.ring):
            raise UserError(f"cache={self} has more slots than the {max(counts)} loops")

    def reduce(self, kept: KeyValues, depth_B: jax.Array | None) -> KeyValues:
        """[L, k, B, G, T, K] of all loops to [C, …] of the slots. ``depth_B``: loops that the
        rows went through, if not all L."""
        loops = len(kept.k)
        slots = self.slots(loops)
        if depth_B is None and slots == loops:
            return kept
        ran_B = np.full(1, loops) if depth_B is None else depth_B
        if self.name == "mean":
            share_LB = (np.arange(loops)[:, None] < ran_B) / ran_B

            def mean(kept_L: jax.Array) -> jax.Array:
                weight_L = jnp.asarray(share_LB)[:, None, :, None, None, None]
                total = jnp.sum(weight_L * kept_L.astype(jnp.float32), axis=0, keepdims=True)
                return total.astype(kept_L.dtype)

            return jax.tree.map(mean, kept)
        last_B = ran_B - 1
        slot_C1 = np.arange(slots)[:, None]
        # The latest loop that belongs in the slot, if the token came so far.
        loop_CB = last_B - (last_B - slot_C1) % slots
        xp = np if depth_B is None else jnp
        loop_CB = xp.where(loop_CB < 0, last_B, loop_CB) * (self.name != "first")

        def taken(kept_L: jax.Array) -> jax.Array:
            if depth_B is None:  # The same of all rows, and known.
                return kept_L[loop_CB[:, 0]]
            index = loop_CB[:, None, :, None, None, None]
            return jnp.take_along_axis(kept_L, index, axis=0)

        return jax.tree.map(taken, kept)


@dataclasses.dataclass(frozen=True)
class Draft:
    """``tokens`` at a time are drafted with ``loops`` loops, and then verified in one pass with all
    loops (inference/speculative.py)."""

    loops: int
    tokens: int = 4

    @classmethod
    def parse(cls, text: str) -> "Draft | None":
        """Reads `none` (None), `LOOPS` or `LOOPS:TOKENS`; UserError says these."""
        if text == "none":
            return None
        match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
        numbers = [int(number) for number in match.groups() if number] if match else [0]
        if min(numbers) < 1:
            raise UserError(
                f"draft={text!r} is none of none, LOOPS, LOOPS:TOKENS, each at least 1 (e.g. 1:4)"
            )
        return cls(*numbers)

    def __str__(self) -> str:
        return f"{self.loops}:{self.tokens}"

    def check(self, config: ModelConfig, loops: int | None) -> None:
        """UserError if there are not more loops to verify with, or not so many tokens in a row."""
        looped = [s for s in config.plan.with_loops(loops).segments if s.trained_loops > 1]
        if not looped:
            raise UserError(f"draft={self}: plan {config.plan} has no looped segment")
        if (fewest := min(segment.loops for segment in looped)) <= self.loops:
            raise UserError(
                f"draft={self} has to have fewer loops than the {fewest} that verify; --loops "
                "says more of these"
            )
        if "routing" in dict(config.loop):
            raise UserError(f"draft={self}: with config.loop.routing tokens differ in their loops")
        if self.tokens >= config.max_length:
            raise UserError(f"draft={self}: the model reads {config.max_length} tokens at most")
        check_loops(LoopedTransformer(config), self.loops)

    def check_greedy(self, temperature: float) -> None:
        """UserError if what is said is to be drawn."""
        if temperature > 0:
            raise UserError(
                f"draft={self} goes with greedy decoding only; the temperature is {temperature:g}"
            )


@dataclasses.dataclass(frozen=True)
class Policy:
    """All together, hashable."""

    cache: CachePolicy = CachePolicy()
    exit: ExitRule | None = None
    draft: Draft | None = None

    @classmethod
    def parse(cls, cache: str, exit: str, draft: str = "none") -> "Policy":
        """Reads --cache, --exit and --draft; UserError for a bad spelling."""
        return cls(CachePolicy.parse(cache), ExitRule.parse(exit), Draft.parse(draft))

    def __str__(self) -> str:
        """`per_loop, none`, say: equal only for equal ones."""
        return f"{self.cache}, {self.exit or 'none'}" + (f", {self.draft}" if self.draft else "")

    def check(self, config: ModelConfig, loops: int | None) -> None:
        """UserError for what a model with this config cannot do."""
        self.cache.check(config, loops)
        if self.exit is not None:
            self.exit.check(config, loops)
        if self.draft is None:
            return
        self.draft.check(config, loops)
        if self.exit is not None or self.cache != CachePolicy():
            raise UserError(
                f"draft={self.draft} verifies with all loops and their own keys and values: it "
                "goes with exit=none and cache=per_loop only"
            )


EXACT = Policy()
