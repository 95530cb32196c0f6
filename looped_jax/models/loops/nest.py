"""config.loop.nest: loops at two speeds. A slow state is updated after every l updates of a fast
one, by a stack of layers of its own (two_stacks) or by the same one (one_stack); a norm ends each:

    H times:  l times:  z_low <- norm(f_low(z_low + z_high));
              z_high <- norm(f_high(z_high + z_low))

z_high begins as the segment's input, which enters nowhere else, z_low as a vector, the same at
every place, drawn when the model is made and never trained. In the plan a loop is one update, so
kxL has L = H (l + 1), l = config.loop.low_loops: loop t is z_high's where l + 1 divides t + 1. Of
the low updates of a cycle only the last n carry gradients, to parameters and to states before, with
n of config.loop.low_gradient_loops, one number for each of the last cycles and 1 for those in
front; () is all. What carries none has no backward pass.

two_stacks: HRM-Text (arXiv 2605.20613), as read in transformers 5.24 (models/hrm_text), whose
default is n = (1, 2), and in sapientinc/HRM-Text (models/baselines/hrm_nocarry_bp_warmup.py), which
ends its training with n = (0, 3). z_low's vector is a normal one cut at 3 deviations in the second;
the first has zeros until weights are loaded. one_stack: the Tiny Recursive Model (arXiv
2510.04871) as that repository has it for text (models/baselines/trm_nocarry.py); the
original adds its input before every low update (here config.loop.injection adds it before all).
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.execution import partitioned, placed
from looped_jax.models.layers import Array, norm
from looped_jax.models.loops.base import LoopContext, LoopState, LoopVariant, Run

LOW, HIGH = 0, 1


class TwoStacks(LoopVariant):
    """Low and high updates by stacks of their own."""

    stacks: ClassVar[int] = 2
    ends_in_norm: ClassVar[bool] = True

    def setup(self) -> None:
        """Makes a norm for each stack, and the vector that z_low begins with."""
        self.norms = [norm(self.config, None) for _ in range(self.stacks)]
        init = partitioned(nn.initializers.truncated_normal(1.0, lower=-3.0, upper=3.0), "embed")
        self.low = self.param("low", init, (self.config.d_model,))

    @classmethod
    def runs(cls, config: ModelConfig, loops: int) -> tuple[Run, ...]:
        """Of each cycle its low loops, those without gradients first, and its high one."""
        cycles, rest = divmod(loops, config.low_loops + 1)
        if rest or not cycles:
            raise UserError(
                f"loops={loops}: with config.loop.low_loops={config.low_loops} a cycle of "
                f"config.loop.nest has {config.low_loops + 1} loops; take a multiple of these"
            )
        with_gradient = config.low_gradient_loops or (config.low_loops,) * cycles
        with_gradient = (1,) * (cycles - len(with_gradient)) + with_gradient
        runs: list[Run] = []
        for count in with_gradient[-cycles:]:
            runs += [Run(config.low_loops - count, LOW, False), Run(count, LOW), Run(1, HIGH)]
        return tuple(run for run in runs if run.loops)

    def start(self, state: LoopState, context: LoopContext) -> LoopState:
        """z_high is the segment's input."""
        low_D = jax.lax.stop_gradient(self.low).astype(state.x_BTD.dtype)
        low_BTD = placed(self.config, jnp.broadcast_to(low_D, state.x_BTD.shape), "stream")
        return state.replace(extra={**state.extra, "nest": (low_BTD, state.x_BTD)})

    def enter(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """The sum of both states, whichever is updated."""
        low_BTD, high_BTD = state.extra["nest"]
        return state.replace(x_BTD=low_BTD + high_BTD)

    def leave(self, state: LoopState, context: LoopContext, loop: Array) -> LoopState:
        """The stack's norm, and its state is what that gives."""
        x_BTD = self.norms[context.kind % self.stacks](state.x_BTD)
        low_BTD, high_BTD = state.extra["nest"]
        nest = (x_BTD, high_BTD) if context.kind == LOW else (low_BTD, x_BTD)
        return state.replace(x_BTD=x_BTD, extra={**state.extra, "nest": nest})

    def updated(self, x_BTD: Array, state: LoopState, context: LoopContext) -> Array:
        """The state of its kind."""
        of_kind_BTD: Array = state.extra["nest"][LOW if context.kind == LOW else HIGH]
        return of_kind_BTD

    def around(self, before: LoopState, after: LoopState) -> LoopState:
        """Low updates leave z_high as it is."""
        nest = (after.extra["nest"][LOW], before.extra["nest"][HIGH])
        return after.replace(extra={**after.extra, "nest": nest})


class OneStack(TwoStacks):
    """Both updates by the same layers."""

    stacks = 1
