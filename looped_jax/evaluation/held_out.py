"""Loss and exact match on held-out rows.

A row counts as right if every position of its answer is predicted right, given the right
answer before it. That is the same as greedy generation being right: greedy decoding sees its own
earlier tokens, and as long as these are right they are the answer; the first wrong one makes
both wrong.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from looped_jax.data.mixture import JoinedRows
from looped_jax.data.pipeline import Sample, eval_batches
from looped_jax.data.rows import Rows, RowSource
from looped_jax.data.text import TextRows
from looped_jax.evaluation import loop_watch
from looped_jax.evaluation.intervals import ratio_interval
from looped_jax.inference.forced import forced, prompts_of, read_at_once
from looped_jax.inference.policy import EXACT, Policy
from looped_jax.models.loops.base import Intervention
from looped_jax.models.loops.segment import NOTHING
from looped_jax.models.loss import token_scores
from looped_jax.models.transformer import LoopedTransformer, batch_forward
from looped_jax.parallel.mesh import mesh_context, put_batch, replicated


def row_sums(
    model: LoopedTransformer,
    params: Any,
    batch: dict[str, jax.Array],
    loops: int | None,
    documents: int,
    policy: Policy = EXACT,
    watch: bool = False,
    intervention: Intervention | None = None,
) -> dict[str, Any]:
    """Sums over a batch: rows with an answer and rows right; cross-entropy, weight and bytes of
    text, each as an array over ``documents``; where tokens differ in their loops (an exit, or
    config.loop.routing), of weight by the loops taken, from 0; with ``watch``, of what loops do,
    see evaluation/loop_watch.py.
    """
    if read_at_once(policy):
        wanted = loop_watch.wanted(model.config) if watch else NOTHING
        asked = {"exit": policy.exit, "wanted": wanted, "intervention": intervention}
        output = batch_forward(model, params, batch, loops=loops, **asked)
    else:
        rows = (batch["tokens"], batch["segment_ids"], batch["positions"], prompts(batch))
        output = forced(model, params, *rows, loops, policy)
    xent_BT, likeliest_BT = token_scores(
        model.config, output.x_BTD, output.kernel_VD, batch["targets"]
    )
    right_BT = likeliest_BT == batch["targets"]
    asked_B = jnp.any(batch["answer"], axis=1)
    right_B = jnp.all(right_BT | ~batch["answer"], axis=1) & asked_B
    nothing_BT = jnp.zeros_like(batch["targets"])
    document_BT = batch.get("document", nothing_BT)

    def by_document(values_BT: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values_BT.reshape(-1), document_BT.reshape(-1), documents)

    sums: dict[str, Any] = {
        "asked": jnp.sum(asked_B),
        "right": jnp.sum(right_B),
        "xent": by_document(xent_BT * batch["loss_weights"]),
        "weight": by_document(batch["loss_weights"]),
        "bytes": by_document(batch.get("target_bytes", nothing_BT)),
    }
    if output.depth_BT is not None:
        most = max(segment.loops for segment in model.config.plan.with_loops(loops).segments)
        sums["depths"] = jnp.zeros(most + 1).at[output.depth_BT].add(batch["loss_weights"])
    if watch:
        sums["loops"] = loop_watch.sums(model.config, output, batch["segment_ids"])
    return sums


def prompts(batch: dict[str, jax.Array]) -> jax.Array:
    """prompt_BT, where loops share a cache: what is read at once before tokens are decoded. A row
    with an answer has it up to there, other documents up to the first token that is asked for."""
    answer_BT = batch["answer"]
    has_answer_B1 = jnp.any(answer_BT, axis=1, keepdims=True)
    asked_BT = jnp.where(has_answer_B1, answer_BT, batch["loss_weights"] > 0)
    return prompts_of(asked_BT, batch["segment_ids"])


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """One evaluation: a name, and batches that are the same every time."""

    name: str
    batches: tuple[Rows, ...]  # Of each, the rows of this process.
    batch_size: int  # Rows of a whole batch.
    sample: Sample
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
        """``examples`` rows of a source, or of each of joined ones, by data/pipeline.py's Sample;
        ``local`` as in eval_batches."""
        sample = Sample.of(source, examples)
        batches = tuple(eval_batches(sample, batch_size, local))
        components = source.components if isinstance(source, TextRows | JoinedRows) else ("",)
        return cls(name, batches, batch_size, sample, components)


class Evaluator:
    """Evaluates parameters of one model; compiled once per number of documents. With ``watch`` it
    also says what loops do, see evaluation/loop_watch.py; with an ``intervention`` the model is
    so changed. A ``policy`` goes with neither.
    With a cache that loops share, rows are read as decoding reads them (inference/forced.py).
    """

    def __init__(
        self,
        model: LoopedTransformer,
        mesh: Mesh,
        rules: Any,
        loops: int | None = None,
        policy: Policy = EXACT,
        watch: bool = False,
        intervention: Intervention | None = None,
    ):
        assert policy == EXACT or not (watch or intervention)
        if not read_at_once(policy):
            # As a Generator has it: single tokens have no kernels and are not split over devices.
            model = LoopedTransformer(dataclasses.replace(model.config, attention="xla"))
            rules = tuple((n, None if n == "length" else where) for n, where in rules)
        self._mesh = mesh
        self._context = functools.partial(mesh_context, mesh, rules, model.config.dtype)
        self._sums = jax.jit(
            lambda params, batch, count: row_sums(
                model, params, batch, loops, count, policy, watch, intervention
            ),
            static_argnums=2,
            out_shardings=replicated(mesh),  # Every process reads the sums.
        )

    def __call__(
        self, params: Any, held_out: HeldOut, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Returns eval/<name>/loss (nats per token) and either eval/<name>/accuracy (exact match,
        0 to 1) or, for text, eval/<name>/perplexity with its 95% interval over documents,
        perplexity_low and perplexity_high, bits_per_byte, and the tokens and documents behind them,
        then the same for every component, eval/<name>/<component>/loss and so on. With an exit or
        routing also eval/<name>/loops_used, the mean over tokens, and exit_<n>, the share that took
        n. Watched, eval/<name>/loop_<t>/… of every loop.

        None if ``stop``, asked before every batch, says so.
        """
        totals: dict[str, Any] = {}
        of_document = held_out.sample.component_of_document
        with self._context():
            for batch in held_out.batches:
                if stop():
                    return None
                whole = put_batch(batch, self._mesh, held_out.batch_size)
                sums = jax.device_get(self._sums(params, whole, len(of_document)))
                sums = jax.tree.map(lambda value: value.astype(np.float64), sums)
                totals = jax.tree.map(np.add, totals, sums) if totals else sums
        prefix = f"eval/{held_out.name}"
        used = loops_used(prefix, totals["depths"]) if "depths" in totals else {}
        used |= loop_watch.metrics(prefix, totals.get("loops", {}))
        if totals["asked"]:
            loss = totals["xent"].sum() / totals["weight"].sum()
            accuracy = totals["right"] / totals["asked"]
            return {f"{prefix}/loss": float(loss), f"{prefix}/accuracy": float(accuracy), **used}
        sums = (totals["xent"], totals["weight"], totals["bytes"])
        metrics = _text_metrics(prefix, *sums) | used
        if len(held_out.components) > 1:
            for i, component in enumerate(held_out.components):
                own = of_document == i
                if totals["weight"][own].any():  # Not every component need be in the sample.
                    metrics |= _text_metrics(f"{prefix}/{component}", *(x[own] for x in sums))
        return metrics


def loops_used(prefix: str, tokens_L: Sequence[float]) -> dict[str, float]:
    """prefix/loops_used, the mean, and prefix/exit_<n>, shares, of the tokens that took 0, 1, …
    loops."""
    total = sum(tokens_L)
    mean = sum(n * count for n, count in enumerate(tokens_L)) / total
    shares = {f"{prefix}/exit_{n}": float(c / total) for n, c in enumerate(tokens_L) if c}
    return {f"{prefix}/loops_used": float(mean), **shares}


def _text_metrics(
    prefix: str, xent_D: np.ndarray, tokens_D: np.ndarray, bytes_D: np.ndarray
) -> dict[str, float]:
    """Of sums over each of D documents."""
    measured = tokens_D > 0
    xent_D, tokens_D = xent_D[measured], tokens_D[measured]
    xent, tokens, size = xent_D.sum(), tokens_D.sum(), bytes_D.sum()
    loss = float(xent / tokens)
    metrics = {
        f"{prefix}/loss": loss,
        f"{prefix}/perplexity": _perplexity(loss),
        f"{prefix}/tokens": float(tokens),
        f"{prefix}/documents": float(len(tokens_D)),
    }
    low, high = ratio_interval(xent_D, tokens_D)
    if math.isfinite(low):
        metrics[f"{prefix}/perplexity_low"] = _perplexity(low)
        metrics[f"{prefix}/perplexity_high"] = _perplexity(high)
    if size:  # None where all that is predicted are ends of empty documents.
        metrics[f"{prefix}/bits_per_byte"] = float(xent / math.log(2) / size)
    return metrics


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # exp(710) has no float.
