"""Runs downstream tasks: prompts, greedy generation, predictions on disk, the official metric.

Predictions are written as they come, one JSON line each; a run that was interrupted goes on after
the last one. A prediction belongs to its model and its prompt, by hash: other parameters, another
style, number of shots or set of exemplars are asked again.
"""

import contextlib
import dataclasses
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from looped_jax.data.files import write_whole
from looped_jax.data.json_text import say_once, sound_lines
from looped_jax.data.tasks.downstream import TASKS, group_members
from looped_jax.data.tasks.downstream.base import GROUPS, DownstreamTask
from looped_jax.data.tasks.downstream.example import Example
from looped_jax.data.tasks.downstream.prompts import Prompt, build_prompt, draw_exemplars
from looped_jax.errors import RunError, UserError
from looped_jax.evaluation.intervals import mean_interval
from looped_jax.evaluation.metric_table import ENDS
from looped_jax.evaluation.metrics import METRICS
from looped_jax.inference.generator import Usage
from looped_jax.inference.text import Continues, complete, prompt_ids
from looped_jax.parallel import distributed
from looped_jax.storage.appended import Appended

# The groups of the paper's "All tasks" average: all but the reasoning primitives.
ALL_TASKS = GROUPS[:3]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tasks are asked; from config.eval."""

    data_dir: str = ""
    style: str = "default"
    shots: int = -1
    limit: int = 0  # Examples per task, whole dialogues, drawn by a fixed seed; 0: all.

    @classmethod
    def from_config(cls, config: ConfigDict, limit: int = 0) -> "Settings":
        return cls(config.eval.data_dir, config.eval.style, config.eval.shots, limit)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A task's examples with their prompts."""

    task: DownstreamTask
    examples: list[Example]
    prompts: list[Prompt]
    exemplars: list[str]  # Their ids.


def ask(task: DownstreamTask, settings: Settings, vocabulary: Any, max_length: int) -> Asked:
    """Reads a task's examples and builds its prompts; UserError as DownstreamTask.examples."""
    style = task.style(settings.style)
    examples = _limited(task.examples("validation", settings.data_dir), settings.limit)
    shots = task.shots if settings.shots < 0 else settings.shots
    exemplars: list[Example] = []
    if shots:
        exemplars = draw_exemplars(task.examples("train", settings.data_dir), shots)
    # The last token is said, never read.
    room = max_length - task.max_new_tokens + 1

    def fits(text: str) -> bool:
        return len(prompt_ids(vocabulary, text)) <= room

    prompts = [build_prompt(style, example, exemplars, fits) for example in examples]
    return Asked(task, examples, prompts, [exemplar.id for exemplar in exemplars])


def _limited(examples: list[Example], limit: int) -> list[Example]:
    if not limit or limit >= len(examples):
        return examples
    by_dialogue: dict[str, list[Example]] = {}
    for example in examples:
        by_dialogue.setdefault(example.dialogue, []).append(example)
    names = sorted(by_dialogue)
    random.Random(0).shuffle(names)
    chosen: list[Example] = []
    for name in names:
        if len(chosen) >= limit:
            break
        chosen += by_dialogue[name]
    return chosen


def run_task(
    asked: Asked,
    generator: Continues,
    vocabulary: Any,
    style_name: str = "default",
    out: epath.Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    show_progress: bool = True,
    identity: str = "",
) -> dict[str, Any] | None:
    """Generates what is missing, scores everything; returns the task's summary.

    With ``out`` (a JSONL file) predictions are kept there, and those that are there already of the
    model of this ``identity`` (training/run.py) are not made again. None if ``stop``, asked between
    batches, says so. RunError if ``out`` cannot be written. Several processes run a task together;
    only the first has ``out`` and, where there are predictions in it, a summary that counts them.
    """
    started = time.perf_counter()
    generator.usage = Usage()
    style = asked.task.style(style_name)
    predictions = _kept(out, asked, identity) if out is not None else {}
    missing = np.array([example.id not in predictions for example in asked.examples])
    todo = [
        int(i)
        for i in np.flatnonzero(distributed.from_first(missing))
        if not asked.prompts[i].too_long
    ]
    # Long and short prompts apart, as the generator batches them.
    todo.sort(key=lambda i: len(asked.prompts[i].text))
    try:
        size = generator.batch_size
        bar = tqdm(
            total=len(asked.examples),
            initial=len(asked.examples) - len(todo),
            desc=asked.task.name,
            unit="example",
            disable=not show_progress,
        )
        with bar, Appended(out) if out is not None else contextlib.nullcontext() as file:
            for start in range(0, len(todo), size):
                if stop():
                    return None
                batch = todo[start : start + size]
                texts = complete(
                    generator,
                    vocabulary,
                    [asked.prompts[i].text for i in batch],
                    asked.task.max_new_tokens,
                    stops=style.stop,
                )
                for i, text in zip(batch, texts, strict=True):
                    example, prediction = asked.examples[i], asked.task.extract(text)
                    predictions[example.id] = prediction
                    if file is not None:
                        record = _record(example, asked.prompts[i], prediction, identity)
                        file.write(_lines([record]))
                bar.update(len(batch))
        seconds = time.perf_counter() - started
        return _scored(asked, predictions, generator.usage, seconds, out, identity)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}") from error


def _record(example: Example, prompt: Prompt, prediction: Any, identity: str) -> dict[str, Any]:
    """A line of a predictions file, as looped_jax.score reads it."""
    return {
        "id": example.id,
        "model": identity,
        "prompt_hash": prompt.hash,
        "prediction": prediction,
        "answers": list(example.answers),
        **example.fields,
    }


def _kept(out: epath.Path, asked: Asked, identity: str) -> dict[str, Any]:
    """Predictions of this model for these very prompts from an earlier, perhaps interrupted, run.
    The others are gone from ``out`` afterwards."""
    if not out.exists():
        return {}
    hashes = {e.id: p.hash for e, p in zip(asked.examples, asked.prompts, strict=True)}
    kept: dict[str, Any] = {}
    lines, problems = sound_lines(out, lambda line: {"id", "prompt_hash", "prediction"} <= {*line})
    say_once(out, problems)  # Such a question is asked again.
    for record in lines:
        # Before numerics format 2 no model was written: such a prediction may be of any.
        known = (record.get("model"), record["prompt_hash"])
        if known == (identity, hashes.get(record["id"])):
            kept[record["id"]] = record["prediction"]
    write_whole(out, _lines(r for r in _records(asked, kept, identity) if r["id"] in kept))
    return kept


def _records(asked: Asked, predictions: dict[str, Any], identity: str) -> list[dict[str, Any]]:
    """Of every example; its prediction is None where there is none."""
    return [
        _record(example, prompt, predictions.get(example.id), identity)
        for example, prompt in zip(asked.examples, asked.prompts, strict=True)
    ]


def _lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _scored(
    asked: Asked,
    predictions: dict[str, Any],
    usage: Usage,
    seconds: float,
    out: epath.Path | None,
    identity: str,
) -> dict[str, Any]:
    records = _records(asked, predictions, identity)
    result = METRICS[asked.task.metric](records)
    if out is not None:
        scored = zip(records, result.examples, strict=True)
        write_whole(out, _lines({**record, "scores": scores} for record, scores in scored))
    counts = Counter(result.counts)
    counts["prompts_with_fewer_exemplars"] = sum(p.dropped > 0 for p in asked.prompts)
    counts["prompts_with_cut_context"] = sum(p.context_cut for p in asked.prompts)
    counts["prompts_too_long"] = sum(p.too_long for p in asked.prompts)
    # What counts for the headline, and the dialogue that each question is a turn of.
    counted = [
        (scores[result.headline], example.dialogue)
        for scores, example in zip(result.examples, asked.examples, strict=True)
        if result.headline in scores
    ]
    interval = mean_interval([score for score, _ in counted], [unit for _, unit in counted])
    return {
        "examples": len(records),
        "headline": result.headline,
        # In percent, over dialogues where there are any; null where there are too few.
        "interval_95": None if interval is None else [100 * bound for bound in interval],
        "metrics": result.totals,
        "counts": {name: count for name, count in counts.items() if count},
        "exemplars": asked.exemplars,
        "prompt_padding": usage.padding,
        # Of what was made this time.
        "cache_bytes": usage.cache_bytes,
        "draft": usage.of_draft,
        "loops_used": usage.loops,
        "loops": {str(n): count for n, count in sorted(usage.depths.items())},
        "seconds": seconds,
    }


def averages(tasks: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Averages of the headline figures, in percent: of every group that is complete, and of the
    paper's "All tasks" (the three groups but the reasoning primitives) if they are."""
    headline = {name: summary["metrics"][summary["headline"]] for name, summary in tasks.items()}
    found = {}
    for group in GROUPS:
        members = group_members(group)
        if all(name in headline for name in members):
            found[group] = sum(headline[name] for name in members) / len(members)
    if all(group in found for group in ALL_TASKS):
        members = tuple(name for group in ALL_TASKS for name in group_members(group))
        found["all_tasks"] = sum(headline[name] for name in members) / len(members)
    return found


def table(tasks: dict[str, dict[str, Any]], means: dict[str, float]) -> str:
    """The summaries as text."""
    lines = [f"{'task':24}  {'metric':10}  {'%':>6}  {'95% interval':>15}  {'examples':>8}  s"]
    for name, summary in tasks.items():
        bounds = summary["interval_95"]
        interval = "too few" if bounds is None else f"{bounds[0]:6.2f} to {bounds[1]:5.2f}"
        lines.append(
            f"{name:24}  {summary['headline']:10}  "
            f"{summary['metrics'][summary['headline']]:6.2f}  {interval:>15}  "
            f"{summary['examples']:8,}  {summary['seconds']:.0f}"
        )
    lines += [f"{name:24}  {'average':10}  {value:6.2f}" for name, value in means.items()]
    return "\n".join(lines)


def evaluate_tasks(
    names: Sequence[str],
    settings: Settings,
    generator: Continues,
    vocabulary: Any,
    folder: epath.Path | None = None,
    show_progress: bool = True,
    model: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs tasks in turn; returns {"model": …, "tasks": {name: summary}, "averages": …}.

    ``model`` says what is evaluated; its "identity" (training/run.py) is all that need be in it.
    With ``folder`` predictions go to NAME.jsonl in it and the summary to summary.json, which keeps
    the tasks that earlier calls left there of the same identity, with the files that were read.
    Every task's data is looked for before the first starts. Of several processes the first one
    writes.
    """
    asked = {name: ask(TASKS[name], settings, vocabulary, generator.max_length) for name in names}
    model = {"identity": "", **(model or {})}
    summary: dict[str, Any] = {"model": model, "tasks": {}, "averages": {}}
    written = folder if distributed.is_first() else None

    def open_folder() -> None:
        if written is None:
            return
        written.mkdir(parents=True, exist_ok=True)
        if (path := written / "summary.json").exists():
            try:
                there = json.loads(path.read_text())
                same = there.get("model", {}).get("identity") == model["identity"]
            except (ValueError, RecursionError, AttributeError) as error:
                raise UserError(f"{path} is damaged ({error}); remove it") from error
            summary.update(there if same else {})

    distributed.first_does(open_folder)
    for name in names:
        out = written / f"{name}.jsonl" if written is not None else None
        result = run_task(
            *(asked[name], generator, vocabulary, settings.style, out),
            show_progress=show_progress,
            identity=model["identity"],
        )
        summary["tasks"][name] = result
        summary["averages"] = averages(summary["tasks"])
        if written is not None and result is not None:
            splits = ("train", "validation") if asked[name].exemplars else ("validation",)
            result["sources"] = TASKS[name].sources(splits, settings.data_dir)
            write_whole(written / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def scalars(name: str, summary: dict[str, Any]) -> dict[str, float]:
    """A task's metrics for metrics.jsonl: eval/<task>/<metric>, from 0 to 1, and the ends of the
    interval of its headline figure, <metric>_low and <metric>_high, where it has one."""
    shown = dict(summary["metrics"])
    if bounds := summary["interval_95"]:
        shown |= {summary["headline"] + end: b for end, b in zip(ENDS, bounds, strict=True)}
    return {f"eval/{name}/{key}": value / 100 for key, value in shown.items()}
