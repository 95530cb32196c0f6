"""What loops do, measured while held-out rows are evaluated (docs/train.md): the numbers of
models/loops/watched.py, where a gate would have tokens end, and what variants say of their
parameters.

By a looped segment's number; where a plan has one only, its names do not tell it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import is_token
from looped_jax.models.loops.base import LoopOutput, collections
from looped_jax.models.loops.gate import exit_entropy, exit_log_p
from looped_jax.models.loops.segment import LoopedSegment, Wanted
from looped_jax.models.loops.watched import OF_PAIRS, OF_TOKENS, counts
from looped_jax.models.transformer import LoopedTransformer, Output

Array = jax.Array
Sums = dict[str, dict[str, Any]]


def _has_gate(config: ModelConfig) -> bool:
    return dict(config.loop).get("gate") == "linear"


def wanted(config: ModelConfig) -> Wanted:
    """What a pass has to return for it."""
    return Wanted(watched=True, emitted=_has_gate(config))


def sums(config: ModelConfig, output: Output, segment_ids_BT: Array) -> Sums:
    """Of a batch, by segment: sums over tokens and over pairs of them, [L], and how many there are,
    [], of both."""
    real_BT = is_token(segment_ids_BT, output.x_BTD)
    tokens_B, pairs_B = counts(real_BT)
    found: Sums = {}
    for index in config.plan.looped:
        loops = output.segments[index]
        found[str(index)] = {
            "tokens": jnp.sum(tokens_B),
            "pairs": jnp.sum(pairs_B),
            **{name: jnp.sum(value_LB, axis=1) for name, value_LB in loops.watched.items()},
            **(_exits(loops, real_BT) if _has_gate(config) else {}),
        }
    return found


def _exits(loops: LoopOutput, real_BT: Array) -> dict[str, Array]:
    log_p_LBT = exit_log_p(loops.emitted["gate"])
    p_LBT = jnp.exp(log_p_LBT)
    return {
        "exit": jnp.tensordot(p_LBT, real_BT, 2),
        "entropy": jnp.sum(real_BT * exit_entropy(log_p_LBT)),
    }


def metrics(prefix: str, totals: Sums) -> dict[str, float]:
    """Means over tokens and pairs: prefix/loop_<t>/<name>, with a gate loop_<t>/exit, the
    probability of ending there, and exit/loops and exit/entropy as in training."""
    found: dict[str, float] = {}
    for index, total in totals.items():
        where = f"{prefix}/segment_{index}" if len(totals) > 1 else prefix
        divisors = dict.fromkeys((*OF_TOKENS, "exit"), total["tokens"])
        divisors |= dict.fromkeys(OF_PAIRS, total["pairs"])
        for name, divisor in divisors.items():
            if name in total and divisor:
                for loop, value in enumerate(total[name] / divisor, start=1):
                    found[f"{where}/loop_{loop}/{name}"] = float(value)
        if "exit" in total and total["tokens"]:
            p_L = total["exit"] / total["tokens"]
            found[f"{where}/exit/loops"] = float(np.arange(1, len(p_L) + 1) @ p_L)
            found[f"{where}/exit/entropy"] = float(total["entropy"] / total["tokens"])
    return found


def of_parameters(model: LoopedTransformer, params: Any) -> dict[str, Array]:
    """loop/<name>, [] each, of what variants watch of their parameters (LoopVariant.watch)."""
    config, looped = model.config, model.config.plan.looped
    found: dict[str, Array] = {}
    for index in looped:
        segment = LoopedSegment(config, config.plan.segments[index], parent=None)
        name = f"segment_{index}"
        own = {kind: tree[name] for kind, tree in collections(params).items() if name in tree}
        said: Any = segment.apply(own, method="watch")
        where = f"loop/{name}" if len(looped) > 1 else "loop"
        found |= {f"{where}/{key}": value for key, value in said.items()}
    return found
