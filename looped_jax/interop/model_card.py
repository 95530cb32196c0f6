"""The README.md of an exported model: what it is, what it was measured on, how to load it."""

import json
import re
from typing import Any

from looped_jax.analysis.records import read_evaluations
from looped_jax.data.pieces import Vocabulary
from looped_jax.evaluation.metric_table import Metric
from looped_jax.interop.weights import Tensors
from looped_jax.models.config import ModelConfig
from looped_jax.models.flops import forward_flops
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.training.metrics_file import read_metrics
from looped_jax.training.run import OpenRun

RECORD = "retrofit.json"  # In a run that looped_jax.retrofit made: what of.
HEADLINES = ("accuracy", "perplexity", "bits_per_byte")
TRANSFORMERS = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("."{arguments})
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("The ", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```"""
LOADING = {
    "unrolled": "Every loop's layers are stored: an ordinary model, without foreign code.",
    "shared": "The layers of a loop are stored once. transformers runs the class in this folder; "
    "vLLM knows it where the package looped_jax is installed beside it.",
    "hrm_text": "As the class that transformers (5.24 or later) and vLLM have.",
    "dory": "As the class that transformers (5.24 or later) and vLLM have.",
    "ouro": "As the class that comes with ByteDance's Ouro checkpoints: copy its "
    "`configuration_ouro.py` and `modeling_ouro.py` here.",
    "gguf": "For llama.cpp and what is built on it: `model.gguf`.",
}


def model_card(
    run: OpenRun, config: ModelConfig, layout: str, tensors: Tensors, loops: int | None
) -> str:
    """Markdown with the front matter that model hubs read; ``loops``: in place of the plan's."""
    count, stored = run.job.layout.parameter_count, sum(t.size for t in tensors.values())
    flops = forward_flops(config, 1, config.max_length) / config.max_length
    trained = run.job.config
    rows = [
        ("plan", f"{config.plan}: {described(config.plan)}"),
        ("parameters", f"{count:,}; numbers stored here: {stored:,}"),
        ("FLOPs of a token", f"{flops:,.0f} forward, in a row of {config.max_length:,} tokens"),
        ("trained", f"{run.step:,} steps of {trained.train.batch_size:,} rows"),
        ("data", f"{trained.data.task}, vocabulary {trained.data.vocabulary}"),
        ("code", f"looped_jax {_code(run.meta['code'])}, numerics format {run.meta['format']}"),
    ]
    if source := _source(run):
        rows.insert(0, ("made of", source))
    if trained.train.start_from:
        rows.insert(0, ("goes on from", trained.train.start_from))
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [looped_jax]\n---",
        f"# {trained.name or run.workdir.name}",
        "A looped transformer, made with looped_jax: some of its layers pass several times, with "
        "the same weights.",
        _table(("", ""), rows),
        "## Evaluations\n\n" + evaluations(run, loops),
        f"## How to load it\n\n{LOADING[layout]}",
    ]
    if not isinstance(run.job.data.vocabulary, Vocabulary):
        parts.append(
            "Its tokens are a synthetic task's, for which there is no tokenizer: ids as "
            "`python -m looped_jax.tasks` draws them and the run's vocabulary numbers them."
        )
    elif layout != "gguf":
        foreign = layout in ("shared", "ouro")
        arguments = ", trust_remote_code=True" if foreign else ""
        parts.append(TRANSFORMERS.format(arguments=arguments))
    return "\n\n".join(parts) + "\n"


def described(plan: LoopPlan) -> str:
    """A plan in words."""
    words = [
        f"{s.layers} layer{'s' * (s.layers > 1)} {s.loops} times"
        if s.loops > 1
        else f"{s.layers} layer{'s' * (s.layers > 1)} once"
        for s in plan.segments
    ]
    return ", then ".join(words)


def _code(code: dict[str, Any]) -> str:
    commit = code.get("commit")
    changed = ", changed" if code.get("changed") else ""
    return f"{code.get('version')}" + (f" ({commit[:12]}{changed})" if commit else "")


def _source(run: OpenRun) -> str:
    """The pretrained model that looped_jax.retrofit made the run of, if it did."""
    record = run.workdir / RECORD
    if not record.exists():
        return ""
    found = json.loads(record.read_text())
    files = ", ".join(f"{of['file']} (SHA-256 {of['sha256'][:12]}…)" for of in found["files"])
    return f"{files}, whose licence it has"


def evaluations(run: OpenRun, loops: int | None) -> str:
    """What is known of this checkpoint at this loop count: of held-out rows, while training or
    afterwards, and of downstream tasks with their intervals."""
    rows: list[tuple[str, str, str]] = []
    plan = run.job.model.config.plan
    examples = None if run.job.config.data.task == "text" else run.job.config.eval.examples
    # Loop counts at which it is the same model; None: the plan's own.
    own = {n for n in {plan.segments[i].loops for i in plan.looped} if plan.with_loops(n) == plan}
    same: set[int | None] = {None, *own} if loops is None or loops in own else {loops}
    for line in read_metrics(run.workdir):
        if line.get("step") == run.step:
            of_loops = [key for key in line if _is_headline(key) and _loops_of(key) in same]
            rows += [_row(key, line, examples) for key in of_loops]
    for found in read_evaluations(run.workdir)[0]:
        if found["step"] == run.step and found["loops"] in same and not found.get("overrides"):
            for key in filter(_is_headline, found["metrics"]):
                name, value, interval = _row(key, found["metrics"], examples)
                rows.append((f"{name}, {found['split']} rows", value, interval))
    for path in sorted((run.workdir / "evaluations").glob(f"step{run.step}_*/summary.json")):
        summary = json.loads(path.read_text())
        if summary.get("model", {}).get("identity") not in {run.identity(n) for n in same}:
            continue  # Of another loop count, with exits or a shared cache, or overridden.
        for name, task in summary["tasks"].items():
            bounds = task["interval_95"]
            interval = "" if bounds is None else f"[{bounds[0]:.1f}, {bounds[1]:.1f}]"
            value = f"{task['metrics'][task['headline']]:.1f}"
            rows.append((f"{name}, {task['headline']} ({path.parent.name})", value, interval))
    if not rows:
        return "None was made of this checkpoint."
    return _table(("", "value", "95%"), rows)


def _loops_of(key: str) -> int | None:
    """The loop count that a metric of config.eval.loops is of; None: the plan's."""
    found = re.search(r"/loops_(\d+)/", key)
    return None if found is None else int(found[1])


def _is_headline(key: str) -> bool:
    return key.startswith("eval/") and key.rpartition("/")[2] in HEADLINES


def _row(key: str, line: dict[str, float], examples: int | None) -> tuple[str, str, str]:
    bounds = Metric(key).noise(line, examples)
    interval = "" if bounds is None else f"[{bounds[0]:.4g}, {bounds[1]:.4g}]"
    return key.removeprefix("eval/"), f"{line[key]:.4g}", interval


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
