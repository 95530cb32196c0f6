"""Loss and exact match on held-out rows.

A row counts as right if every position of its answer is predicted right, given the right
answer before it. That is the same as greedy generation being right: greedy decoding sees its own
earlier tokens, and as long as these are right they are the answer; the first wrong one makes
both wrong.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from looped_jax.data.pipeline import eval_batches
from looped_jax.data.rows import FIRST_FREE_ID, Rows, RowSource
from looped_jax.models.transformer import LoopedTransformer, batch_logits
from looped_jax.parallel.mesh import mesh_context, put_batch


def row_sums(
    model: LoopedTransformer, params: Any, batch: dict[str, jax.Array], loops: int | None
) -> dict[str, jax.Array]:
    """Sums over a batch: cross-entropy and weight, rows with an answer and rows right, bytes."""
    logits_BTV = batch_logits(model, params, batch, loops)
    xent_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch["targets"])
    right_BT = jnp.argmax(logits_BTV, axis=-1) == batch["targets"]
    asked_B = jnp.any(batch["answer"], axis=1)
    right_B = jnp.all(right_BT | ~batch["answer"], axis=1) & asked_B
    counted_BT = batch["loss_weights"] > 0
    return {
        "xent": jnp.sum(xent_BT * batch["loss_weights"]),
        "weight": jnp.sum(batch["loss_weights"]),
        "asked": jnp.sum(asked_B),
        "right": jnp.sum(right_B),
        "bytes": jnp.sum(counted_BT & (batch["targets"] >= FIRST_FREE_ID)),
    }


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """One evaluation: a name, and batches that are the same every time."""

    name: str
    batches: tuple[Rows, ...]

    @classmethod
    def from_source(
        cls, name: str, source: RowSource, examples: int, batch_size: int, process: int, of: int
    ) -> "HeldOut":
        """The first ``examples`` rows of a source; this process's share of each batch."""
        share = batch_size // of
        local = slice(process * share, (process + 1) * share)
        batches = eval_batches(source, examples, batch_size)
        return cls(name, tuple({k: v[local] for k, v in b.items()} for b in batches))


class Evaluator:
    """Evaluates parameters of one model; compiled once."""

    def __init__(self, model: LoopedTransformer, mesh: Mesh, rules: Any, loops: int | None = None):
        self._mesh, self._rules = mesh, rules
        self._sums = jax.jit(lambda params, batch: row_sums(model, params, batch, loops))

    def __call__(
        self, params: Any, held_out: HeldOut, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Returns eval/<name>/loss (nats per token) and either eval/<name>/accuracy (exact match,
        0 to 1) or, for text, eval/<name>/perplexity and eval/<name>/bits_per_byte.

        None if ``stop``, asked before every batch, says so.
        """
        totals: dict[str, float] = {}
        with mesh_context(self._mesh, self._rules):
            for batch in held_out.batches:
                if stop():
                    return None
                sums = self._sums(params, put_batch(batch, self._mesh))
                for key, value in jax.device_get(sums).items():
                    totals[key] = totals.get(key, 0.0) + float(value)
        loss = totals["xent"] / totals["weight"]
        metrics = {"loss": loss}
        if totals["asked"]:
            metrics["accuracy"] = totals["right"] / totals["asked"]
        else:
            metrics["perplexity"] = math.exp(min(loss, 700.0))  # exp(710) has no float.
            metrics["bits_per_byte"] = totals["xent"] / math.log(2) / totals["bytes"]
        return {f"eval/{held_out.name}/{key}": value for key, value in metrics.items()}
