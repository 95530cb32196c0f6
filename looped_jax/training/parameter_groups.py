"""Parameters chosen by glob patterns of their paths: those with a learning rate of their own
(config.optimizer.group_rates) and those that are not trained (config.optimizer.frozen).

A path is as in a checkpoint, e.g. `segment_0/layers/layer/mlp/up/kernel`. A pattern chooses a
parameter by its path, or by that of anything that it is in: `embed` and `segment_*/layers` choose
all that is below them. `*` stands for any text, also across `/`.
"""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from looped_jax.errors import UserError, nearest
from looped_jax.models.config import ModelConfig
from looped_jax.models.loops.base import PER_LOOP
from looped_jax.models.matrices import layered_shape


def map_parameters(of: Callable[[str, Any], Any], axes: Any) -> Any:
    """``of`` (path, logical axes) of each parameter: a tree like ``axes``, which may lack some
    (optax.MaskedNode)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, names: of(jax.tree_util.keystr(path, simple=True, separator="/"), names),
        axes,
        # Axes are tuples, or of a type of JAX's that is none.
        is_leaf=lambda part: not isinstance(part, (dict, optax.MaskedNode)),
    )


def _with_folders(path: str) -> list[str]:
    """The path, and that of all it is in: a/b/c, a/b, a."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def matches(path: str, pattern: str) -> bool:
    """Whether the pattern chooses the parameter."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in _with_folders(path))


def first_match(key: str, patterns: Sequence[str], axes: Any) -> Any:
    """For each parameter the number of the first of ``patterns`` that chooses it, -1 if none does.

    UserError, naming config.optimizer.``key``, for a pattern that chooses no parameter, or none
    that is left by those before it.
    """
    found = map_parameters(
        lambda path, _: next((i for i, p in enumerate(patterns) if matches(path, p)), -1), axes
    )
    used = set(jax.tree.leaves(found))
    paths: list[str] = jax.tree.leaves(map_parameters(lambda path, _: path, axes))
    for number, pattern in enumerate(patterns):
        if number in used:
            continue
        if any(matches(path, pattern) for path in paths):
            raise UserError(
                f"config.optimizer.{key}: all that {pattern!r} chooses is chosen by patterns "
                "before it; leave it out or put it in front"
            )
        names = sorted({name for path in paths for name in _with_folders(path)}, key=len)
        hint = nearest(pattern, names) or "; there are " + ", ".join(
            sorted({path.split("/")[0] for path in paths})
        )
        raise UserError(f"config.optimizer.{key}: {pattern!r} is no parameter's path{hint}")
    return found


def group_rates(optimizer: ConfigDict, axes: Any) -> Any:
    """The factor of the learning rate of each parameter; UserError as ``first_match``."""
    patterns = [pattern for pattern, _ in optimizer.group_rates]
    factors = [float(factor) for _, factor in optimizer.group_rates]
    return jax.tree.map(
        lambda number: 1.0 if number < 0 else factors[number],
        first_match("group_rates", patterns, axes),
    )


def frozen_parameters(optimizer: ConfigDict, axes: Any, only: str = "") -> Any:
    """True for each parameter that is not trained; None if all are. ``only``: a pattern; what it
    does not choose is not trained either.

    UserError as ``first_match``, and where nothing is left to train.
    """
    if not optimizer.frozen and not only:
        return None
    found = map_parameters(lambda path, _: bool(only) and not matches(path, only), axes)
    if optimizer.frozen:
        numbers = first_match("frozen", optimizer.frozen, axes)
        found = jax.tree.map(lambda other, number: other or number >= 0, found, numbers)
    if all(jax.tree.leaves(found)):
        raise UserError(
            f"config.optimizer.frozen={optimizer.frozen!r} is every parameter: nothing is trained"
        )
    return found


def backward_passes(frozen: Any, axes: Any, params: Any, config: ModelConfig) -> tuple[float, ...]:
    """How many forward passes the backward pass takes of each segment and of the output projection
    (models/flops.py) where not all parameters are trained.

    One is for gradients that go through to what is trained in front or inside, and for that of
    each matrix that is trained another, of its share. ``frozen``: of frozen_parameters; ``axes``
    and shapes ``params`` of the same parameters.
    """

    def trained(tree: Any) -> bool:
        return not all(jax.tree.leaves(tree))

    def share(name: str) -> float:
        """Of all elements of the matrices below, those that are trained."""
        sizes = [0, 0]
        tree: Any = jax.tree.structure(params[name])
        leaves = (tree.flatten_up_to(of[name]) for of in (params, axes, frozen))
        for array, names, is_frozen in zip(*leaves, strict=True):
            if len(layered_shape(tuple(names), array.shape)) > 2:
                sizes[is_frozen] += array.size
        return sizes[False] / max(1, sum(sizes))

    segments = [f"segment_{i}" for i in range(len(config.plan.segments))]
    behind = {*segments, PER_LOOP, "final_norm", "output", "logit_scale"}
    through = trained([tree for name, tree in frozen.items() if name not in behind])
    passes = []
    for name in segments:
        # A gate reads the stream; nothing of what it says goes back into it but by ACT's.
        apart = "gate" if dict(config.loop).get("gate") == "linear" else ""
        own = [tree for part, tree in frozen[name].items() if part != apart]
        through = through or trained([*own, frozen.get(PER_LOOP, {}).get(name, {})])
        passes.append(through + share(name))
    through = through or trained(frozen.get("final_norm", {}))
    return (*passes, through + share("embed" if config.tied_output else "output"))


def held(params: Any, frozen: Any) -> Any:
    """The parameters as a loss takes them: no gradient goes to those that are ``frozen``, and what
    only it would need is not computed."""
    if frozen is None:
        return params
    return jax.tree.map(
        lambda p, is_held: jax.lax.stop_gradient(p) if is_held else p, params, frozen
    )
