"""How many loops a training step makes: drawn, or rising, a function of seed, step and row alone.

It is the same on every process and after a restart. The distributions, M being the mean:

lognormal_poisson  r ~ Poisson(e^tau) + 1, tau ~ N(ln M - s^2 / 2, s), s = 1/2: mean M + 1 (Geiping
                   et al. 2025, arXiv 2502.05171, section 3.3, and its code)
poisson            r ~ max(Poisson(M), 1) (Parcae, arXiv 2604.12946)
uniform            r ~ U{1 .. 2 M - 1}

Of a curriculum of W steps, M is, in step s (from 0), max(1, ceil(M s / W)) or, `one_minus_sqrt`,
max(1, ceil(M (1 - sqrt(1 - s / W)))) (McLeish et al. 2025, arXiv 2511.07384, and its code).
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

Array = jax.Array
# Folded into a step's key: no part of a batch has this number.
_STREAM = 1 << 30
_DEVIATION = 0.5


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
        largest = counts.most or (0 if drawn else made.loops)
        if largest and counts.gradient_loops > largest:
            raise UserError(
                f"config.counts.gradient_loops={counts.gradient_loops} is more than the {largest} "
                "loops that there are at most"
            )
        return made

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

    @property
    def with_gradient_at_most(self) -> int:
        """m, as ModelConfig.gradient_loops; for counts that only rise the plan's number."""
        at_most = self.gradient_loops or self.most
        return at_most or (self.loops if self.distribution == "fixed" else 0)

    def mean(self, step: Array) -> Array:
        """M of an update, float32; ``step`` counts from 0."""
        if self.curriculum == "none":
            return jnp.asarray(self.loops, jnp.float32)
        progress = jnp.minimum(step / self.curriculum_steps, 1.0)
        if self.curriculum == "one_minus_sqrt":
            progress = 1.0 - jnp.sqrt(1.0 - progress)
        return jnp.maximum(jnp.ceil(self.loops * progress), 1.0)

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
        middle = jnp.log(mean) - _DEVIATION**2 / 2
        rate = jnp.exp(middle + _DEVIATION * jax.random.normal(normal))
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
