"""Model FLOPs, counted from the architecture: 2 per multiply-add of every matrix product.

Attention counts the whole T x T square, as is usual (Chowdhery et al. 2022, appendix B), though
half of it is masked. Element-wise work is left out. A k⊗L model counts as kL layers, and what a
kind of loop multiplies beside them. Where tokens are not in all loops (config.loop.routing), or
rows wait for others (config.counts.by=row), the work that is done and dropped counts too, as it is
done.
"""

from collections.abc import Sequence
from typing import NamedTuple

from looped_jax.models.config import ModelConfig
from looped_jax.models.loops import chosen, places_in, runs_of


class _Part(NamedTuple):
    """FLOPs of a token in a forward pass through a segment, or of the output projection."""

    once: float
    loops: float = 0.0  # What all loops of the plan take.
    kept: float = 0.0  # Those of them that gradients go through.
    looped: int = 0  # How many there are.


def _parts(config: ModelConfig, length: int, train: bool) -> list[_Part]:
    """Of the segments in order, and of the output projection."""
    d, f = config.d_model, config.d_ff
    queries, groups = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    gates = queries if config.attention_gate or config.layer == "ngpt" else 0
    projections = 2 * d * (queries + 2 * groups + gates) + 2 * queries * d
    attention = 2 * 2 * queries  # Scores, and the average of the values, for each token seen.
    mlp = 2 * d * f * (3 if config.mlp == "swiglu" else 2)
    parts = []
    variants = chosen(config).values()
    for segment in config.plan.segments:
        if segment.trained_loops == 1:
            parts.append(_Part(segment.layers * (projections + attention * length + mlp)))
            continue
        here: float = segment.loops * sum(v.loop_flops(config) for v in variants)
        in_layers = projections + mlp + sum(v.layer_flops(config) for v in variants)
        for loop in range(segment.loops):
            tokens = places_in(config, loop, segment.loops, length) if train else length
            here += tokens / length * segment.layers * (in_layers + attention * tokens)
        kept = sum(run.loops for run in runs_of(config, segment) if run.gradient)
        once = sum(v.pass_flops(config) for v in variants)
        parts.append(_Part(once, here, here * kept / segment.loops, segment.loops))
    return [*parts, _Part(2 * d * config.vocab_size)]


def forward_flops(config: ModelConfig, rows: int, length: int) -> float:
    """FLOPs of one forward pass over ``rows`` rows of ``length`` tokens."""
    return rows * length * sum(p.once + p.loops for p in _parts(config, length, train=False))


def train_flops(
    config: ModelConfig,
    rows: int,
    length: int,
    counts: tuple[float, float] | None = None,
    read_outs: int = 1,
    short_loops: float | None = None,
    backward: Sequence[float] | None = None,
) -> float:
    """FLOPs of one training step: the backward pass takes twice the forward pass.

    ``counts``: loops that are computed for every row, whether or not it waits in them, and those of
    them that have a backward pass, where loop counts are data (LoopCounts.computed); None: the
    plan's, and all. ``read_outs``: loops that have a loss
    (training/loop_losses.py). ``short_loops``: loops of a second pass (training/shortcut.py), if
    there is one. ``backward``: how many forward passes the backward pass takes of each segment and
    of the output projection, where parameters are frozen (training/parameter_groups.py).
    Recomputation (`remat`) is not counted: model FLOPs, not hardware FLOPs.
    """
    parts = _parts(config, length, train=True)
    behind = max((i for i, part in enumerate(parts) if part.looped), default=-1)
    of_token = 0.0
    for i, (part, back) in enumerate(zip(parts, backward or (2.0,) * len(parts), strict=True)):
        # What reads loops out: the layers behind the last of them, and the projection.
        of_token += (read_outs if i > behind else 1) * (1 + back) * part.once
        if part.looped and counts is not None:
            loops, gradient_loops = counts
            of_token += (loops + back * gradient_loops) / part.looped * part.loops
        else:
            of_token += part.loops + back * part.kept
        if short_loops is not None:
            of_short = short_loops / part.looped * part.loops if part.looped else 0.0
            of_token += (1 + back) * (part.once + of_short)
    return rows * length * of_token
