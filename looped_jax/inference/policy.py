"""What a looped model saves at inference: keys and values of which loops its cache keeps, and when
a token stops looping. Both are spelled as commands take them, and nothing is asked that the model
cannot do."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import KeyValues
from looped_jax.models.loops.exits import ExitRule

CACHES = ("per_loop", "last", "mean", "first")
CACHE_HELP = "Keys and values that loops keep: per_loop, last, mean, first or ring:C."
EXIT_HELP = "When a token stops looping: none, cdf:Q, state:EPS or kl:EPS, :N for at least N loops."


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
class Policy:
    """Both together, hashable."""

    cache: CachePolicy = CachePolicy()
    exit: ExitRule | None = None

    @classmethod
    def parse(cls, cache: str, exit: str) -> "Policy":
        """Reads --cache and --exit; UserError for a bad spelling."""
        return cls(CachePolicy.parse(cache), ExitRule.parse(exit))

    def __str__(self) -> str:
        """`per_loop, none`, say: equal only for equal ones."""
        return f"{self.cache}, {self.exit or 'none'}"

    def check(self, config: ModelConfig, loops: int | None) -> None:
        """UserError for what a model with this config cannot do."""
        self.cache.check(config, loops)
        if self.exit is not None:
            self.exit.check(config)


EXACT = Policy()
