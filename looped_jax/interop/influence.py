"""How much each layer of a model without loops changes the stream, measured on text.

Block influence of layer l (ShortGPT, arXiv 2403.03853, equation 1): 1 - cos(x_l, x_{l+1}), the mean
over tokens of the stream that enters it and the one that leaves it.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from looped_jax.interop.imported import imported
from looped_jax.interop.source import Source
from looped_jax.models.config import ModelConfig
from looped_jax.models.layers import is_token
from looped_jax.models.loop_plan import LoopPlan, Segment
from looped_jax.models.loops.segment import Wanted
from looped_jax.models.transformer import LoopedTransformer, forward


def block_influence(
    source: Source, config: ModelConfig, depth: int, rows: dict[str, np.ndarray]
) -> list[float]:
    """Of each of the source's ``depth`` layers, over the tokens of ``rows`` (data/rows.py)."""
    plan = LoopPlan((Segment(1, 1),) * depth)
    config = dataclasses.replace(config, plan=plan, loop=(), unroll="none")
    model = LoopedTransformer(config)
    params = imported(source, config, [(number,) for number in range(depth)])

    @jax.jit
    def of_layers(params: Any, tokens_BT: Any, segment_ids_BT: Any, positions_BT: Any) -> Any:
        output = forward(
            *(model, params, tokens_BT, segment_ids_BT, positions_BT), wanted=Wanted(states=True)
        )
        table_VD = params["embed"]["embedding"]
        streams = [table_VD[tokens_BT] * config.d_model**0.5]
        for segment in output.segments:
            assert segment.x_BTD is not None
            streams.append(segment.x_BTD[0])
        token_BT = is_token(segment_ids_BT, streams[0])
        tokens = jnp.sum(token_BT)
        return jnp.stack(
            [
                1 - jnp.sum(optax.cosine_similarity(before, after) * token_BT) / tokens
                for before, after in itertools.pairwise(streams)
            ]
        )

    found = of_layers(params, *(rows[name] for name in ("tokens", "segment_ids", "positions")))
    return [float(value) for value in found]
