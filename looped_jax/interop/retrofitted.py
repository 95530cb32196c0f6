"""A run made of a pretrained model of another project: config.json, checkpoints/0, the tokenizer,
and retrofit.json, which says what was taken from where."""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from looped_jax import config as config_lib
from looped_jax.data.files import sha256
from looped_jax.data.own_ids import CONFIG as TOKENIZER_CONFIG
from looped_jax.data.own_ids import FILE, OWN
from looped_jax.data.pipeline import Sample
from looped_jax.data.vocabulary import load_vocabulary
from looped_jax.errors import UserError
from looped_jax.interop.exported import LOST, ORIGIN, whole_folder
from looped_jax.interop.gguf_file import open_gguf
from looped_jax.interop.gguf_tokenizer import write_gguf_tokenizer
from looped_jax.interop.imported import reader_of, restored
from looped_jax.interop.influence import block_influence
from looped_jax.interop.layer_choice import Choice, chosen
from looped_jax.interop.layouts import own_layers
from looped_jax.interop.model_card import RECORD
from looped_jax.interop.source import WEIGHTS, Source, open_folder
from looped_jax.interop.starts import start
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.training.checkpoint import Checkpointer
from looped_jax.training.identity import code_version
from looped_jax.training.job import Job, make_job
from looped_jax.training.state import first_state, fresh_parameters

TOKENIZER = "tokenizer"
MOST_TOKENS = 2048  # Of a row, unless config.data.length says so; RoPE has no bound of its own.
INFLUENCE_ROWS = 8


class _NoRows:
    """The position in the data of a model that read none here."""

    def __init__(self, vocabulary: str):
        self.vocabulary = vocabulary

    def state(self) -> dict[str, Any]:
        """As TrainBatches.state."""
        none = {"iterator": {}, "first_row": 0, "rows": 0, "fingerprint": "", "recipe": {}}
        return {**none, "vocabulary": self.vocabulary}


@contextlib.contextmanager
def open_source(path: epath.Path) -> Iterator[tuple[Source, Any]]:
    """A folder or a .gguf file; beside it, of a file, its reader. UserError if it is neither."""
    if path.suffix == ".gguf":
        with open_gguf(path) as found:
            yield found
    else:
        with open_folder(path) as source:
            yield source, None


def retrofit(
    path: epath.Path,
    plan: str,
    out: epath.Path,
    rule: str = "stepwise",
    tokenizer: str = "",
    overrides: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Makes the run and returns what retrofit.json says. An empty ``plan`` is the source's own, of
    a folder that looped_jax.export wrote the plan of its run.

    UserError for a source that cannot be read, a plan that it cannot fill, and a tokenizer that
    does not match; RunError where ``out`` cannot be written. It is there whole or not at all.
    """
    out = out.resolve()  # The run says where its tokenizer is, from wherever it is opened.
    with open_source(path) as (source, reader), whole_folder(out) as folder:
        form, depth = reader_of(source), int(source.said("num_hidden_layers"))
        origin = own_origin(path)
        if not plan and origin:
            plan = origin["plan"]
        plan = plan or (form.plan(source) if hasattr(form, "plan") else f"{depth}x1")
        _copy_tokenizer(path, reader, tokenizer, folder / TOKENIZER)
        spec = f"{OWN}{folder / TOKENIZER}"
        config = _config(source, form, plan, spec, overrides or {}, origin)
        vocabulary = load_vocabulary(config.data.vocabulary)
        if vocabulary.size > source.said("vocab_size"):
            raise UserError(
                f"the tokenizer has {vocabulary.size} ids, {path} only "
                f"{source.said('vocab_size')}: it is not this model's"
            )
        job = make_job(config.lock(), needs_data=False)
        measured: list[float] = []

        def influence() -> list[float]:
            measured[:] = block_influence(source, job.model.config, depth, _rows(job))
            return measured

        if origin and origin["plan"] == str(job.model.config.plan):
            rule, places = "its own export", own_layers(origin["layout"], job.model.config.plan)
            choice: Choice = tuple((place,) for place in places)
        else:
            choice = chosen(job.model.config.plan, depth, rule, influence)
        with job.context():
            make = functools.partial(fresh_parameters, job.model, config.seed)
            fresh = jax.jit(make, out_shardings=job.layout.shardings.params)()
        params = start(source, job.model.config, depth, choice, jax.device_get(fresh))
        if rule == "its own export":
            params = exact(path, params)
        record = {
            "source": str(path),
            "files": source.identity,
            "described": dict(source.description),
            "layers": [list(numbers) for numbers in choice],
            "rule": rule,
            **({"influence": measured} if measured else {}),
            "plan": plan,
            "code": code_version(),
        }
        _save(job, config, params, vocabulary.fingerprint, folder, out)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return record


def _config(
    source: Source,
    form: Any,
    plan: str,
    vocabulary: str,
    overrides: Mapping[str, str],
    origin: Mapping[str, Any] | None,
) -> ConfigDict:
    """Of a run of this model, unlocked. ``origin``: of our own export, what it says of its run."""
    config = config_lib.default_config()
    config.name = f"retrofit of {source.path.name}"
    used = int(source.said("vocab_size"))
    # The ids that pad are not among exported tensors, but lost bits are those of arrays with them.
    size = origin["config"]["model"]["vocab_size"] if origin else 0
    size = size or 8 * -(-used // 8)
    config.model.update(plan=plan, vocab_size=size, **form.model_fields(source))
    if hasattr(form, "loop_fields"):
        config.loop.update(form.loop_fields(source))
    longest = int(source.description.get("max_position_embeddings", MOST_TOKENS))
    config.data.update(
        task="text", vocabulary=vocabulary, length=min(longest, MOST_TOKENS), path=""
    )
    config.eval.tasks = ("text",)
    config_lib.apply_overrides(config, overrides)
    config_lib.validate(config)
    comes_back = origin and origin["plan"] == str(LoopPlan.parse(config.model.plan))
    if comes_back and config.model.vocab_size != size:
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size}, where the run that {source.path} "
            f"was exported from has {size} and comes back bit for bit; leave it out"
        )
    return config


def _copy_tokenizer(path: epath.Path, reader: Any, tokenizer: str, out: epath.Path) -> None:
    """Puts the tokenizer's two files in ``out``: those of ``tokenizer``, or the source's own."""
    if not tokenizer and reader is not None:
        write_gguf_tokenizer(reader, out)
        return
    folder = epath.Path(tokenizer) if tokenizer else path
    if missing := [name for name in (FILE, TOKENIZER_CONFIG) if not (folder / name).exists()]:
        raise UserError(
            f"{folder} has no {missing[0]}; --tokenizer=DIR says where one with {FILE} and "
            f"{TOKENIZER_CONFIG} is"
        )
    out.mkdir(parents=True)
    for name in (FILE, TOKENIZER_CONFIG):
        (out / name).write_bytes((folder / name).read_bytes())


def _rows(job: Job) -> dict[str, np.ndarray]:
    """Held-out rows, on which influence is measured; UserError if there are none."""
    if not (job.config.data.path or job.config.data.sources):
        raise UserError("--layers=influence is measured on text: --config.data.path=DIR says which")
    job.data.check()
    sample = Sample.of(job.data.source("validation"), INFLUENCE_ROWS)
    return sample.rows(np.arange(len(sample.order)))


def own_origin(path: epath.Path) -> dict[str, Any] | None:
    """What looped_jax.export wrote of a folder, if its weights are still those and a loop's layers
    are the same in each of its loops there: where LoRA was added to them, or others have trained
    them since, they are as many different ones."""
    if not all((path / name).exists() for name in (ORIGIN, WEIGHTS)):
        return None
    origin: dict[str, Any] = json.loads((path / ORIGIN).read_text())
    is_plain = origin["config"]["loop"]["per_loop"] == "none"
    is_same = origin.get("weights") == sha256(path / WEIGHTS)
    return origin if is_plain and is_same else None


def exact(path: epath.Path, params: Any) -> Any:
    """The parameters read from the folder of our own export, with the bits that its tensors do not
    have; as they are if these are other tensors by now."""
    if not (path / LOST).exists():
        return params
    kept = dict(np.load((path / LOST).as_posix()))
    return restored(params, kept) if str(kept.pop("sha256")) == sha256(path / WEIGHTS) else params


def _save(
    job: Job,
    config: ConfigDict,
    params: Any,
    fingerprint: str,
    folder: epath.Path,
    out: epath.Path,
) -> None:
    """Writes config.json and checkpoints/0 in ``folder``, which will be ``out``."""
    final = ConfigDict(config.to_dict())
    final.data.vocabulary = f"{OWN}{out / TOKENIZER}"
    placed = jax.tree.map(
        lambda leaf, like: jax.device_put(np.asarray(leaf, like.dtype), like.sharding),
        params,
        job.layout.abstract.params,
    )
    averages = job.layout.abstract.average is not None
    state = jax.jit(
        lambda params: first_state(params, job.optimizer, averages),
        out_shardings=job.layout.shardings,
    )(placed)
    (folder / "config.json").write_text(config_lib.to_json(final))
    with Checkpointer(folder, keep=1) as checkpointer:
        batches: Any = _NoRows(fingerprint)
        checkpointer.save(0, state, batches, final.to_dict())
