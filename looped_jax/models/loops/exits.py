"""When a token stops looping: rules, and the pass that asks one after every loop.

A rule is asked about each token after each loop. Where the tokens of a row are read together (a
prompt, a text to score) every token goes through all loops, since those beside it attend to it
there, and what is read out of it is its state where it would have stopped. When decoding, the
loops end as soon as all rows have stopped: then, and only then, is compute saved.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import Array, KeyValues
from looped_jax.models.loops.base import LoopOutput, LoopState

RULES = ("cdf", "state", "kl")


@dataclasses.dataclass(frozen=True)
class ExitRule:
    """A token stops after the first loop t >= ``least`` for which, with h_t its stream there,

    ``cdf``: the gate's p_1 + … + p_t >= threshold, p of models/loops/gate.py (Ouro, arXiv
      2510.25741); since 1 less this sum is prod_{j<=t} (1 - lambda_j), with 1 it never stops.
    ``state``: ||h_t - h_{t-1}|| < threshold ||h_t||, norms over D, float32; h_0 is the stream
      with which the first loop begins (Huginn, arXiv 2502.05171, whose code has .03).
    ``kl``: KL(p_{t-1} || p_t) < threshold nats, p_t the distribution of the next token had the
      loops ended there, p_0 uniform (Huginn, section 6.1: 5e-4).
    """

    name: str
    threshold: float
    least: int = 1

    @classmethod
    def parse(cls, text: str) -> "ExitRule | None":
        """Reads `none` (None), `cdf:Q`, `state:EPS` or `kl:EPS`, with `:N` behind it for at
        least N loops; UserError says these."""
        if text == "none":
            return None
        name, *numbers = text.split(":")
        try:
            threshold, least = float(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 1
        except (ValueError, IndexError):
            name = ""
        if name not in RULES or len(numbers) > 2:
            raise UserError(
                f"exit={text!r} is none of none, cdf:Q, state:EPS, kl:EPS, with :N behind it for "
                "at least N loops (e.g. cdf:0.5, state:0.03:2)"
            )
        most = 1.0 if name == "cdf" else math.inf
        if not 0 < threshold <= most or least < 1:  # nan is neither.
            within = "above 0 and at most 1" if name == "cdf" else "above 0"
            raise UserError(f"exit={text!r}: the threshold must be {within}, the loops at least 1")
        return cls(name, threshold, least)

    def __str__(self) -> str:
        return f"{self.name}:{self.threshold:g}" + (f":{self.least}" if self.least > 1 else "")

    def check(self, config: ModelConfig, loops: int | None = None) -> None:
        """UserError unless exactly one segment is looped, as often as the rule asks at least, has a
        gate if the rule is its, and does not halt tokens by itself. ``loops``: in place of the
        plan's."""
        looped = len(config.plan.looped)
        if looped != 1:
            count = "no looped segment" if not looped else f"{looped} looped segments"
            raise UserError(f"exit={self}: plan {config.plan} has {count}; an exit needs one")
        there = config.plan.segments[config.plan.looped[0]].loops if loops is None else loops
        if self.least > there:
            raise UserError(
                f"exit={self} is for at least {self.least} loops; there are {there} (--loops)"
            )
        if "nest" in dict(config.loop):
            raise UserError(f"exit={self}: with config.loop.nest most loops end a state not read")
        if "routing" in dict(config.loop):
            raise UserError(f"exit={self}: with config.loop.routing tokens stop looping by that")
        gate = dict(config.loop).get("gate")
        if gate == "act":
            raise UserError(f"exit={self}: with config.loop.gate='act' tokens halt by that")
        if self.name == "cdf" and gate != "linear":
            raise UserError(f"exit={self} asks a gate; the model has none (config.loop.gate)")

    def start(self, config: ModelConfig, x_BTD: Array) -> Array:
        """What the rule knows before the first loop, which begins with this stream."""
        shape_BT = x_BTD.shape[:2]
        if self.name == "cdf":
            return jnp.zeros(shape_BT)
        if self.name == "state":
            return x_BTD
        count = config.ids_in_use or config.vocab_size
        known_V = jnp.where(jnp.arange(config.vocab_size) < count, -math.log(count), -jnp.inf)
        return jnp.broadcast_to(known_V, (*shape_BT, config.vocab_size))

    def ask(self, known: Array, x_BTD: Array, gate_BT: Any, log_p_BTV: Any) -> tuple[Array, Array]:
        """stop_BT, and what is known after this loop."""
        if self.name == "cdf":
            survived_BT = known + jax.nn.log_sigmoid(-gate_BT)
            enough = math.log1p(-self.threshold) if self.threshold < 1 else -math.inf
            return survived_BT <= enough, survived_BT
        if self.name == "state":
            now_BTD, before_BTD = x_BTD.astype(jnp.float32), known.astype(jnp.float32)
            change_BT = jnp.linalg.norm(now_BTD - before_BTD, axis=-1)
            return change_BT < self.threshold * jnp.linalg.norm(now_BTD, axis=-1), x_BTD
        p_BTV = jnp.exp(known)
        kl_BT = jnp.sum(jnp.where(p_BTV > 0, p_BTV * (known - log_p_BTV), 0.0), axis=-1)
        return kl_BT < self.threshold, log_p_BTV


class Leaving(struct.PyTreeNode):
    """What goes from loop to loop: the number of the loop, the state of those that go on, for each
    token that of its exit and the loops that it took, what the rule knows, keys and values."""

    loop: Array
    state: LoopState
    left: LoopState
    depth_BT: Array
    active_BT: Array
    known: Array
    kept: KeyValues | None


def until_exit(
    step: Callable[[LoopState, Array], tuple[LoopState, LoopOutput]],
    read: Callable[[LoopState], Any],
    config: ModelConfig,
    rule: ExitRule,
    state: LoopState,
    loops: int,
    whole: bool,
) -> tuple[LoopState, LoopOutput]:
    """``step`` until every token has left by the rule, or ``loops`` times; with ``whole`` always
    so often. ``read``: of a state, log p of the next token, if the rule asks for it.

    Returns each token's state where it left, the keys and values of all loops [L, …], those that
    did not run zero, and `depth_BT`. UserError for a state that is not each token's own.
    """
    shape_BT = state.x_BTD.shape[:2]

    if any(array.shape[:2] != shape_BT for array in jax.tree.leaves(state)):
        raise UserError(f"exit={rule}: this kind of loop carries what is not of one token alone")

    def where(mask_BT: Array, new: Array, old: Array) -> Array:
        return jnp.where(mask_BT.reshape(*shape_BT, *(1,) * (new.ndim - 2)), new, old)

    def one(at: Leaving) -> Leaving:
        state, output = step(at.state, at.loop)
        gate_BT = output.emitted.get("gate")
        stop_BT, known = rule.ask(at.known, state.x_BTD, gate_BT, read(state))
        done = at.loop + 1
        kept = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new, at.loop, 0),
            at.kept,
            output.kept,
        )
        return Leaving(
            done,
            state,
            jax.tree.map(lambda new, old: where(at.active_BT, new, old), state, at.left),
            jnp.where(at.active_BT, done, at.depth_BT),
            at.active_BT & ~(stop_BT & (done >= rule.least)),
            known,
            kept,
        )

    def going_on(at: Leaving) -> Array:
        return (at.loop < loops) & (whole | jnp.any(at.active_BT))

    kept = jax.tree.map(
        lambda one: jnp.zeros((loops, *one.shape), one.dtype),
        jax.eval_shape(step, state, jnp.int32(0))[1].kept,
    )
    known = rule.start(config, state.x_BTD)
    nobody_BT, all_BT = jnp.zeros(shape_BT, jnp.int32), jnp.ones(shape_BT, bool)
    start = Leaving(jnp.int32(0), state, state, nobody_BT, all_BT, known, kept)
    end = jax.lax.while_loop(going_on, one, start)
    return end.left, LoopOutput(kept=end.kept, depth_BT=end.depth_BT)
