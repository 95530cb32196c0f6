"""Evaluates a run's checkpoint.

python -m looped_jax.evaluate --workdir=runs/phop_1x6 --tasks=phop_p16_n256 --loops=8 --step=5000
python -m looped_jax.evaluate --workdir=runs/pile_12x2 --tasks=paper \\
    --config.eval.data_dir=$EVALS_DIR

python -m looped_jax.evaluate --hf=models/SmolLM2-135M --out=runs/smollm2 --tasks=paper \\
    --config.eval.data_dir=$EVALS_DIR

Prints one JSON object of metrics, from 0 to 1; with --loops one a line for each count, which it has
as "loops". What models are judged by is said on stderr too. Metrics of held-out rows are also kept
in WORKDIR/evaluations/held_out.jsonl, for looped_jax.report. Tasks of a synthetic run: synthetic
ones with its vocabulary. Of a language model: `text` (perplexity), and downstream tasks, groups of
them (closed_book_qa, open_book_qa, math_word_problems, reasoning_primitives) or `paper`, all 19;
their predictions and a summary with intervals and averages go to WORKDIR/evaluations/.

--hf evaluates another project's model, a folder that transformers opens (extra `judges`), on the
same downstream tasks by the same prompts and metrics; predictions and summary go to a folder in
--out, nothing into the model's. --prompts prints the prompts of the tasks and runs no model.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from looped_jax.analysis.records import append_evaluation
from looped_jax.config import apply_overrides, cli, default_config, validate
from looped_jax.data.run_data import downstream_names
from looped_jax.data.tasks.downstream import TASKS, expand
from looped_jax.errors import UserError
from looped_jax.evaluation.downstream import Settings, ask, evaluate_tasks, scalars, table
from looped_jax.evaluation.held_out import Evaluator, HeldOut
from looped_jax.evaluation.metric_table import shown_evaluation
from looped_jax.evaluation.prompt_lines import prompt_records
from looped_jax.inference.generator import Generator
from looped_jax.inference.policy import CACHE_HELP, DRAFT_HELP, EXACT, EXIT_HELP, Policy
from looped_jax.inference.text import Continues
from looped_jax.interop import hf_model
from looped_jax.interop.hf_folder import HfFolder
from looped_jax.models.transformer import check_loops
from looped_jax.parallel import distributed
from looped_jax.training.evaluations import held_out_sets
from looped_jax.training.identity import measured_on, read_run_file
from looped_jax.training.run import OpenRun, open_run

_FLAGS = cli.Flags()
_WORKDIR = _FLAGS.path("workdir", "", "The run.")
_TASKS = _FLAGS.list("tasks", [], "Tasks or groups; default: those of the run's config.")
_LOOPS = _FLAGS.list("loops", [], "Loop counts in place of the plan's, e.g. 4 or 1,2,4.")
_STEP = _FLAGS.integer("step", None, "Checkpoint; default: the newest.", lower_bound=0)
_SPLIT = _FLAGS.enum("split", "validation", ["validation", "test"], "Of held-out rows.")
_LIMIT = _FLAGS.integer("limit", 0, "Examples per downstream task; 0: all.", lower_bound=0)
_CACHE = _FLAGS.string("cache", "per_loop", CACHE_HELP)
_EXIT = _FLAGS.string("exit", "none", EXIT_HELP)
_DRAFT = _FLAGS.string("draft", "none", DRAFT_HELP)
_BATCH = _FLAGS.integer("batch_size", 16, "Prompts at a time.", lower_bound=1)
_HF = _FLAGS.path("hf", "", "A folder with a model of transformers, in place of a run.")
_OUT = _FLAGS.path("out", "", "With --hf: where predictions and summary go.", on_disk=True)
_LENGTH = _FLAGS.integer(
    "max_length", None, "With --hf: tokens read at most; default: as its config.json.", 2
)
_TRUST = _FLAGS.bool("trust_remote_code", False, "With --hf: run code in the folder.")
_PROMPTS = _FLAGS.bool("prompts", False, "Print prompts as JSON lines, run no model.")
_OF_RUNS = ("workdir", "step", "loops", "split", "cache", "exit", "draft")
_OF_HF = ("out", "max_length", "trust_remote_code")
_KEYS_OF_HF = ("eval.data_dir", "eval.style", "eval.shots")


def main(overrides: dict[str, str]) -> None:
    """Evaluates a run, or another project's model, or says what it would be asked."""
    for name in _OF_RUNS if _HF.value else _OF_HF:
        if _FLAGS.values[name].present:
            raise UserError(f"--{name} does not go {'with' if _HF.value else 'without'} --hf")
    if _HF.value:
        of_hf(overrides)
    else:
        of_run(overrides)


def of_run(overrides: dict[str, str]) -> None:
    """Restores, evaluates, prints; several processes together (parallel/distributed.py)."""
    distributed.join()
    if _TASKS.value:
        overrides = {**overrides, "eval.tasks": ",".join(_TASKS.value)}
    run = open_run(_WORKDIR.value, _STEP.value, overrides)
    job, config = run.job, run.job.config
    if _PROMPTS.value:
        settings = Settings.from_config(config, _LIMIT.value)
        print_prompts(
            downstream_names(config), settings, job.data.vocabulary, job.model.config.max_length
        )
        return
    counts = loop_counts(_LOOPS.value)
    policy = Policy.parse(_CACHE.value, _EXIT.value, _DRAFT.value)
    for loops in counts:  # Before anything is read.
        check_loops(job.model, loops)
        policy.check(job.model.config, loops)
    names = downstream_names(config)
    if policy.draft is not None and not names:
        raise UserError(f"draft={policy.draft}: none of the tasks generates; say some by --tasks")
    sets = held_out_sets(job, _SPLIT.value)  # UserError if a text is not there.
    params = run.parameters()
    for loops in counts:
        if loops is not None and distributed.is_first():
            print(f"with {loops} loops:", file=sys.stderr)
        evaluator = Evaluator(job.model, job.mesh, job.rules, loops, policy)
        metrics: dict[str, float] = {}
        for held_out in sets:
            if said := other_rows(run, held_out):
                print(said, file=sys.stderr)
            found = evaluator(params, held_out) or {}
            metrics |= found
            if distributed.is_first():
                print(shown_evaluation(found), file=sys.stderr)
                append_evaluation(
                    *(run.workdir, run.step, loops, _SPLIT.value, found),
                    overrides=run.overridden | read_by(policy),
                    checkpoint=run.identity(),
                    data=json.dumps(held_out.sample.identity),
                )
        if names:
            metrics |= evaluate_downstream(run, params, names, loops, policy)
        if distributed.is_first():
            line = {"step": run.step, **loops_of(loops), **said_of(policy), **metrics}
            print(json.dumps(line), flush=True)


def of_hf(overrides: dict[str, str]) -> None:
    """Reads another project's model, asks it the downstream tasks, prints; one process."""
    # Memory of a GPU is torch's: JAX would take most of it.
    jax.config.update("jax_platforms", "cpu")
    config = default_config()
    if others := [key for key in overrides if key not in _KEYS_OF_HF]:
        known = ", ".join(f"--config.{key}" for key in _KEYS_OF_HF)
        raise UserError(f"--config.{others[0]} is of a run; with --hf there are {known}")
    apply_overrides(config, overrides)
    validate(config)
    if "text" in _TASKS.value:
        raise UserError(
            "--tasks=text: held-out rows are tokens of a run's own vocabulary; with --hf there are "
            "downstream tasks (looped_jax.lm_eval --model hf measures bits per byte of documents)"
        )
    names = expand(tuple(_TASKS.value))
    if not names:
        raise UserError("say --tasks=paper, groups or names of downstream tasks")
    settings = Settings.from_config(config, _LIMIT.value)
    if not _OUT.value and not _PROMPTS.value:
        raise UserError("say --out=DIR: predictions do not go into the model's own folder")
    folder = HfFolder.open(_HF.value, _LENGTH.value, _TRUST.value)
    if _PROMPTS.value:
        print_prompts(names, settings, folder.vocabulary, folder.max_length)
        return
    for name in names:  # Before the weights are read.
        TASKS[name].examples("validation", settings.data_dir, count=1)
    out = epath.Path(_OUT.value) / "_".join(way_of_asking(settings))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={_OUT.value}: {error.strerror or error}") from error
    generator = hf_model.load(folder, _BATCH.value)
    metrics = run_tasks(
        *(names, settings, generator, folder.vocabulary),
        out,
        {"identity": folder.identity, "hf": _HF.value, **generator.described},
    )
    print(json.dumps({"hf": _HF.value, **metrics}), flush=True)


def print_prompts(
    names: Sequence[str], settings: Settings, vocabulary: Any, max_length: int
) -> None:
    """A JSON line for each prompt, as a model with this vocabulary and length is asked."""
    if not names:
        raise UserError("--prompts: none of the tasks has prompts; say some by --tasks")
    asked = [ask(TASKS[name], settings, vocabulary, max_length) for name in names]
    for task in asked:
        for record in prompt_records(task, settings.style):
            print(json.dumps(record, ensure_ascii=False))


def other_rows(run: OpenRun, held_out: HeldOut) -> str:
    """What to say where the rows are not those on which the run was evaluated while training."""
    own = measured_on(read_run_file(run.workdir)).get(held_out.name)
    if _SPLIT.value != "validation" or own is None or own == held_out.sample.identity:
        return ""
    return (
        f"{held_out.name}: these are not the rows on which {run.workdir} was evaluated while "
        "training; a report keeps the figures apart"
    )


def loop_counts(texts: list[str]) -> list[int | None]:
    """Reads --loops; without it, the plan's own. UserError for what is not a count."""
    if bad := [text for text in texts if not text.strip().isdigit() or int(text) < 1]:
        raise UserError(f"--loops={bad[0]} is not a loop count, e.g. --loops=4 or --loops=1,2,4")
    return [int(text) for text in texts] or [None]


def loops_of(loops: int | None) -> dict[str, int]:
    """Which of several --loops a line is about."""
    return {} if loops is None else {"loops": loops}


def read_by(policy: Policy) -> dict[str, str]:
    """What it changes of how held-out rows are read."""
    cache = {} if policy.cache == EXACT.cache else {"cache": str(policy.cache)}
    return cache | ({} if policy.exit is None else {"exit": str(policy.exit)})


def said_of(policy: Policy) -> dict[str, str]:
    """What is not plain decoding with all loops."""
    return read_by(policy) | ({} if policy.draft is None else {"draft": str(policy.draft)})


def evaluate_downstream(
    run: OpenRun, params: object, names: tuple[str, ...], loops: int | None, policy: Policy
) -> dict[str, float]:
    """Runs downstream tasks with these parameters; returns their metrics."""
    job = run.job
    settings = Settings.from_config(job.config, _LIMIT.value)
    generator = Generator(
        *(job.model, params, job.mesh, job.rules, loops, _BATCH.value),
        policy=policy,
        eos=job.data.vocabulary.eos,
    )
    parts = [f"step{run.step}", *way_of_asking(settings, loops, said_of(policy))]
    identity = run.identity(loops, "" if policy == EXACT else str(policy))
    parts += [f"changed-{identity[:8]}"] if run.changed_model else []
    model = {
        "identity": identity,
        "step": run.step,
        "loops": loops,
        **said_of(policy),
        "overridden": run.changed_model,
    }
    return run_tasks(
        *(names, settings, generator, job.data.vocabulary),
        *(run.workdir / "evaluations" / "_".join(parts), model, policy),
    )


def way_of_asking(
    settings: Settings, loops: int | None = None, said: dict[str, str] | None = None
) -> list[str]:
    """Parts of the name of a folder: what is in one is comparable."""
    parts = [settings.style]
    parts += [f"loops{loops}"] if loops else []
    parts += [f"shots{settings.shots}"] if settings.shots >= 0 else []
    parts += [f"limit{settings.limit}"] if settings.limit else []
    return parts + [f"{key}-{value.replace(':', '-')}" for key, value in (said or {}).items()]


def run_tasks(
    names: Sequence[str],
    settings: Settings,
    generator: Continues,
    vocabulary: Any,
    folder: epath.Path,
    model: dict[str, Any],
    policy: Policy = EXACT,
) -> dict[str, float]:
    """Runs downstream tasks and says on stderr what came out; returns their metrics."""
    first = distributed.is_first()
    summary = evaluate_tasks(
        *(names, settings, generator, vocabulary, folder), show_progress=first, model=model
    )
    tasks = {name: summary["tasks"][name] for name in names}
    if first:
        size = max((task.get("cache_bytes", 0) for task in tasks.values()), default=0)
        print(f"cache ({policy.cache}): {size / 1e6:.1f} MB at most", file=sys.stderr)
        print(table(tasks, summary["averages"]), file=sys.stderr)
        print(f"predictions and summary.json: {folder}", file=sys.stderr)
    found: dict[str, float] = {}
    for name, of_task in tasks.items():
        found |= scalars(name, of_task)
        if policy.exit is not None:
            found[f"eval/{name}/loops_used"] = of_task["loops_used"]
        found |= {f"eval/{name}/{key}": value for key, value in of_task["draft"].items()}
    return found


if __name__ == "__main__":
    cli.run(main, _FLAGS)
