"""Every key of a run's config: its default, type, meaning, and what values it may have.

The one source: the ConfigDict, its validation, what a resumed run may change, docs/config.md and
`--help` all follow from these dataclasses. A section is a class, a key a field of it; rules between
keys are in looped_jax/config/validation.py.
"""

import dataclasses
from typing import Any, NamedTuple

# No machine reaches it; beyond, arrays could not even be described.
MOST = 10**9


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, both in it unless ``open`` says low or high is not."""

    low: float
    high: float = MOST
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
SEED = Range(0, 2**32 - 1)
COUNT = Range(1, 10**12)  # Of steps.
ANY = Range(0, 1e30)


@dataclasses.dataclass(frozen=True)
class Key:
    """What is known of a key. ``operational``: it alters how a run is watched, read or laid out
    over devices, not what is computed (another mesh sums in another order, so not to the last bit);
    a resumed run may change it."""

    default: Any
    meaning: str
    choices: tuple[str, ...] = ()
    range: Range | None = None
    operational: bool = False
    path: bool = False  # `~` in it is the home folder.


def key(
    default: Any,
    meaning: str,
    *,
    choices: tuple[str, ...] = (),
    range: Range | None = None,
    operational: bool = False,
    path: bool = False,
) -> Any:
    """A field of a section. Every number has a range."""
    known = Key(default, meaning, choices, range, operational, path)
    return dataclasses.field(default=default, metadata={"key": known})


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
# A file each in looped_jax/training/trackers/.
TRACKERS = ("tensorboard", "wandb", "mlflow")


@dataclasses.dataclass(frozen=True)
class Run:
    """The run as a whole"""

    name: str = key("", "defaults to the experiment's file name (and argument)")
    seed: int = key(0, "parameters, data order and synthetic examples follow from it", range=SEED)
    variants: tuple[Any, ...] = key(
        (), "runs trained in turn by one command: ((name, ((key, value), …)), …)"
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """The network"""

    plan: str = key("4x3", "depth structure: kxL segments, e.g. 12x2 or 4x1,4x4,4x1")
    d_model: int = key(256, "width of the residual stream", range=POSITIVE)
    num_heads: int = key(8, "attention heads", range=POSITIVE)
    num_kv_heads: int = key(0, "grouped-query attention; 0: one per query head", range=NOT_NEGATIVE)
    head_size: int = key(0, "width of a head; 0: d_model / num_heads", range=NOT_NEGATIVE)
    d_ff: int = key(1024, "width of the MLP", range=POSITIVE)
    mlp: str = key("gelu", "its kind", choices=("gelu", "swiglu", "relu"))
    bias: bool = key(False, "biases in attention and MLP projections")
    layer: str = key(
        "pre_norm",
        "kind of all layers; ngpt: the stream stays near length 1 and turns towards what a block "
        "makes (docs/loop_variants.md)",
        choices=("pre_norm", "ngpt"),
    )
    norm: str = key(
        "rmsnorm",
        "normalisation; rmsnorm_unscaled: without a learned scale; l2: that, to length 1",
        choices=("rmsnorm", "rmsnorm_unscaled", "layernorm", "l2", "none"),
    )
    norm_eps: float = key(
        1e-6,
        "added in a norm to the variance; with l2 to the sum of squares",
        range=Range(0, 1, "low"),
    )
    qk_norm: bool = key(
        False, "norm of each head's queries and keys, before RoPE: RMSNorm, or l2 with norm=l2"
    )
    attention_gate: bool = key(
        False, "each channel that attention gives is let through by a sigmoid of what it is given"
    )
    positions: str = key("rope", "how positions are known", choices=("rope", "learned", "none"))
    rope_theta: float = key(10000.0, "base of RoPE", range=Range(0, 1e30, "low"))
    tied_output: bool = key(True, "output projection = transposed token embedding")
    vocab_size: int = key(
        0, "0: the data's vocabulary, rounded up to a multiple of 8", range=NOT_NEGATIVE
    )
    dtype: str = key(
        "float32", "compute type; parameters are float32", choices=("float32", "bfloat16")
    )
    remat: str = key(
        "none",
        "what the backward pass recomputes (docs/scale.md)",
        choices=("none", "layer", "loop", "dots", "names"),
        operational=True,
    )
    saved_names: tuple[str, ...] = key(
        (),
        f"with remat=names, what of a layer is kept on the device: {', '.join(ACTIVATION_NAMES)}",
        operational=True,
    )
    offloaded_names: tuple[str, ...] = key((), "the same, kept on the host", operational=True)
    unroll: str = key(
        "auto",
        "how far the scans over layers and loops are laid out; auto: by backend",
        choices=("auto", "none", "layers", "full"),
        operational=True,
    )
    attention: str = key(
        "auto",
        "kernel; splash: TPU, cudnn and triton: NVIDIA GPU in bfloat16",
        choices=("auto", "xla", "splash", "cudnn", "triton"),
        operational=True,
    )
    gather: str = key(
        "layer",
        "when fsdp-sharded weights are brought together: at each use, or once per step and segment",
        choices=("layer", "segment"),
        operational=True,
    )
    logits_mb: int = key(
        1024,
        "logits held at once on a device while the loss is computed, MB",
        range=POSITIVE,
        operational=True,
    )


@dataclasses.dataclass(frozen=True)
class Loop:
    """What looped segments do beside passing through their layers (docs/loop_variants.md)"""

    state: str = key(
        "input",
        "what a looped segment begins with; noise is drawn anew in every training step",
        choices=("input", "noise", "zero"),
    )
    injection: str = key(
        "none",
        "how a segment's input enters before every loop: added, by a matrix of both, by a decay, "
        "added with both at length 1",
        choices=("none", "add", "concat", "decay", "unit_add"),
    )
    per_loop: str = key(
        "none",
        "what tells loops apart: a learned vector, the time in every layer, LoRA in every layer, "
        "how far a loop goes",
        choices=("none", "embedding", "time", "lora", "step"),
    )
    lora_rank: int = key(8, "of per_loop=lora", range=POSITIVE)
    lanes: str = key(
        "one",
        "streams from loop to loop: one; hyper: 2, mixed by numbers; hyperloop: 4, by functions",
        choices=("one", "hyper", "hyperloop"),
    )
    messages: str = key(
        "none",
        "blocks: every loop starts again from the segment's input, and its layers are told what "
        "blocks of layers made of it in the loop before",
        choices=("none", "blocks"),
    )
    message_block: int = key(6, "of messages: layers of a block", range=POSITIVE)
    message_rank: int = key(64, "of messages: of the matrices that let them in", range=POSITIVE)
    gate: str = key(
        "none",
        "linear: says after every loop, for each token, how likely it should stop there; act: "
        "halts tokens and mixes their states",
        choices=("none", "linear", "act"),
    )
    last_norm: str = key(
        "once",
        "every_loop: a norm that all loops share ends each of them; it may be the model's last one",
        choices=("once", "every_loop"),
    )
    nest: str = key(
        "none",
        "loops at two speeds: every low_loops + 1 loops update a fast state low_loops times and a "
        "slow one once, by a stack of layers for each, or by one",
        choices=("none", "two_stacks", "one_stack"),
    )
    low_loops: int = key(3, "of nest: of the fast state, to one of the slow one", range=POSITIVE)
    low_gradient_loops: tuple[int, ...] = key(
        (),
        "of nest: of each cycle's low loops the last so many have gradients, one number per cycle, "
        "1 for those before; (): all",
    )
    norms: str = key(
        "pre",
        "of all layers: before a block; branch: and on what it adds; stream: and on the sum",
        choices=("pre", "branch", "stream"),
    )
    routing: str = key(
        "none",
        "which loops a token is in (Mixture-of-Recursions): every loop chooses its tokens, or "
        "every token its loops",
        choices=("none", "expert_choice", "token_choice"),
    )
    selection_weight: float = key(
        1e-3, "expert_choice: of the loss by which routers learn whom they choose", range=ANY
    )
    balance_weight: float = key(
        0.1, "token_choice: of the loss by which depths become equally likely", range=ANY
    )
    routed_tokens: str = key(
        "masked",
        "when training, tokens that are not in a loop: masked, their work is done and dropped; "
        "gathered, those in it are brought together and theirs alone is done (expert_choice)",
        choices=("masked", "gathered"),
        operational=True,
    )
    beyond_trained: str = key(
        "last",
        "parameters of loops beyond the trained ones: the last one's, the mean of all, or an error",
        choices=("last", "mean", "refuse"),
    )


@dataclasses.dataclass(frozen=True)
class LoopLoss:
    """What loops are trained for (docs/loop_variants.md)"""

    kind: str = key(
        "last",
        "the last loop's loss; a weighted sum of every loop's; expected: by the gate's probability "
        "of ending there; gate: the gate, nothing else; ponder; act; shortcut: and that "
        "of a trajectory of fewer loops",
        choices=("last", "weighted", "expected", "gate", "ponder", "act", "shortcut"),
    )
    weights: tuple[float, ...] = key(
        (),
        "weighted: one per loop of the plan, (): all the same; shortcut: of the short trajectory's "
        "loss and of its distance, (): 0.1 each",
    )
    beta: float = key(
        0.05,
        "of the exits' entropy (expected), their divergence from the prior (ponder), the ponder "
        "time (act)",
        range=NOT_NEGATIVE,
    )
    prior: float = key(
        0.2, "ponder: to end after a loop, geometric over loops", range=Range(0, 1, "high")
    )


@dataclasses.dataclass(frozen=True)
class Counts:
    """Loops of a training step, and those that gradients go through (docs/loop_variants.md)"""

    distribution: str = key(
        "fixed",
        "of a step's loops; their mean is the plan's number, and one more with lognormal_poisson",
        choices=("fixed", "lognormal_poisson", "poisson", "uniform"),
    )
    by: str = key("step", "one number for all rows, or each row its own", choices=("step", "row"))
    most: int = key(0, "more are not drawn; 0: no bound", range=NOT_NEGATIVE)
    gradient_loops: int = key(
        0, "gradients go through the last so many loops only; 0: through all", range=NOT_NEGATIVE
    )
    curriculum: str = key(
        "none",
        "how the mean rises to the plan's number",
        choices=("none", "linear", "one_minus_sqrt"),
    )
    curriculum_steps: int = key(0, "updates until it has risen", range=Range(0, 10**12))


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices by axis; one may be -1, all remaining devices (docs/scale.md)"""

    data: int = key(-1, "different rows, copies of parameters", range=Range(-1), operational=True)
    fsdp: int = key(1, "different rows, parameters shared out", range=Range(-1), operational=True)
    tensor: int = key(1, "heads, MLP and vocabulary split", range=Range(-1), operational=True)
    sequence: int = key(1, "rows split along their length", range=Range(-1), operational=True)
    rules: tuple[Any, ...] = key(
        DEFAULT_SHARDING_RULES, "(logical axis, mesh axis), …", operational=True
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """What is trained on (docs/data.md, docs/tasks.md)"""

    task: str = key("addition", "a synthetic task (python -m looped_jax.tasks --list), or text")
    length: int = key(
        0, "tokens per row; 0: the longest example of a synthetic task", range=NOT_NEGATIVE
    )
    targets: str = key(
        "answer",
        "running: also the product so far (group composition)",
        choices=("answer", "running"),
    )
    path: str = key(
        "",
        "of text: a folder that looped_jax.prepare wrote, or one of files with documents, packed "
        "in memory at every start; a checkpoint remembers what was there; to prepare also "
        "seqio:TASK and hf:NAME",
        operational=True,
        path=True,
    )
    sources: tuple[Any, ...] = key(
        (),
        "of text, in place of path: several such folders by name, (('web', '/data/web'), …), each "
        "a component of what is evaluated",
        operational=True,
    )
    rates: tuple[Any, ...] = key(
        (),
        "of sources: (step, shares of the rows from there on), in all 1, to five decimals, "
        "e.g. ((0, (('web', 0.7), ('code', 0.3))), (10000, (('web', 0.4), ('code', 0.6))))",
    )
    train_files: str = key(
        "train-*.jsonl.zst",
        "raw files of the training split: a pattern of JSON lines (.jsonl), tables (.parquet, "
        ".arrow, .feather) or plain text (.txt)",
    )
    validation_files: str = key("val.jsonl.zst", "of the validation split")
    test_files: str = key("", "of the test split")
    text_column: str = key(
        "text",
        "of JSON lines and tables that are read: the text; a.b is b within a, here and below",
        operational=True,
    )
    prompt_column: str = key(
        "prompt",
        "of the same: what stands before the text and is not trained on; empty: none",
        operational=True,
    )
    component_column: str = key(
        "meta.pile_set_name",
        "of the same: the component of the data set that a document is of; empty: none",
        operational=True,
    )
    document_separator: str = key(
        "",
        "of plain text: the line that parts documents, or blank, for blank lines; empty: a file is "
        "a document",
        operational=True,
    )
    vocabulary: str = key(
        "bytes",
        "bytes, a name in data/vocabularies, a SentencePiece .model or a tokenizer.json; own:DIR, "
        "a folder with tokenizer.json and tokenizer_config.json whose ids are kept",
        path=True,
    )
    read_threads: int = key(
        1,
        "batches read at a time, ahead of the step; more for remote data",
        range=Range(1, 10_000),
        operational=True,
    )


@dataclasses.dataclass(frozen=True)
class Prepare:
    """How looped_jax.prepare makes rows of text"""

    seed: int = key(0, "of the global shuffle", range=SEED, operational=True)
    shards: int = key(
        0,
        "ArrayRecord files of the training split; 0: one per 128 MB of source",
        range=NOT_NEGATIVE,
        operational=True,
    )
    block_kb: int = key(
        16384, "text that a process takes at a time, KiB", range=POSITIVE, operational=True
    )
    workers: int = key(0, "processes; 0: one per core", range=Range(0, 10_000), operational=True)
    weights: tuple[Any, ...] = key(
        (), "(('ArXiv', 2.0), …): copies of a component's documents; others 1", operational=True
    )
    seqio_module: str = key(
        "", "imported, so that the Task of data.path = seqio:TASK exists", operational=True
    )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Updates (docs/train.md)"""

    name: str = key("adafactor", "its kind", choices=("adafactor", "adamw", "muon", "sgd"))
    learning_rate: float = key(0.01, "its peak", range=ANY)
    group_rates: tuple[Any, ...] = key(
        (),
        "((path, factor of the learning rate), …) of parameters, e.g. (('embed', 0.1), "
        "('segment_*/injection', 0.5)); the first path that fits, `*` being any text",
    )
    frozen: tuple[str, ...] = key(
        (), "paths of parameters that are not trained, e.g. segment_0/layers; `*` is any text"
    )
    ema: float = key(
        0.0,
        "decay per update of an average of the parameters, evaluated in their place; 0: none",
        range=Range(0, 1, "high"),
    )
    schedule: str = key(
        "cosine", "after the warm-up", choices=("cosine", "constant", "rsqrt", "wsd")
    )
    decay_fraction: float = key(
        0.2, "wsd: the last so much of all steps decays; before, the peak", range=Range(0, 1)
    )
    decay_form: str = key(
        "sqrt", "wsd: with the progress, or its square root", choices=("linear", "sqrt")
    )
    warmup_steps: int = key(1000, "of linear warm-up", range=Range(0, 10**12))
    final_fraction: float = key(
        0.0, "cosine and wsd end at this share of the learning rate", range=Range(0, 1)
    )
    clip_norm: float = key(1.0, "of the global gradient; 0: no clipping", range=ANY)
    weight_decay: float = key(0.0, "not applied to norms, biases and embeddings", range=ANY)
    b1: float = key(0.9, "AdamW's", range=Range(0, 1, "high"))
    b2: float = key(0.95, "AdamW's", range=Range(0, 1, "high"))
    eps: float = key(1e-8, "AdamW's", range=Range(0, 1, "low"))
    muon_momentum: float = key(0.95, "Muon's, Nesterov's form", range=Range(0, 1, "high"))
    muon_adamw_rate: float = key(
        1.0,
        "muon: factor of the learning rate of what AdamW trains, all but the hidden matrices",
        range=ANY,
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """The run's length"""

    steps: int = key(1000, "updates", range=COUNT)
    batch_size: int = key(32, "rows per update, over all devices", range=POSITIVE)
    grad_accumulation: int = key(1, "parts that a batch is computed in", range=POSITIVE)
    z_loss: float = key(0.0, "weight of log(Z)^2 in the loss", range=ANY)
    log_every: int = key(50, "steps", range=COUNT, operational=True)
    log_to: tuple[str, ...] = key(
        ("tensorboard",),
        f"where metrics go beside metrics.jsonl (docs/train.md): {', '.join(TRACKERS)}; "
        "(): nowhere",
        operational=True,
    )
    start_from: str = key("", "RUN/checkpoints/STEP of another run to continue from", path=True)


@dataclasses.dataclass(frozen=True)
class Regularizer:
    """Draws layers that are `block` apart together (docs/train.md)"""

    block: int = key(0, "layers; 0: off", range=NOT_NEGATIVE)
    strength: float = key(1.0, "the paper's lambda", range=ANY)


@dataclasses.dataclass(frozen=True)
class Stacking:
    """Gradual stacking, MIDAS (docs/train.md)"""

    block: int = key(0, "layers added per stage; 0: off", range=NOT_NEGATIVE)
    power: float = key(1.0, "how much longer later stages are", range=Range(0, 1000))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is saved"""

    every: int = key(1000, "steps", range=COUNT, operational=True)
    keep: int = key(3, "the newest so many", range=POSITIVE, operational=True)


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation (docs/evaluate.md)"""

    every: int = key(1000, "steps", range=COUNT)
    tasks: tuple[str, ...] = key((), "names; empty: the training task")
    loops: tuple[int, ...] = key(
        (), "loop counts that held-out rows are evaluated at, beside the plan's own, e.g. (1, 2, 8)"
    )
    examples: int = key(1024, "rows per task, the same ones every time", range=POSITIVE)
    batch_size: int = key(0, "rows; 0: train.batch_size", range=NOT_NEGATIVE, operational=True)
    data_dir: str = key(
        "",
        "folder of the downstream tasks' files; empty: TFDS, where it has them",
        operational=True,
        path=True,
    )
    style: str = key(
        "default", "of downstream prompts", choices=("default", "gpt3", "lm_eval", "line")
    )
    shots: int = key(
        -1, "exemplars in a prompt; -1: the task's own number", range=Range(-1, 10_000)
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How variants are compared (docs/report.md)"""

    metric: str = key("", "e.g. eval/text/loss")
    base: str = key("", "the variant that plays it")
    looped: str = key("", "the same parameters as base, looped")
    iso_flop: str = key("", "the same FLOPs as looped, not looped")


SECTIONS: dict[str, type] = {
    "": Run,
    "model": Model,
    "loop": Loop,
    "counts": Counts,
    "loop_loss": LoopLoss,
    "mesh": Mesh,
    "data": Data,
    "prepare": Prepare,
    "optimizer": Optimizer,
    "train": Train,
    "regularizer": Regularizer,
    "stacking": Stacking,
    "checkpoint": Checkpoint,
    "eval": Eval,
    "comparison": Comparison,
}
# Dotted name -> what is known of it.
KEYS: dict[str, Key] = {
    f"{section}.{field.name}".lstrip("."): field.metadata["key"]
    for section, of in SECTIONS.items()
    for field in dataclasses.fields(of)
}
# Operational ones of earlier versions that are gone, and keys by their names then.
RETIRED = ("prepare.block_mb",)
RENAMED: dict[str, str] = {}
