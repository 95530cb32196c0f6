"""Losses of what every loop says, in place of the last loop's alone (config.loop_loss).

CE_t is a token's cross-entropy had the model ended after loop t; p_t its probability of ending
there, of the gate's lambda_t (models/loops/gate.py); L loops. Of each token, averaged over tokens:

weighted  sum_t w_t CE_t
expected  sum_t p_t CE_t - beta H(p), H being the entropy (Ouro's stage I, arXiv 2510.25741, section
          3: the evidence bound with a uniform prior, up to a constant)
gate      for the gate alone; nothing else is trained, whatever config.optimizer.frozen says (Ouro's
          stage II): with w_t near 1 where loop t gained,
          w_t = sigmoid(50 (max(0, CE_{t-1} - CE_t) - 0.005)), it is
          -1/L sum_{t=2..L} w_t log(1 - lambda_t) + (1 - w_t) log lambda_t
ponder    sum_t p_t CE_t + beta KL(p || g), g_t proportional to a (1 - a)^(t - 1) (PonderNet, arXiv
          2107.05407)
act       CE of the mixed states + beta (loops + remainder) (models/loops/act.py)
shortcut  CE_L, and of a trajectory of fewer loops its CE and its distance (training/shortcut.py)

beta is config.loop_loss.beta, whose default, 0.05, is for `expected`; the two baselines, `ponder`
and `act`, are published with 0.01: set it.

Only CE_t and the gates are kept of a loop, float32 [L, B, T].
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from looped_jax.errors import UserError
from looped_jax.models.config import ModelConfig
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.models.loops.base import LoopOutput
from looped_jax.models.loops.gate import exit_entropy, exit_log_p
from looped_jax.training import shortcut

Array = jax.Array
# Ouro's stage II: how sharply a gain is told from none, and from where on it is one, in nats.
_SHARPNESS, _GAIN = 50.0, 0.005
_GATES = {"expected": "linear", "gate": "linear", "ponder": "linear", "act": "act"}


@dataclasses.dataclass(frozen=True)
class LoopLosses:
    """Of the plan's one looped segment. Fields as in config.loop_loss."""

    segment: int
    loops: int
    kind: str
    weights: tuple[float, ...]
    beta: float
    prior: float

    @classmethod
    def from_config(cls, config: ConfigDict) -> "LoopLosses | None":
        """None for the last loop's cross-entropy, also where nothing is looped (the baseline of a
        comparison); UserError for what cannot work."""
        kind, weights = config.loop_loss.kind, config.loop_loss.weights
        if weights and kind not in ("weighted", "shortcut"):
            raise UserError(
                f"config.loop_loss.weights are for kind='weighted' and 'shortcut', not {kind!r}"
            )
        if kind == "last":
            return None
        plan = LoopPlan.parse(config.model.plan)
        looped = plan.looped
        if not looped:
            return None
        if len(looped) > 1:
            raise UserError(
                f"config.loop_loss is about one looped segment; plan {plan} has {len(looped)}"
            )
        needed, gate = _GATES.get(kind), config.loop.gate
        if needed is not None and gate != needed:
            raise UserError(
                f"config.loop_loss.kind={kind!r} needs config.loop.gate={needed!r}; it is {gate!r}"
            )
        if kind == "shortcut" and config.loop.per_loop != "time":
            raise UserError(
                "config.loop_loss.kind='shortcut' needs config.loop.per_loop='time', by which "
                f"loops know how long they are; it is {config.loop.per_loop!r}"
            )
        if config.train.z_loss:
            raise UserError("config.train.z_loss is for the last loop's loss (loop_loss.kind)")
        made = cls(looped[0], plan.segments[looped[0]].loops, **config.loop_loss.to_dict())
        if kind == "shortcut" and len(weights) not in (0, 2):
            raise UserError(
                "config.loop_loss.weights of kind='shortcut' are two, of the short trajectory's "
                f"loss and of its distance, not {len(weights)}"
            )
        if kind == "weighted" and weights and len(weights) != made.loops:
            raise UserError(
                f"config.loop_loss.weights has {len(weights)} numbers for {made.loops} loops"
            )
        return made

    def check(self, model: ModelConfig) -> None:
        """UserError where a model cannot have a loss of every loop."""
        if model.gradient_loops:
            raise UserError(
                f"config.loop_loss.kind={self.kind!r} is of the plan's loops, all with gradients; "
                "config.counts has others"
            )
        if self.looks and model.gather == "segment":
            raise UserError(
                f"config.loop_loss.kind={self.kind!r} needs config.model.gather='layer'"
            )

    @property
    def looks(self) -> bool:
        """Whether it has a cross-entropy of every loop."""
        return self.kind not in ("act", "shortcut")

    @property
    def trains_only(self) -> str:
        """The pattern of the parameters that it trains (training/parameter_groups.py); empty: all.
        The gate's logit has a gradient in the stream, too."""
        return f"segment_{self.segment}/gate" if self.kind == "gate" else ""

    @property
    def has_short_trajectory(self) -> bool:
        """Whether every step makes a second pass, with other loops."""
        return self.kind == "shortcut"

    @property
    def mean_short_loops(self) -> float | None:
        """Of the second pass."""
        return shortcut.mean_steps(self.loops) if self.has_short_trajectory else None

    @property
    def read_outs(self) -> int:
        """Cross-entropies of a step."""
        return self.loops if self.looks else 1

    def with_short_trajectory(
        self, xent: Array, short_xent: Array, distance: Array
    ) -> tuple[Array, dict[str, Array]]:
        """As ``of_every_loop``, of sums over tokens of both passes."""
        of_xent, of_distance = self.weights or shortcut.WEIGHTS
        loss = xent + of_xent * short_xent + of_distance * distance
        sums = {"loss": xent, "objective": loss}
        return loss, sums | {"short/loss": short_xent, "short/distance": distance}

    def of_the_mixture(
        self, xent: Array, loops: LoopOutput, weights_BT: Array
    ) -> tuple[Array, dict[str, Array]]:
        """As ``of_every_loop``; ``xent`` is the sum of the only cross-entropy there is."""
        time = jnp.sum(weights_BT * loops.emitted["gate"][-1])
        loss = xent + self.beta * time
        return loss, {"loss": jax.lax.stop_gradient(xent), "objective": loss, "ponder_time": time}

    def of_every_loop(self, loops: LoopOutput, weights_BT: Array) -> tuple[Array, dict[str, Array]]:
        """Sums over tokens by their weights: what is minimised, and what is reported. `loss` is the
        last loop's cross-entropy. ``loops.looked`` is xent_LBT, ``loops.emitted`` has the gate's
        logits_LBT."""
        xent_LBT: Any = loops.looked
        loss_BT, watched = self._each(xent_LBT, loops.emitted.get("gate"))
        watched |= {f"loop_{t + 1}/loss": xent_BT for t, xent_BT in enumerate(xent_LBT)}
        watched |= {"loss": xent_LBT[-1], "objective": loss_BT}
        sums = {name: jnp.sum(weights_BT * value_BT) for name, value_BT in watched.items()}
        return sums["objective"], sums

    def _each(self, xent_LBT: Array, logits_LBT: Any) -> tuple[Array, dict[str, Array]]:
        """The loss of each token, and what is worth watching of its exits."""
        if self.kind == "weighted":
            each_L = jnp.asarray(self.weights or (1.0 / self.loops,) * self.loops)
            return jnp.tensordot(each_L, xent_LBT, 1), {}
        log_p_LBT = exit_log_p(logits_LBT)
        p_LBT = jnp.exp(log_p_LBT)
        entropy_BT = exit_entropy(log_p_LBT)
        mean_BT = jnp.tensordot(jnp.arange(1.0, self.loops + 1), p_LBT, 1)
        watched = {"exit/loops": mean_BT, "exit/entropy": entropy_BT}
        if self.kind == "gate":
            return self._gate(logits_LBT, xent_LBT), watched
        expected_BT = jnp.sum(p_LBT * xent_LBT, axis=0)
        if self.kind == "expected":
            return expected_BT - self.beta * entropy_BT, watched
        log_g_L = jax.nn.log_softmax(jnp.log1p(-self.prior) * jnp.arange(self.loops))
        divergence_BT = -entropy_BT - jnp.tensordot(log_g_L, p_LBT, 1)
        return expected_BT + self.beta * divergence_BT, watched

    def _gate(self, logits_LBT: Array, xent_LBT: Array) -> Array:
        xent_LBT = jax.lax.stop_gradient(xent_LBT)
        gain_LBT = jnp.maximum(xent_LBT[:-1] - xent_LBT[1:], 0.0)
        go_on_LBT = jax.nn.sigmoid(_SHARPNESS * (gain_LBT - _GAIN))
        stop_LBT, stay_LBT = (jax.nn.log_sigmoid(sign * logits_LBT[1:]) for sign in (1, -1))
        likely_LBT = go_on_LBT * stay_LBT + (1.0 - go_on_LBT) * stop_LBT
        return -jnp.sum(likely_LBT, axis=0) / self.loops
