"""What makes a config impossible on any machine."""

from typing import Any

from ml_collections import ConfigDict

from looped_jax.config.config_dict import get_key, variant_config
from looped_jax.config.keys import ACTIVATION_NAMES, KEYS, MOST
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
    _check_ngpt(config)
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
    _check_loop(config)
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


def _check_loop(config: ConfigDict) -> None:
    """UserError for kinds of loops that exclude each other."""
    loop = config.loop
    if loop.state != "input" and loop.injection == "none":
        raise UserError(
            f"config.loop.state={loop.state!r} forgets a segment's input; it needs a "
            "config.loop.injection, e.g. 'concat'"
        )
    _check_nest(config)
    if loop.messages != "none":
        for option in ("state", "injection", "lanes", "nest", "routing"):
            if loop[option] != KEYS[f"loop.{option}"].default:
                raise UserError(
                    f"config.loop.messages={loop.messages!r} starts every loop from the segment's "
                    f"input: not with config.loop.{option}={loop[option]!r}"
                )
    if loop.routing != "none":
        _check_routing(config)
    if loop.routed_tokens == "gathered" and loop.routing != "expert_choice":
        raise UserError(
            "config.loop.routed_tokens='gathered' needs loops that take a fixed number of tokens: "
            f"config.loop.routing='expert_choice'; it is {loop.routing!r}"
        )
    for option, plain in (("norms", "pre"), ("last_norm", "once"), ("nest", "none")):
        if loop[option] != plain and config.model.norm == "none":
            raise UserError(
                f"config.loop.{option}={loop[option]!r} is about norms; config.model.norm is 'none'"
            )


def _check_nest(config: ConfigDict) -> None:
    """UserError for what does not go with loops at two speeds, or is for these alone."""
    loop = config.loop
    if loop.nest == "none":
        if loop.low_gradient_loops:
            raise UserError(
                "config.loop.low_gradient_loops is for config.loop.nest, which is 'none'"
            )
        return
    for option, plain in (("gate", "none"), ("lanes", "one"), ("last_norm", "once")):
        if loop[option] != plain:
            raise UserError(
                f"config.loop.nest={loop.nest!r} does not go with config.loop.{option}="
                f"{loop[option]!r}: a loop ends one of two states"
            )
    if loop.nest == "two_stacks" and loop.per_loop == "lora":
        raise UserError(
            "config.loop.per_loop='lora' has a part for every loop of a stack: with config.loop."
            "nest='two_stacks' no stack has them all; nest='one_stack' has"
        )
    if config.loop_loss.kind != "last":
        raise UserError(
            f"config.loop_loss.kind={config.loop_loss.kind!r} is of every loop; with config.loop."
            f"nest={loop.nest!r} most end a state that is not read: take 'last'"
        )
    if most := [count for count in loop.low_gradient_loops if count > loop.low_loops]:
        raise UserError(
            f"config.loop.low_gradient_loops: {most[0]} is more than the {loop.low_loops} low loops"
        )


def _check_ngpt(config: ConfigDict) -> None:
    """UserError for what config.model.layer=ngpt is not made of."""
    if config.model.layer != "ngpt":
        return
    parts = {"model.norm": "l2", "model.qk_norm": True, "model.mlp": "swiglu", "loop.norms": "pre"}
    parts |= {"model.attention_gate": False}  # It has one of its own.
    for key, part in parts.items():
        if (found := get_key(config, key)) != part:
            raise UserError(
                f"config.model.layer='ngpt' needs config.{key}={part!r}; it is {found!r}"
            )


def _check_routing(config: ConfigDict) -> None:
    """UserError for what does not go with tokens that are not in all loops."""
    others = (
        *(f"loop.{option}" for option in ("gate", "lanes", "last_norm", "nest", "state")),
        *("loop_loss.kind", "counts.distribution", "counts.curriculum", "counts.gradient_loops"),
    )
    for name in others:
        value = get_key(config, name)
        if value != KEYS[name].default:
            raise UserError(
                f"config.{name}={value!r} is about tokens that are in all loops: not with "
                f"config.loop.routing={config.loop.routing!r}"
            )


def _check_tuples(config: ConfigDict) -> None:
    """UserError for a tuple whose parts are not what its key needs."""

    def is_number(item: Any) -> bool:
        is_one = isinstance(item, (int, float)) and not isinstance(item, bool)
        return is_one and 0 <= item < MOST

    def is_weight(item: Any) -> bool:
        return _is_pair(item) and is_number(item[1])

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
        "prepare.weights": (is_weight, "(component, copies), e.g. ('ArXiv', 2.0)"),
        "optimizer.group_rates": (is_weight, "(a parameter's path, factor), e.g. ('embed', 0.1)"),
        "loop_loss.weights": (is_number, "a number, not negative"),
        "optimizer.frozen": (is_pattern, "a parameter's path, e.g. 'segment_0/layers'"),
        "loop.low_gradient_loops": (is_share, "a number of loops, 0 or more"),
        "eval.tasks": (is_name, "the name of a task"),
        "eval.loops": (is_count, "a number of loops, e.g. 4"),
        "model.saved_names": (is_name, "a name"),
        "model.offloaded_names": (is_name, "a name"),
    }
    for key, (fits, form) in forms.items():
        for item in get_key(config, key):
            if not fits(item):
                raise UserError(f"config.{key}: {item!r} is not {form}")
    for key in ("variants", "prepare.weights", "optimizer.group_rates"):
        names = [name for name, _ in get_key(config, key)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"config.{key}: {twice[0]!r} is there twice; two have the same name")
    for name, _ in config.variants:
        if not name or {"/", "\\"} & set(name) or name.startswith("."):
            raise UserError(f"config.variants: {name!r} is not a name for a folder")


def _is_pair(item: Any) -> bool:
    """(text, anything)."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
