"""The default configuration, how a command line changes it, and what makes it invalid.

An experiment file defines ``get_config()`` (or ``get_config(argument)``), which starts from
``default_config()`` and overrides what differs. Every key exists here with its type: a
ConfigDict is locked, so a misspelt key is an error that names its nearest neighbour.
"""

import ast
import difflib
import importlib.util
import json
import pathlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

PROJECT_ROOT = pathlib.Path(__file__).resolve().parents[1]


class UserError(Exception):
    """Something the user can put right. Entry points print it as one line and exit 2."""


class RunError(Exception):
    """A run that cannot go on (a fault). Entry points print it as one line and exit 1."""


class Preempted(Exception):
    """A run that was asked to stop and has saved itself. Entry points print it and exit 0."""


# Logical axis name -> mesh axis (or a tuple of them, or None for replicated).
# `batch` is split over every axis that holds different data.
DEFAULT_SHARDING_RULES = (
    ("batch", ("data", "fsdp")),
    ("length", "sequence"),
    ("embedded_batch", "data"),  # While embeddings are looked up, `embed` is still split.
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
    ("layers", None),
    ("positions", None),
    ("cache", None),
    ("activation_embed", None),
    ("activation_heads", "tensor"),
    ("activation_mlp", "tensor"),
    ("activation_vocab", "tensor"),
)


# What a layer computes that config.model.saved_names can keep for the backward pass.
ACTIVATION_NAMES = ("query", "key", "value", "attended", "mlp_up", "mlp_gate")


def default_config() -> ConfigDict:
    """Returns every key of a run with its default value."""
    config = ConfigDict()
    config.name = ""  # Defaults to the experiment's file name (and argument).
    config.seed = 0  # Parameters, data order and synthetic examples all follow from it.

    config.model = ConfigDict(
        dict(
            plan="4x3",  # LoopPlan: kxL segments separated by commas, e.g. 4x1,4x4,4x1.
            d_model=256,
            num_heads=8,
            num_kv_heads=0,  # Grouped-query attention; 0 means one per query head.
            d_ff=1024,
            mlp="gelu",  # gelu | swiglu | relu
            bias=False,  # Biases in attention and MLP projections.
            norm="rmsnorm",  # rmsnorm | layernorm | none
            positions="rope",  # rope | learned | none
            rope_theta=10000.0,
            tied_output=True,  # Output projection = transposed token embedding.
            vocab_size=0,  # 0: the data's vocabulary, rounded up to a multiple of 8.
            dtype="float32",  # Compute type, float32 | bfloat16; parameters are float32.
            # What the backward pass recomputes: none | layer | loop | dots | names, see
            # models/transformer.py. With `names` these are kept, on the device or on the host.
            remat="none",
            saved_names=(),
            offloaded_names=(),
            # How far the scans over layers and loops are unrolled:
            # auto | none | layers | full (auto chooses by backend, see models/transformer.py).
            unroll="auto",
            attention="auto",  # auto | xla | splash (TPU) | cudnn (GPU, bfloat16)
            # When fsdp-sharded weights are brought together: layer (each use, so in every loop)
            # | segment (once per step, for all loops of a segment).
            gather="layer",
            # Logits held at once on a device while the loss is computed, float32; MB.
            logits_mb=1024,
        )
    )
    config.mesh = ConfigDict(
        dict(data=-1, fsdp=1, tensor=1, sequence=1, rules=DEFAULT_SHARDING_RULES)
    )  # One axis may be -1: all remaining devices.

    config.data = ConfigDict(
        dict(
            task="addition",  # A synthetic task (python -m looped_jax.tasks --list) or `text`.
            length=0,  # Tokens per row; 0: the longest example of a synthetic task.
            targets="answer",  # answer | running (group composition: the product so far).
            # For task = text: a folder that looped_jax.prepare wrote, or (small data, packed in
            # memory at every start) one of Pile-format shards; a local or remote path.
            path="",
            train_files="train-*.jsonl.zst",
            validation_files="val.jsonl.zst",
            test_files="",
            # bytes, a name in data/vocabularies, or a SentencePiece .model or tokenizer.json.
            vocabulary="bytes",
            read_threads=1,  # Batches read at a time, ahead of the step; more for remote data.
        )
    )
    config.prepare = ConfigDict(
        dict(
            seed=0,  # Of the global shuffle.
            shards=0,  # ArrayRecord files of the training split; 0: one per 128 MB of source.
            block_kb=16384,  # Text that a process takes at a time; KiB.
            workers=0,  # Processes; 0: one per core.
            weights=(),  # (("ArXiv", 2.0), ...): copies of a component's documents; others 1.
            seqio_module="",  # Imported so that the Task of data.path = "seqio:TASK" exists.
        )
    )
    config.optimizer = ConfigDict(
        dict(
            name="adafactor",  # adafactor | adamw | sgd
            learning_rate=0.01,  # Peak.
            schedule="cosine",  # cosine | constant | rsqrt
            warmup_steps=1000,
            final_fraction=0.0,  # Cosine ends at final_fraction * learning_rate.
            clip_norm=1.0,  # Global gradient norm; 0: no clipping.
            weight_decay=0.0,  # Not applied to norms, biases and embeddings.
            b1=0.9,
            b2=0.95,
            eps=1e-8,
        )
    )
    config.train = ConfigDict(
        dict(
            steps=1000,
            batch_size=32,  # Rows per optimizer step, over all devices.
            grad_accumulation=1,
            z_loss=0.0,
            log_every=50,
            start_from="",  # RUN/checkpoints/STEP of another run to continue from.
        )
    )
    # Draws layers that are `block` apart together, see models/regularizer.py; block 0: off.
    config.regularizer = ConfigDict(dict(block=0, strength=1.0))
    # Gradual stacking, see training/stacking.py: layers added per stage, 0: off; and how much
    # longer later stages are.
    config.stacking = ConfigDict(dict(block=0, power=1.0))
    config.checkpoint = ConfigDict(dict(every=1000, keep=3))
    config.eval = ConfigDict(
        dict(
            every=1000,
            tasks=(),  # Task names; empty: the training task.
            examples=1024,  # Rows per task, the same ones at every evaluation.
            batch_size=0,  # 0: train.batch_size.
            # Downstream tasks (docs/evaluate.md), for language models.
            data_dir="",  # Folder of their files; empty: TFDS, where it has them.
            style="default",  # default | gpt3 | lm_eval | line (variable assignment)
            shots=-1,  # Exemplars in a prompt; -1: the task's own number.
        )
    )
    # Runs trained in turn by one command: ((name, ((key, value), ...)), ...); empty: one run.
    config.variants = ()
    # How they are compared: a metric, and the variants that play the paper's three roles, see
    # analysis/compare.py.
    config.comparison = ConfigDict(dict(metric="", base="", looped="", iso_flop=""))
    return config


CHOICES = {
    "model.mlp": ("gelu", "swiglu", "relu"),
    "model.norm": ("rmsnorm", "layernorm", "none"),
    "model.positions": ("rope", "learned", "none"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "layer", "loop", "dots", "names"),
    "model.unroll": ("auto", "none", "layers", "full"),
    "model.attention": ("auto", "xla", "splash", "cudnn"),
    "model.gather": ("layer", "segment"),
    "optimizer.name": ("adafactor", "adamw", "sgd"),
    "optimizer.schedule": ("cosine", "constant", "rsqrt"),
    "data.targets": ("answer", "running"),
    "eval.style": ("default", "gpt3", "lm_eval", "line"),
}
POSITIVE = (
    "model.d_model",
    "model.num_heads",
    "model.d_ff",
    "model.logits_mb",
    "train.steps",
    "train.batch_size",
    "train.grad_accumulation",
    "train.log_every",
    "data.read_threads",
    "prepare.block_kb",
    "checkpoint.every",
    "checkpoint.keep",
    "eval.every",
    "eval.examples",
)
NOT_NEGATIVE = (
    "model.num_kv_heads",
    "model.vocab_size",
    "data.length",
    "prepare.seed",
    "prepare.shards",
    "prepare.workers",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "optimizer.clip_norm",
    "optimizer.weight_decay",
    "train.z_loss",
    "regularizer.block",
    "regularizer.strength",
    "stacking.block",
    "stacking.power",
    "eval.batch_size",
)
# What a resumed run may change: it alters how the run is watched or laid out over devices,
# not what is computed (another mesh sums in another order, so not to the last bit).
OPERATIONAL_KEYS = (
    "mesh",
    "checkpoint",
    "model.remat",
    "model.saved_names",
    "model.offloaded_names",
    "model.unroll",
    "model.attention",
    "model.gather",
    "model.logits_mb",
    "train.log_every",
    "data.path",  # Checkpoints remember what was there.
    "data.read_threads",
    "prepare",
    "eval.data_dir",
)


def validate(config: ConfigDict) -> None:
    """Raises UserError naming the first key whose value cannot work, on any machine."""
    for key, choices in CHOICES.items():
        if get_key(config, key) not in choices:
            raise UserError(
                f"config.{key}={get_key(config, key)!r} is not one of {', '.join(choices)}"
                + nearest(str(get_key(config, key)), choices)
            )
    for key in POSITIVE:
        if get_key(config, key) <= 0:
            raise UserError(f"config.{key}={get_key(config, key)} must be positive")
    for key in NOT_NEGATIVE:
        if get_key(config, key) < 0:
            raise UserError(f"config.{key}={get_key(config, key)} must not be negative")
    model, train = config.model, config.train
    if model.d_model % model.num_heads:
        raise UserError(
            f"config.model.num_heads={model.num_heads} does not divide "
            f"config.model.d_model={model.d_model}"
        )
    if model.num_kv_heads and model.num_heads % model.num_kv_heads:
        raise UserError(
            f"config.model.num_kv_heads={model.num_kv_heads} does not divide "
            f"config.model.num_heads={model.num_heads}"
        )
    if model.positions == "rope" and (model.d_model // model.num_heads) % 2:
        raise UserError(
            "config.model.positions='rope' needs an even head size; d_model / num_heads is "
            f"{model.d_model // model.num_heads}"
        )
    if train.batch_size % train.grad_accumulation:
        raise UserError(
            f"config.train.grad_accumulation={train.grad_accumulation} does not divide "
            f"config.train.batch_size={train.batch_size}"
        )
    for weight in config.prepare.weights:
        if not (
            len(weight) == 2
            and isinstance(weight[0], str)
            and isinstance(weight[1], (int, float))
            and 0 <= weight[1] < float("inf")
        ):
            raise UserError(
                f"config.prepare.weights: {weight!r} is not (component, copies), "
                "e.g. (('ArXiv', 2.0), ('Github', 0.5))"
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
    names = [name for name, _ in config.variants]
    if len(set(names)) != len(names):
        raise UserError("config.variants: two variants have the same name")
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


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for every leaf of a config."""
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def get_key(config: ConfigDict, dotted_key: str) -> Any:
    """Returns the value at a dotted key such as ``model.d_ff``."""
    value = config
    for part in dotted_key.split("."):
        value = value[part]
    return value


def set_key(config: ConfigDict, dotted_key: str, value: Any) -> None:
    """Sets a dotted key; UserError if it does not exist or the type is wrong."""
    known = dict(flatten(config))
    if dotted_key not in known:
        raise UserError(f"config has no key {dotted_key!r}" + nearest(dotted_key, known))
    old = known[dotted_key]
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, tuple) and isinstance(value, (list, tuple)):
        value = _tuples(value)
    if type(value) is not type(old):
        raise UserError(
            f"config.{dotted_key}={value!r} has type {type(value).__name__}; "
            f"it must be {type(old).__name__} (as in {old!r})"
        )
    *parents, leaf = dotted_key.split(".")
    section = get_key(config, ".".join(parents)) if parents else config
    section[leaf] = value


def parse_value(text: str, old: Any) -> Any:
    """Reads a command-line value as the type of the value it replaces."""
    if isinstance(old, str):
        return text
    if isinstance(old, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        return text
    if isinstance(old, tuple) and not text.lstrip().startswith(("(", "[")):
        return tuple(part for part in text.split(",") if part)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def to_text(value: Any) -> str:
    """A value as ``parse_value`` reads it from a command line."""
    return value if isinstance(value, str) else repr(value)


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets dotted keys from command-line text, e.g. {"train.steps": "100"}."""
    for key, text in overrides.items():
        known = dict(flatten(config))
        set_key(config, key, parse_value(text, known.get(key, "")))


def variant_config(
    config: ConfigDict, name: str, overrides: Sequence[tuple[str, Any]]
) -> ConfigDict:
    """Returns the config of one of ``config.variants``: the base with its overrides."""
    variant = ConfigDict(config.to_dict())
    variant.variants = ()
    variant.comparison = default_config().comparison
    variant.name = f"{config.name}/{name}"
    for key, value in overrides:
        set_key(variant, key, value)
    return variant.lock()


def load_experiment(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Loads ``FILE.py`` or ``FILE.py:ARGUMENT``, applies overrides, validates.

    The argument goes to the file's ``get_config(argument)``. Raises UserError in one line for
    a missing file, a file that fails, an unknown key, a wrong type or an impossible value.
    """
    path_text, _, argument = spec.partition(":")
    path = pathlib.Path(path_text)
    get_config = load_function(path_text, "get_config", "experiment")
    try:
        config = get_config(argument) if argument else get_config()
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError) as error:  # ConfigDict's own lock and types.
        message = " ".join(str(error).split())
        raise UserError(f"{spec}: {message}") from error
    if not config.name:
        config.name = path.stem + (f"_{argument.replace(',', '-')}" if argument else "")
    apply_overrides(config, overrides or {})
    validate(config)
    return config.lock()


def load_function(path_text: str, function: str, kind: str) -> Callable[..., Any]:
    """The function that a Python file of the user's defines; UserError if there is none."""
    path = pathlib.Path(path_text)
    if not path.is_file():
        siblings = (
            [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        )
        raise UserError(f"no {kind} file {path_text}" + nearest(path_text, siblings))
    found = _load_module(path).__dict__.get(function)
    if found is None:
        raise UserError(f"{path} defines no {function}()")
    return found


def _load_module(path: pathlib.Path) -> types.ModuleType:
    # Experiments share bases (`from experiments import ...`): the project root must be on the
    # path also when the command was started from another folder.
    if str(PROJECT_ROOT) not in sys.path:
        sys.path.append(str(PROJECT_ROOT))
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from error
    except ImportError as error:
        raise UserError(f"{path}: {error}") from error
    return module


def to_json(config: ConfigDict) -> str:
    """The config as written to config.json."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config written by ``to_json``."""
    config = default_config()
    for key, value in flatten(json.loads(text)):
        set_key(config, key, value)
    return config.lock()


def differing_keys(config: ConfigDict, other: ConfigDict) -> list[str]:
    """The keys, in order, whose values differ of those that change what a run computes."""
    here, there = dict(flatten(config)), dict(flatten(other))
    return [
        key
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key)
        and not any(key == k or key.startswith(f"{k}.") for k in OPERATIONAL_KEYS)
    ]


def differences(config: ConfigDict, other: ConfigDict) -> list[str]:
    """Lines ``key: value here, value there`` for keys that change what a run computes."""
    here, there = dict(flatten(config)), dict(flatten(other))
    return [
        f"{key}: {here.get(key)!r} now, {there.get(key)!r} there"
        for key in differing_keys(config, other)
    ]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def nearest(name: str, known: Any) -> str:
    """`; did you mean 'x'?` for messages, or nothing if no known name is near."""
    matches = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.5)
    if not matches:  # A right leaf under a wrong section is the other common slip.
        leaf = name.rsplit(".", 1)[-1]
        matches = [str(k) for k in known if str(k).rsplit(".", 1)[-1] == leaf][:1]
    return f"; did you mean {matches[0]!r}?" if matches else ""
