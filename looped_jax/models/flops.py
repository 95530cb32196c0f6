"""Model FLOPs, counted from the architecture: 2 per multiply-add of every matrix product.

Attention counts the whole T x T square, as is usual (Chowdhery et al. 2022, appendix B), though
half of it is masked. Element-wise work is left out. A k⊗L model counts as kL layers, and what a
kind of loop multiplies beside them. Where tokens are not in all loops (config.loop.routing) the
work that is done and dropped counts too, as it is done.
"""

from looped_jax.models.config import ModelConfig
from looped_jax.models.loops import chosen, places_in, runs_of


def _per_token(config: ModelConfig, length: int, train: bool) -> tuple[float, float, float, float]:
    """Of a forward pass, what the plan's loops take, of that what those take that gradients go
    through, what comes before or between them, and what reads them out: the layers behind the last
    of them, and the output projection."""
    d, f = config.d_model, config.d_ff
    queries, groups = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    gates = queries if config.attention_gate or config.layer == "ngpt" else 0
    projections = 2 * d * (queries + 2 * groups + gates) + 2 * queries * d
    attention = 2 * 2 * queries  # Scores, and the average of the values, for each token seen.
    mlp = 2 * d * f * (3 if config.mlp == "swiglu" else 2)
    in_loops, with_gradient, before, after = 0.0, 0.0, 0.0, 0.0
    variants = chosen(config).values()
    for segment in config.plan.segments:
        if segment.trained_loops == 1:
            after += segment.layers * (projections + attention * length + mlp)
            continue
        here: float = segment.loops * sum(v.loop_flops(config) for v in variants)
        in_layers = projections + mlp + sum(v.layer_flops(config) for v in variants)
        for loop in range(segment.loops):
            tokens = places_in(config, loop, segment.loops, length) if train else length
            here += tokens / length * segment.layers * (in_layers + attention * tokens)
        kept = sum(run.loops for run in runs_of(config, segment) if run.gradient)
        in_loops += here
        with_gradient += here * kept / segment.loops
        before, after = before + after + sum(v.pass_flops(config) for v in variants), 0
    return in_loops, with_gradient, before, after + 2 * d * config.vocab_size


def forward_flops(config: ModelConfig, rows: int, length: int) -> float:
    """FLOPs of one forward pass over ``rows`` rows of ``length`` tokens."""
    in_loops, _, before, after = _per_token(config, length, train=False)
    return rows * length * (in_loops + before + after)


def train_flops(
    config: ModelConfig,
    rows: int,
    length: int,
    counts: tuple[float, float] | None = None,
    read_outs: int = 1,
    short_loops: float | None = None,
) -> float:
    """FLOPs of one training step: the backward pass takes twice the forward pass.

    ``counts``: loops of a row, and those of them that have a backward pass, where loop counts are
    data (models/loops/counted.py); None: the plan's, and all. ``read_outs``: loops that have a loss
    (training/loop_losses.py). ``short_loops``: loops of a second pass (training/shortcut.py), if
    there is one. Recomputation (`remat`) is not counted: model FLOPs, not hardware FLOPs.
    """
    in_loops, with_gradient, before, after = _per_token(config, length, train=True)
    of_loops = in_loops + 2 * with_gradient
    if counts is not None:
        loops, gradient_loops = counts
        (looped,) = config.plan.looped
        passes = (loops + 2 * gradient_loops) / config.plan.segments[looped].loops
        of_loops = passes * in_loops
    of_token = of_loops + 3 * (before + read_outs * after)
    if short_loops is not None:
        (looped,) = config.plan.looped
        passes = short_loops / config.plan.segments[looped].loops
        of_token += 3 * (passes * in_loops + before + after)
    return rows * length * of_token
