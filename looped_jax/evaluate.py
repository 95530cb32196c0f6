"""Evaluates a run's checkpoint.

python -m looped_jax.evaluate --workdir=runs/phop_1x6 --tasks=phop_p16_n256 --loops=8 --step=5000
python -m looped_jax.evaluate --workdir=runs/pile_12x2 --tasks=paper \\
    --config.eval.data_dir=$EVALS_DIR

Prints one JSON object of metrics, from 0 to 1 (one a line with several --loops); those of held-out
rows are also kept in WORKDIR/evaluations/held_out.jsonl, for looped_jax.report. Tasks of a
synthetic run: synthetic ones with its
vocabulary. Of a language model: `text` (perplexity), and downstream tasks, groups of them
(closed_book_qa, open_book_qa, math_word_problems, reasoning_primitives) or `paper`, all 19; their
predictions and a summary with intervals and averages go to WORKDIR/evaluations/.
"""

import json
import sys

from absl import flags

from looped_jax.analysis.records import append_evaluation
from looped_jax.config import cli
from looped_jax.data.run_data import downstream_names
from looped_jax.errors import UserError
from looped_jax.evaluation.downstream import Settings, evaluate_tasks, scalars, table
from looped_jax.evaluation.held_out import Evaluator, HeldOut
from looped_jax.inference.generator import Generator
from looped_jax.inference.policy import CACHE_HELP, DRAFT_HELP, EXACT, EXIT_HELP, Policy
from looped_jax.models.transformer import check_loops
from looped_jax.parallel import distributed
from looped_jax.training.evaluations import held_out_sets
from looped_jax.training.identity import measured_on, read_run_file
from looped_jax.training.run import OpenRun, open_run

_WORKDIR = flags.DEFINE_string("workdir", "", "The run.")
_TASKS = flags.DEFINE_list("tasks", [], "Tasks or groups; default: those of the run's config.")
_LOOPS = flags.DEFINE_list("loops", [], "Loop counts in place of the plan's, e.g. 4 or 1,2,4.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the newest.", lower_bound=0)
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "Of held-out rows.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Examples per downstream task; 0: all.", lower_bound=0)
_CACHE = flags.DEFINE_string("cache", "per_loop", CACHE_HELP)
_EXIT = flags.DEFINE_string("exit", "none", EXIT_HELP)
_DRAFT = flags.DEFINE_string("draft", "none", DRAFT_HELP)
_BATCH = flags.DEFINE_integer("batch_size", 16, "Prompts at a time.", lower_bound=1)


def main(overrides: dict[str, str]) -> None:
    """Restores, evaluates, prints; several processes together (parallel/distributed.py)."""
    distributed.join()
    if _TASKS.value:
        overrides = {**overrides, "eval.tasks": ",".join(_TASKS.value)}
    run = open_run(_WORKDIR.value, _STEP.value, overrides)
    job, config = run.job, run.job.config
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
        evaluator = Evaluator(job.model, job.mesh, job.rules, loops, policy)
        metrics: dict[str, float] = {}
        for held_out in sets:
            if said := other_rows(run, held_out):
                print(said, file=sys.stderr)
            found = evaluator(params, held_out) or {}
            metrics |= found
            if distributed.is_first():
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
    """Runs downstream tasks and says on stderr what came out; returns their metrics."""
    job = run.job
    settings = Settings.from_config(job.config, _LIMIT.value)
    generator = Generator(
        *(job.model, params, job.mesh, job.rules, loops, _BATCH.value),
        policy=policy,
        eos=job.data.vocabulary.eos,
    )
    # One folder per way of asking: what is in it is comparable.
    parts = [f"step{run.step}", settings.style]
    parts += [f"loops{loops}"] if loops else []
    parts += [f"shots{settings.shots}"] if settings.shots >= 0 else []
    parts += [f"limit{settings.limit}"] if settings.limit else []
    parts += [f"{key}-{value.replace(':', '-')}" for key, value in said_of(policy).items()]
    identity = run.identity(loops, "" if policy == EXACT else str(policy))
    parts += [f"changed-{identity[:8]}"] if run.changed_model else []
    folder = run.workdir / "evaluations" / "_".join(parts)
    vocabulary = job.data.vocabulary
    first = distributed.is_first()
    summary = evaluate_tasks(
        *(names, settings, generator, vocabulary, folder),
        show_progress=first,
        model={
            "identity": identity,
            "step": run.step,
            "loops": loops,
            **said_of(policy),
            "overridden": run.changed_model,
        },
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
    cli.run(main)
