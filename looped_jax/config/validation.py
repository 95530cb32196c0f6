"""What makes a config impossible on any machine."""

from typing import Any

from ml_collections import ConfigDict

from looped_jax.config.combinations import check_combinations
from looped_jax.config.config_dict import get_key, variant_config
from looped_jax.config.keys import ACTIVATION_NAMES, KEYS, MOST, TRACKERS
from looped_jax.errors import UserError, nearest


def validate(config: ConfigDict) -> None:
    """Raises UserError naming the first key whose value cannot work, on any machine."""
    for name, known in KEYS.items():
        value = get_key(config, name)
        if known.choices and value not in known.choices:
            raise UserError(
                f"config.{name}={value!r} is not one of {', '.join(known.choices)}"
                + nearest(str(value), known.choices)
            )
        if known.range is not None and value not in known.range:
            raise UserError(f"config.{name}={value} must be {known.range}")
    _check_tuples(config)
    model, train = config.model, config.train
    if not model.head_size and model.d_model % model.num_heads:
        raise UserError(
            f"config.model.num_heads={model.num_heads} does not divide "
            f"config.model.d_model={model.d_model}; or say config.model.head_size"
        )
    if model.num_kv_heads and model.num_heads % model.num_kv_heads:
        raise UserError(
            f"config.model.num_kv_heads={model.num_kv_heads} does not divide "
            f"config.model.num_heads={model.num_heads}"
        )
    head_size = model.head_size or model.d_model // model.num_heads
    if model.positions == "rope" and head_size % 2:
        which = "head_size" if model.head_size else "d_model / num_heads"
        raise UserError(
            f"config.model.positions='rope' needs an even head size; {which} is {head_size}"
        )
    if train.batch_size % train.grad_accumulation:
        raise UserError(
            f"config.train.grad_accumulation={train.grad_accumulation} does not divide "
            f"config.train.batch_size={train.batch_size}"
        )
    for key in ("saved_names", "offloaded_names"):
        for name in model[key]:
            if name not in ACTIVATION_NAMES:
                raise UserError(
                    f"config.model.{key}: {name!r} is not one of {', '.join(ACTIVATION_NAMES)}"
                    + nearest(str(name), ACTIVATION_NAMES)
                )
        if model[key] and model.remat != "names":
            raise UserError(f"config.model.{key} is used by config.model.remat='names' only")
    _check_columns(config)
    check_combinations(config)
    _check_low_loops(config)
    names = [name for name, _ in config.variants]
    if config.variants and not config.comparison.metric:
        raise UserError("config.variants needs config.comparison.metric, e.g. eval/text/loss")
    for role in ("base", "looped", "iso_flop"):
        if config.comparison[role] and config.comparison[role] not in names:
            raise UserError(
                f"config.comparison.{role}={config.comparison[role]!r} is not a variant: "
                + ", ".join(names)
            )
    for name, overrides in config.variants:
        validate(variant_config(config, name, overrides))


def _check_columns(config: ConfigDict) -> None:
    """UserError for a column that none is called, or for one that is to be two things."""
    data = config.data
    for name in ("text_column", "prompt_column", "component_column"):
        if data[name] != data[name].strip(". ") or ".." in data[name]:
            raise UserError(
                f"config.data.{name}={data[name]!r} is not a name, or names joined by dots"
            )
    if not data.text_column:
        raise UserError("config.data.text_column is empty; it names what is trained on")
    for name in ("prompt_column", "component_column"):
        if data[name] == data.text_column:
            raise UserError(f"config.data.{name}={data[name]!r} is config.data.text_column too")
    if "\n" in data.document_separator or "\r" in data.document_separator:
        raise UserError(
            f"config.data.document_separator={data.document_separator!r} must be one line, without "
            "its end; blank is for blank lines"
        )


def _check_low_loops(config: ConfigDict) -> None:
    """UserError for gradients of low loops that are not there."""
    loop = config.loop
    if loop.low_gradient_loops and loop.nest == "none":
        raise UserError("config.loop.low_gradient_loops is for config.loop.nest, which is 'none'")
    if most := [count for count in loop.low_gradient_loops if count > loop.low_loops]:
        raise UserError(
            f"config.loop.low_gradient_loops: {most[0]} is more than the {loop.low_loops} low loops"
        )


def _check_tuples(config: ConfigDict) -> None:
    """UserError for a tuple whose parts are not what its key needs."""

    def is_number(item: Any) -> bool:
        is_one = isinstance(item, (int, float)) and not isinstance(item, bool)
        return is_one and 0 <= item < MOST

    def is_weight(item: Any) -> bool:
        return _is_pair(item) and is_number(item[1])

    def is_source(item: Any) -> bool:
        named = _is_pair(item) and bool(item[0]) and "/" not in item[0]
        return named and isinstance(item[1], str) and bool(item[1])

    def is_rates(item: Any) -> bool:
        is_two = isinstance(item, tuple) and len(item) == 2
        if not is_two or not is_share(item[0]) or not isinstance(item[1], tuple):
            return False
        return bool(item[1]) and all(map(is_weight, item[1]))

    def is_rule(item: Any) -> bool:
        if not _is_pair(item):
            return False
        parts = item[1] if isinstance(item[1], tuple) else item[1:]
        return all(part is None or isinstance(part, str) for part in parts)

    def is_variant(item: Any) -> bool:
        return _is_pair(item) and isinstance(item[1], tuple) and all(map(_is_pair, item[1]))

    def is_count(item: Any) -> bool:
        return isinstance(item, int) and not isinstance(item, bool) and 0 < item < MOST

    def is_share(item: Any) -> bool:
        return is_count(item) or (item == 0 and isinstance(item, int))

    def is_name(item: Any) -> bool:
        return isinstance(item, str)

    def is_pattern(item: Any) -> bool:
        return isinstance(item, str) and bool(item)

    forms = {
        "variants": (is_variant, '(name, ((key, value), …)), e.g. ("a", (("model.plan", "1x2"),))'),
        "mesh.rules": (is_rule, '(logical axis, mesh axis), e.g. ("embed", "fsdp")'),
        "data.sources": (is_source, "(name without /, folder), e.g. ('web', '/data/web')"),
        "data.rates": (is_rates, "(step, ((source, rate), …)), e.g. (0, (('web', 0.7), …))"),
        "prepare.weights": (is_weight, "(component, copies), e.g. ('ArXiv', 2.0)"),
        "optimizer.group_rates": (is_weight, "(a parameter's path, factor), e.g. ('embed', 0.1)"),
        "loop_loss.weights": (is_number, "a number, not negative"),
        "optimizer.frozen": (is_pattern, "a parameter's path, e.g. 'segment_0/layers'"),
        "loop.low_gradient_loops": (is_share, "a number of loops, 0 or more"),
        "eval.tasks": (is_name, "the name of a task"),
        "eval.loops": (is_count, "a number of loops, e.g. 4"),
        "model.saved_names": (is_name, "a name"),
        "model.offloaded_names": (is_name, "a name"),
        "train.log_to": (is_name, "a name, e.g. 'wandb'"),
    }
    for key, (fits, form) in forms.items():
        for item in get_key(config, key):
            if not fits(item):
                raise UserError(f"config.{key}: {item!r} is not {form}")
    for key in ("variants", "data.sources", "prepare.weights", "optimizer.group_rates"):
        names = [name for name, _ in get_key(config, key)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"config.{key}: {twice[0]!r} is there twice; two have the same name")
    for name in config.train.log_to:
        if name not in TRACKERS:
            raise UserError(
                f"config.train.log_to: {name!r} is not one of {', '.join(TRACKERS)}"
                + nearest(name, TRACKERS)
            )
        if config.train.log_to.count(name) > 1:
            raise UserError(f"config.train.log_to: {name!r} is there twice")
    for name, _ in config.variants:
        if not name or {"/", "\\"} & set(name) or name.startswith("."):
            raise UserError(f"config.variants: {name!r} is not a name for a folder")


def _is_pair(item: Any) -> bool:
    """(text, anything)."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
