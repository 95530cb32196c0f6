"""How many loops a training step makes: drawn, or rising, a function of seed, step and row alone.

It is the same on every process and after a restart. The distributions, M being the mean:

lognormal_poisson  r ~ Poisson(e^tau) + 1, tau ~ N(ln M - s^2 / 2, s), s = 1/2: mean M + 1 (Geiping
                   et al. 2025, arXiv 2502.05171, section 3.3, and its code)
poisson            r ~ max(Poisson(M), 1) (Parcae, arXiv 2604.12946)
uniform            r ~ U{1 .. 2 M - 1}

Of a curriculum of W steps, M is, in step s (from 0), max(1, ceil(M s / W)) or, `one_minus_sqrt`,
max(1, ceil(M (1 - sqrt(1 - s / W)))) (McLeish et al. 2025, arXiv 2511.07384, and its code, which
with it lets gradients through min(8, M) loops, M being the step's: not here, where m is one number,
config.counts.gradient_loops).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.training.count_bounds import DEVIATION, RARE, bound, reached, share_of_at_least

Array = jax.Array
# Folded into a step's key: no part of a batch has this number.
_STREAM = 1 << 30


@dataclasses.dataclass(frozen=True)
class LoopCounts:
    """Of the plan's one looped segment. Fields as in config.counts."""

    loops: int  # The plan's: the mean.
    distribution: str
    by: str
    most: int
    gradient_loops: int
    curriculum: str
    curriculum_steps: int

    @classmethod
    def from_config(cls, config: ConfigDict) -> "LoopCounts | None":
        """None where every step makes the plan's loops and gradients go through all, and where
        nothing is looped (the baseline of a comparison). UserError for what cannot work."""
        counts, plan = config.counts, LoopPlan.parse(config.model.plan)
        rises = counts.curriculum != "none"
        drawn = counts.distribution != "fixed"
        if not (drawn or rises or counts.gradient_loops):
            return None
        looped = plan.looped
        if not looped:
            return None
        if len(looped) > 1:
            raise UserError(
                f"config.counts is about one looped segment; plan {plan} has {len(looped)}"
            )
        if rises != bool(counts.curriculum_steps):
            raise UserError(
                "config.counts.curriculum and curriculum_steps go together, e.g. "
                "curriculum='linear' and curriculum_steps=1000"
            )
        if counts.by == "row" and not drawn:
            raise UserError("config.counts.by='row' is for numbers that are drawn")
        if counts.most and not drawn:
            raise UserError("config.counts.most bounds what is drawn; distribution is 'fixed'")
        made = cls(plan.segments[looped[0]].loops, **counts.to_dict())
        if not made.with_gradient_at_most:
            raise UserError(
                f"config.counts.distribution={counts.distribution!r} has no bound: say "
                "config.counts.gradient_loops, through how many gradients go, or counts.most"
            )
        made._check_gradient_loops()
        return made

    def _check_gradient_loops(self) -> None:
        """UserError where gradients are to go through more loops than there are: each step makes
        room for so many, and computes them whether they are drawn or not."""
        known = [count for count in (self.most, bound(self.distribution, self.loops)) if count]
        if known and self.gradient_loops > min(known):
            raise UserError(
                f"config.counts.gradient_loops={self.gradient_loops} is more than the {min(known)} "
                "loops that there are at most"
            )
        usual = reached(self.distribution, self.loops)
        if self.gradient_loops > usual:
            raise UserError(
                f"config.counts.gradient_loops={self.gradient_loops} is more than the {usual} "
                f"loops that fewer than 1 in {1 / RARE:,.0f} draws reach "
                f"(distribution={self.distribution!r}, mean {self.loops})"
            )

    def check(self, model: ModelConfig, has_per_loop: bool) -> None:
        """UserError where a model that has parameters per loop cannot have such counts."""
        if not has_per_loop:
            return
        if self.by == "row":
            raise UserError(
                "config.counts.by='row': rows that differ in their loops cannot have parameters "
                "per loop; counts.by='step' can"
            )
        beyond = self.distribution != "fixed" and not 0 < self.most <= self.loops
        if beyond and model.beyond_trained == "refuse":
            raise UserError(
                f"config.counts draws more than {self.loops} loops, for which there are no "
                "parameters per loop (config.loop.beyond_trained='refuse'); "
                f"counts.most={self.loops} bounds them"
            )
        if self.curriculum != "none":
            return  # The first steps make few loops, and the last ones all.
        # The first loop is among the last m of those that have at most m.
        m, drawn = self.with_gradient_at_most, self.distribution != "fixed"
        if m == self.most or 1 - share_of_at_least(self.distribution, self.loops, m + 1) >= RARE:
            return
        often = f"in fewer than 1 in {1 / RARE:,.0f} steps" if drawn else "in no step"
        raise UserError(
            f"config.counts.gradient_loops={m}: the first loop's own parameters (per loop) would "
            f"have gradients {often}, those with at most {m} loops (distribution="
            f"{self.distribution!r}, {'mean ' if drawn else ''}{self.loops}); let gradients "
            "through more loops"
        )

    @property
    def with_gradient_at_most(self) -> int:
        """m, as ModelConfig.gradient_loops; 0 where nothing bounds the counts."""
        if self.gradient_loops:
            return self.gradient_loops
        largest = bound(self.distribution, self.loops) or self.most
        return min(largest, self.most or largest)

    def mean(self, step: Array) -> Array:
        """M of an update, float32; ``step`` counts from 0."""
        if self.curriculum == "none":
            return jnp.asarray(self.loops, jnp.float32)
        # Counted, not computed: float32 rounds M s / W to either side of a whole number.
        above_J = np.array(self._last_steps(), np.int32)
        return 1.0 + jnp.sum(step > above_J, dtype=jnp.float32)

    def _last_steps(self) -> list[int]:
        """Of 1, …, loops - 1, the last step of a curriculum whose mean is no more: ceil(x) > j for
        x > j, solved for s in whole numbers. Later ones than int32 has are never passed."""
        loops, steps = self.loops, self.curriculum_steps
        if self.curriculum == "linear":
            found = [j * steps // loops for j in range(1, loops)]
        else:
            found = [steps * (loops**2 - (loops - j) ** 2) // loops**2 for j in range(1, loops)]
        return [min(step, np.iinfo(np.int32).max) for step in found]

    def __call__(self, key: Array, step: Array, rows: int) -> Array:
        """int32 [rows]; ``key`` is the step's own, which follows from seed and step."""
        key, mean = jax.random.fold_in(key, _STREAM), self.mean(step)
        if self.by == "step":
            loops_B = jnp.broadcast_to(self._one(key, mean), (rows,))
        else:
            key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
            loops_B = jax.vmap(self._one, (0, None))(key_B, mean)
        return jnp.minimum(loops_B, self.most) if self.most else loops_B

    def _one(self, key: Array, mean: Array) -> Array:
        if self.distribution == "fixed":
            return mean.astype(jnp.int32)
        if self.distribution == "uniform":
            return jax.random.randint(key, (), 1, 2 * mean.astype(jnp.int32))
        if self.distribution == "poisson":
            return jnp.maximum(jax.random.poisson(key, mean), 1)
        normal, poisson = jax.random.split(key)
        middle = jnp.log(mean) - DEVIATION**2 / 2
        rate = jnp.exp(middle + DEVIATION * jax.random.normal(normal))
        return jax.random.poisson(poisson, rate) + 1

    def made(self, loops_B: Array, parts: int = 1) -> dict[str, Array]:
        """What a step says of its loops, to be logged. Means over rows: the loops that each has,
        and those of them that have gradients. And what is computed for every row, on average over
        the ``parts`` of a batch: all of a part's rows go through the loops without gradients of the
        one that has most, and through the m steps of which gradients go through the last ones
        (models/loops/counted.py)."""
        most = self.with_gradient_at_most
        longest_P = jnp.max(loops_B.reshape(-1, parts), axis=0)
        return {
            "loops": jnp.mean(loops_B),
            "gradient_loops": jnp.mean(jnp.minimum(loops_B, most)),
            "computed_loops": jnp.mean(jnp.maximum(longest_P - most, 0)) + most,
        }

    def computed(self, made: Mapping[str, Any]) -> tuple[float, float]:
        """Of what a step `made`: the loops that are computed for every row, and those of them that
        have a backward pass, as train_flops (models/flops.py) takes them."""
        return float(made["computed_loops"]), float(self.with_gradient_at_most)


def mean_counts(config: ConfigDict) -> tuple[float, float] | None:
    """Loops that are computed for every row, and those of them with a backward pass, on average
    over all steps of a run (1,000 of them, evenly spaced, of a longer one); None where each step
    makes the plan's."""
    counts = LoopCounts.from_config(config)
    if counts is None:
        return None
    total = config.train.steps
    steps = np.unique(np.linspace(0, total - 1, min(total, 1000)).astype(int))

    def of(step: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        loops_B = counts(key, step, config.train.batch_size)
        return counts.made(loops_B, config.train.grad_accumulation)

    found = jax.jit(jax.vmap(of))(jnp.asarray(steps))
    return counts.computed({name: jnp.mean(of_steps) for name, of_steps in found.items()})
