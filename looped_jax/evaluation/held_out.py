"""Loss and exact match on held-out rows.

A row counts as right if every position of its answer is predicted right, given the right
answer before it. That is the same as greedy generation being right: greedy decoding sees its own
earlier tokens, and as long as these are right they are the answer; the first wrong one makes
both wrong.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from looped_jax.data.pipeline import eval_batches
from looped_jax.data.rows import Rows, RowSource
from looped_jax.data.text import TextRows
from looped_jax.models.loss import token_scores
from looped_jax.models.transformer import LoopedTransformer, hidden_and_kernel
from looped_jax.parallel.mesh import mesh_context, put_batch, replicated


def row_sums(
    model: LoopedTransformer,
    params: Any,
    batch: dict[str, jax.Array],
    loops: int | None,
    groups: int,
) -> dict[str, jax.Array]:
    """Sums over a batch: rows with an answer and rows right; cross-entropy, weight and bytes of
    text, each as an array over ``groups`` components."""
    x_BTD, kernel_VD = hidden_and_kernel(model, params, batch, loops)
    xent_BT, likeliest_BT = token_scores(model.config, x_BTD, kernel_VD, batch["targets"])
    right_BT = likeliest_BT == batch["targets"]
    asked_B = jnp.any(batch["answer"], axis=1)
    right_B = jnp.all(right_BT | ~batch["answer"], axis=1) & asked_B
    nothing_BT = jnp.zeros_like(batch["targets"])
    group_BT = batch.get("group", nothing_BT)

    def by_group(values_BT: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values_BT.reshape(-1), group_BT.reshape(-1), groups)

    return {
        "asked": jnp.sum(asked_B),
        "right": jnp.sum(right_B),
        "xent": by_group(xent_BT * batch["loss_weights"]),
        "weight": by_group(batch["loss_weights"]),
        "bytes": by_group(batch.get("target_bytes", nothing_BT)),
    }


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """One evaluation: a name, and batches that are the same every time."""

    name: str
    batches: tuple[Rows, ...]  # Of each, the rows of this process.
    batch_size: int  # Rows of a whole batch.
    components: tuple[str, ...] = ("",)  # Parts of a text that are also reported one by one.

    @classmethod
    def from_source(
        cls,
        name: str,
        source: RowSource,
        examples: int,
        batch_size: int,
        local: np.ndarray | None = None,
    ) -> "HeldOut":
        """The first ``examples`` rows of a source; ``local`` as in eval_batches."""
        batches = tuple(eval_batches(source, examples, batch_size, local))
        components = source.components if isinstance(source, TextRows) else ("",)
        return cls(name, batches, batch_size, components)


class Evaluator:
    """Evaluates parameters of one model; compiled once per number of components."""

    def __init__(self, model: LoopedTransformer, mesh: Mesh, rules: Any, loops: int | None = None):
        self._mesh = mesh
        self._context = functools.partial(mesh_context, mesh, rules, model.config.dtype)
        self._sums = jax.jit(
            lambda params, batch, groups: row_sums(model, params, batch, loops, groups),
            static_argnums=2,
            out_shardings=replicated(mesh),  # Every process reads the sums.
        )

    def __call__(
        self, params: Any, held_out: HeldOut, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Returns eval/<name>/loss (nats per token) and either eval/<name>/accuracy (exact match,
        0 to 1) or, for text, eval/<name>/perplexity and eval/<name>/bits_per_byte, then the same
        three for every component, eval/<name>/<component>/loss and so on.

        None if ``stop``, asked before every batch, says so.
        """
        totals: dict[str, Any] = {}
        with self._context():
            for batch in held_out.batches:
                if stop():
                    return None
                whole = put_batch(batch, self._mesh, held_out.batch_size)
                sums = self._sums(params, whole, len(held_out.components))
                for key, value in jax.device_get(sums).items():
                    totals[key] = totals.get(key, 0.0) + value.astype(np.float64)
        prefix = f"eval/{held_out.name}"
        if totals["asked"]:
            loss = totals["xent"].sum() / totals["weight"].sum()
            accuracy = totals["right"] / totals["asked"]
            return {f"{prefix}/loss": float(loss), f"{prefix}/accuracy": float(accuracy)}
        xent, weight, size = totals["xent"], totals["weight"], totals["bytes"]
        metrics = _text_metrics(prefix, xent.sum(), weight.sum(), size.sum())
        if len(held_out.components) > 1:
            for i, component in enumerate(held_out.components):
                if weight[i]:  # Not every component need be among the rows evaluated.
                    metrics |= _text_metrics(f"{prefix}/{component}", xent[i], weight[i], size[i])
        return metrics


def _text_metrics(prefix: str, xent: float, tokens: float, size: float) -> dict[str, float]:
    loss = float(xent / tokens)
    metrics = {
        f"{prefix}/loss": loss,
        f"{prefix}/perplexity": math.exp(min(loss, 700.0)),  # exp(710) has no float.
    }
    if size:  # None where all that is predicted are ends of empty documents.
        metrics[f"{prefix}/bits_per_byte"] = float(xent / math.log(2) / size)
    return metrics
