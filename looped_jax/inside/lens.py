"""What every loop would say had the loops ended there (the logit lens), and how its state changes.

The stream at the end of a loop goes through what follows the looped segment and the output
projection (`next_token` of models/transformer.py), one loop after the other: of a loop only the
figures below are kept, not its distribution over the vocabulary. The lens is nostalgebraist's
(2020, "interpreting GPT: the logit lens"), here at the ends of loops, where a looped model could
really stop. In a segment that is not looped its layers are looked at in the loops' place. Shapes in
names as in models/layers.py; L loops (or layers), N likeliest tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from looped_jax.inside.interventions import Change
from looped_jax.inside.passes import is_looped, look
from looped_jax.models.layers import Array
from looped_jax.models.loops.exits import ExitRule
from looped_jax.models.transformer import LoopedTransformer, forward, layer_inputs, next_token


class Lens(struct.PyTreeNode):
    """Of every loop and token.

    top_LBTN, top_log_p_LBTN: the likeliest next tokens, int32, and their log p.
    kl_LBT: KL(p of all loops || p of this one), nats.
    entropy_LBT: of p, nats.
    target_log_p_LBT, target_rank_LBT: of the right next token; rank 1 is the likeliest.
    norm_LBT: ||h_t||, over D, of the state h_t at the end of loop t.
    update_LBT, cosine_LBT: ||h_t - h_{t-1}|| / ||h_t|| and the cosine of the two; nan in the first
      loop, whose state before is not that of a loop.
    states_LBTD: the states themselves, float32.
    """

    top_LBTN: Array
    top_log_p_LBTN: Array
    kl_LBT: Array
    entropy_LBT: Array
    target_log_p_LBT: Array
    target_rank_LBT: Array
    norm_LBT: Array
    update_LBT: Array
    cosine_LBT: Array
    states_LBTD: Array


def lens(
    model: LoopedTransformer,
    params: Any,
    tokens_BT: Array,
    segment_ids_BT: Array,
    targets_BT: Array,
    *,
    segment: int,
    loops: int | None = None,
    top: int = 5,
    changes: tuple[Change, ...] = (),
) -> Lens:
    """The lens of ``segment``. ``targets_BT``: the right next token of each place; what is said of
    places that have none means nothing. ``changes``: see inside/interventions.py."""
    arguments = (tokens_BT, segment_ids_BT)
    say = next_token(model, params, layer_inputs(model.config, *arguments), None, segment)
    given: dict[str, Any] = {"segment": segment, "loops": loops, "changes": changes, "says": True}
    if is_looped(model.config, segment):
        seen = look(model, params, *arguments, states=True, **given)
        states_LBTD = seen.states_LBTD
    else:
        seen = look(model, params, *arguments, layers=True, **given)
        assert seen.layers_LkBTD is not None
        states_LBTD = seen.layers_LkBTD[0]
    assert states_LBTD is not None and seen.logits_BTV is not None
    last_BTV = jax.nn.log_softmax(seen.logits_BTV)
    last_p_BTV = jnp.exp(last_BTV)

    def read(x_BTD: Array) -> dict[str, Array]:
        log_p_BTV = say(x_BTD.astype(model.config.dtype))[..., : last_BTV.shape[-1]]
        p_BTV = jnp.exp(log_p_BTV)
        top_log_p_BTN, top_BTN = jax.lax.top_k(log_p_BTV, top)
        target_BT1 = jnp.take_along_axis(log_p_BTV, targets_BT[..., None], axis=-1)
        apart_BTV = jnp.where(last_p_BTV > 0, last_p_BTV * (last_BTV - log_p_BTV), 0.0)
        return {
            "top_LBTN": top_BTN,
            "top_log_p_LBTN": top_log_p_BTN,
            "kl_LBT": jnp.sum(apart_BTV, axis=-1),
            "entropy_LBT": -jnp.sum(jnp.where(p_BTV > 0, p_BTV * log_p_BTV, 0.0), axis=-1),
            "target_log_p_LBT": target_BT1[..., 0],
            "target_rank_LBT": 1 + jnp.sum(log_p_BTV > target_BT1, axis=-1),
        }

    said = jax.lax.map(read, states_LBTD)
    return Lens(**said, **_changes(states_LBTD), states_LBTD=states_LBTD)


def _changes(states_LBTD: Array) -> dict[str, Array]:
    """Norms of states, and what each is beside the one before."""
    norm_LBT = jnp.linalg.norm(states_LBTD, axis=-1)
    now, before = states_LBTD[1:], states_LBTD[:-1]
    tiny = jnp.finfo(jnp.float32).tiny
    update = jnp.linalg.norm(now - before, axis=-1) / jnp.maximum(norm_LBT[1:], tiny)
    along = jnp.sum(now * before, axis=-1)
    cosine = along / jnp.maximum(norm_LBT[1:] * norm_LBT[:-1], tiny)
    none = jnp.full((1, *norm_LBT.shape[1:]), jnp.nan)
    return {
        "norm_LBT": norm_LBT,
        "update_LBT": jnp.concatenate([none, update]),
        "cosine_LBT": jnp.concatenate([none, cosine]),
    }


def exit_depths(
    model: LoopedTransformer,
    params: Any,
    tokens_BT: Array,
    segment_ids_BT: Array,
    *,
    rule: ExitRule,
    loops: int | None = None,
) -> Array:
    """depth_BT: the loops that each token takes by an exit rule. UserError as ExitRule.check."""
    found = forward(model, params, tokens_BT, segment_ids_BT, loops=loops, exit=rule).depth_BT
    assert found is not None
    return found


jitted_lens = jax.jit(
    lens, static_argnums=0, static_argnames=("segment", "loops", "top", "changes")
)
