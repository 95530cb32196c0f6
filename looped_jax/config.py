"""The default configuration, how a command line changes it, and what makes it invalid.

An experiment file defines ``get_config()`` (or ``get_config(argument)``), which starts from
``default_config()`` and overrides what differs. Every key exists here with its type: a
ConfigDict is locked, so a misspelt key is an error that names its nearest neighbour.
"""

import ast
import difflib
import importlib.util
import json
import math
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
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
    ("loops", None),
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
    """Returns every key of a run with its default value; locked: no other key can be set, and none
    to another type."""
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
    # What looped segments do beside passing through their layers, see docs/loop_variants.md.
    config.loop = ConfigDict(
        dict(
            injection="none",  # none | add: the segment's input is added before every loop.
            per_loop="none",  # none | embedding: a learned vector per loop is added before it.
            # Parameters that a loop beyond the trained ones takes: last | mean (of all) | refuse.
            beyond_trained="last",
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
    return config.lock()


CHOICES = {
    "model.mlp": ("gelu", "swiglu", "relu"),
    "model.norm": ("rmsnorm", "layernorm", "none"),
    "model.positions": ("rope", "learned", "none"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "layer", "loop", "dots", "names"),
    "model.unroll": ("auto", "none", "layers", "full"),
    "model.attention": ("auto", "xla", "splash", "cudnn"),
    "model.gather": ("layer", "segment"),
    "loop.injection": ("none", "add"),
    "loop.per_loop": ("none", "embedding"),
    "loop.beyond_trained": ("last", "mean", "refuse"),
    "optimizer.name": ("adafactor", "adamw", "sgd"),
    "optimizer.schedule": ("cosine", "constant", "rsqrt"),
    "data.targets": ("answer", "running"),
    "eval.style": ("default", "gpt3", "lm_eval", "line"),
}
_MOST = 10**9  # No machine reaches it; beyond, arrays could not even be described.


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, both in it unless ``open`` says low or high is not."""

    low: float
    high: float = _MOST
    open: str = ""

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, (int, float))
        above = number > self.low if self.open == "low" else number >= self.low
        below = number < self.high if self.open == "high" else number <= self.high
        return above and below  # nan is in none.

    def __str__(self) -> str:
        if self.low == 1 or (self.low == 0 and self.open == "low"):
            lower = "positive"
        else:
            lower = f"at least {self.low:g}"
        return f"{lower} and {'less than' if self.open == 'high' else 'at most'} {self.high:g}"


POSITIVE, NOT_NEGATIVE = Range(1), Range(0)
# Of every number in the config.
RANGES = {
    "seed": Range(0, 2**32 - 1),
    "model.d_model": POSITIVE,
    "model.num_heads": POSITIVE,
    "model.num_kv_heads": NOT_NEGATIVE,
    "model.d_ff": POSITIVE,
    "model.rope_theta": Range(0, 1e30, "low"),
    "model.vocab_size": NOT_NEGATIVE,
    "model.logits_mb": POSITIVE,
    **{f"mesh.{axis}": Range(-1) for axis in ("data", "fsdp", "tensor", "sequence")},
    "data.length": NOT_NEGATIVE,
    "data.read_threads": Range(1, 10_000),
    "prepare.seed": Range(0, 2**32 - 1),
    "prepare.shards": NOT_NEGATIVE,
    "prepare.block_kb": POSITIVE,
    "prepare.workers": Range(0, 10_000),
    "optimizer.learning_rate": Range(0, 1e30),
    "optimizer.warmup_steps": Range(0, 10**12),
    "optimizer.final_fraction": Range(0, 1),
    "optimizer.clip_norm": Range(0, 1e30),
    "optimizer.weight_decay": Range(0, 1e30),
    "optimizer.b1": Range(0, 1, "high"),
    "optimizer.b2": Range(0, 1, "high"),
    "optimizer.eps": Range(0, 1, "low"),
    "train.steps": Range(1, 10**12),
    "train.batch_size": POSITIVE,
    "train.grad_accumulation": POSITIVE,
    "train.z_loss": Range(0, 1e30),
    "train.log_every": Range(1, 10**12),
    "regularizer.block": NOT_NEGATIVE,
    "regularizer.strength": Range(0, 1e30),
    "stacking.block": NOT_NEGATIVE,
    "stacking.power": Range(0, 1000),
    "checkpoint.every": Range(1, 10**12),
    "checkpoint.keep": POSITIVE,
    "eval.every": Range(1, 10**12),
    "eval.examples": POSITIVE,
    "eval.batch_size": NOT_NEGATIVE,
    "eval.shots": Range(-1, 10_000),
}
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


# Of config.json files of earlier versions: keys and their names now, and operational ones that are
# gone.
RENAMED: dict[str, str] = {}
RETIRED = ("prepare.block_mb",)


def validate(config: ConfigDict) -> None:
    """Raises UserError naming the first key whose value cannot work, on any machine."""
    for key, choices in CHOICES.items():
        if get_key(config, key) not in choices:
            raise UserError(
                f"config.{key}={get_key(config, key)!r} is not one of {', '.join(choices)}"
                + nearest(str(get_key(config, key)), choices)
            )
    for key, numbers in RANGES.items():
        if get_key(config, key) not in numbers:
            raise UserError(f"config.{key}={get_key(config, key)} must be {numbers}")
    _check_tuples(config)
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


def _check_tuples(config: ConfigDict) -> None:
    """UserError for a tuple whose parts are not what its key needs."""

    def is_weight(item: Any) -> bool:
        return (
            _is_pair(item)
            and isinstance(item[1], (int, float))
            and not isinstance(item[1], bool)
            and 0 <= item[1] < _MOST
        )

    def is_rule(item: Any) -> bool:
        if not _is_pair(item):
            return False
        parts = item[1] if isinstance(item[1], tuple) else item[1:]
        return all(part is None or isinstance(part, str) for part in parts)

    def is_variant(item: Any) -> bool:
        return _is_pair(item) and isinstance(item[1], tuple) and all(map(_is_pair, item[1]))

    def is_name(item: Any) -> bool:
        return isinstance(item, str)

    forms = {
        "variants": (is_variant, '(name, ((key, value), …)), e.g. ("a", (("model.plan", "1x2"),))'),
        "mesh.rules": (is_rule, '(logical axis, mesh axis), e.g. ("embed", "fsdp")'),
        "prepare.weights": (is_weight, "(component, copies), e.g. ('ArXiv', 2.0)"),
        "eval.tasks": (is_name, "the name of a task"),
        "model.saved_names": (is_name, "a name"),
        "model.offloaded_names": (is_name, "a name"),
    }
    for key, (fits, form) in forms.items():
        for item in get_key(config, key):
            if not fits(item):
                raise UserError(f"config.{key}: {item!r} is not {form}")
    for key in ("variants", "prepare.weights"):
        names = [name for name, _ in get_key(config, key)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"config.{key}: {twice[0]!r} is there twice; two have the same name")
    for name, _ in config.variants:
        if not name or {"/", "\\"} & set(name) or name.startswith("."):
            raise UserError(f"config.variants: {name!r} is not a name for a folder")


def _is_pair(item: Any) -> bool:
    """(text, anything)."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


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
    if not isinstance(dotted_key, str) or dotted_key not in known:
        raise UserError(f"config has no key {dotted_key!r}" + nearest(dotted_key, known))
    old = known[dotted_key]
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < _MOST else math.inf
    if isinstance(old, tuple) and isinstance(value, (list, tuple)):
        value = _tuples(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{dotted_key}={value!r} is not a finite number")
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
    except (ValueError, SyntaxError, MemoryError, RecursionError):
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
    variant = ConfigDict(config.to_dict())  # Not locked, but set_key knows the keys.
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
    path_text, argument = _split_spec(spec)
    path = pathlib.Path(path_text)
    get_config = load_function(path_text, "get_config", "experiment")
    made = call(path_text, get_config, *([argument] if argument else []))
    if not isinstance(made, ConfigDict):
        raise UserError(
            f"{path}: get_config() returned {_kind(made)}; it must return what default_config() "
            "gives, changed"
        )
    config = _with_known_keys(made, path_text)
    if not config.name:
        config.name = path.stem + (f"_{argument.replace(',', '-')}" if argument else "")
    apply_overrides(config, overrides or {})
    validate(config)
    return config


def _split_spec(spec: str) -> tuple[str, str]:
    """FILE.py and the argument behind it; a folder's name may have a colon too."""
    match = re.fullmatch(r"(.*?\.py):(.*)", spec)
    return (match[1], match[2]) if match else (spec, "")


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _with_known_keys(made: ConfigDict, where: str) -> ConfigDict:
    """The same config with every key there and of its type, whatever was done to it."""
    config = default_config()
    values = dict(flatten(made))
    if missing := sorted({*dict(flatten(config))} - set(values)):
        raise UserError(f"{where}: its config has no key {missing[0]!r}, which it needs")
    for key, value in values.items():
        try:
            set_key(config, key, value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return config


def load_function(path_text: str, function: str, kind: str) -> Callable[..., Any]:
    """The function that a Python file of the user's defines; UserError if there is none."""
    path = pathlib.Path(path_text)
    if not path.is_file():
        siblings = (
            [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        )
        raise UserError(f"no {kind} file {path_text}" + nearest(path_text, siblings))
    found = call(path_text, _load_module, path).__dict__.get(function)
    if not callable(found):
        raise UserError(f"{path} defines no {function}()")
    return found


def call(path_text: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls what a file of the user's is or defines; UserError with file, line and reason for
    whatever it raises."""
    try:
        return function(*arguments)
    except (UserError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except BaseException as error:  # Whatever a file of the user's does, SystemExit too.
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if pathlib.Path(f.filename) == pathlib.Path(path_text).absolute()]
        where = f"{path_text}:{own[-1].lineno}" if own else path_text
        raise UserError(f"{where}: {_explained(error)}") from error


def _explained(error: BaseException) -> str:
    message = " ".join(str(error).split())
    # ConfigDict's lock lists all keys there are.
    if match := re.match(r"[\"']*Key \\?[\"'](\w+)\\?[\"'] does not exist", message):
        known = [key.rsplit(".", 1)[-1] for key in dict(flatten(default_config()))]
        return f"config has no key {match[1]!r} there{nearest(match[1], known)}"
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__


def _load_module(path: pathlib.Path) -> types.ModuleType:
    # Experiments share bases (`from experiments import ...`): the project root must be on the
    # path also when the command was started from another folder.
    if str(PROJECT_ROOT) not in sys.path:
        sys.path.append(str(PROJECT_ROOT))
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path.absolute())
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def to_json(config: ConfigDict) -> str:
    """The config as written to config.json."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config written by ``to_json``, also by an earlier version. UserError for what is no
    config, and for a key that changes what a run computes and is not known here."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{_kind(content)}, not the keys of a config")
    config = default_config()
    known = dict(flatten(config))
    dropped = []
    for key, value in flatten(content):
        key = RENAMED.get(key, key)
        if key not in known and (key in RETIRED or _is_operational(key)):
            dropped.append(key)
            continue
        if key not in known:
            raise UserError(
                f"it has {key}={value!r}, which this version does not know: it would compute "
                "something else"
            )
        set_key(config, key, value)
    if dropped:
        print(f"keys of an earlier version left out: {', '.join(dropped)}", file=sys.stderr)
    return config.lock()


def read_config(path: epath.Path) -> ConfigDict:
    """A run's config.json; UserError, naming the file, for one that cannot be read."""
    try:
        return from_json(path.read_text())
    except (UserError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _is_operational(key: str) -> bool:
    return any(key == k or key.startswith(f"{k}.") for k in OPERATIONAL_KEYS)


def differing_keys(config: ConfigDict, other: ConfigDict) -> list[str]:
    """The keys, in order, whose values differ of those that change what a run computes."""
    here, there = dict(flatten(config)), dict(flatten(other))
    return [
        key
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key) and not _is_operational(key)
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
