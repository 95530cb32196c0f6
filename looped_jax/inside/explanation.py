"""The page of looped_jax.explain: of one prompt, token by token and loop by loop, what the model
would say had it stopped there, how its state changes, and what attends to what."""

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from looped_jax.analysis.document import Cell, Document, Figure, Grid, Section, Table, Text
from looped_jax.data.files import write_whole
from looped_jax.errors import UserError
from looped_jax.inside import figures
from looped_jax.inside.decoded import Decoded
from looped_jax.inside.interventions import loops_of
from looped_jax.inside.lens import Lens, exit_depths
from looped_jax.inside.opened import Opened
from looped_jax.inside.passes import watched_segment
from looped_jax.inside.task_parts import held_parts, lost_table
from looped_jax.models.loops.exits import ExitRule

FIELDS = ("kl", "entropy", "target_log_p", "target_rank", "norm", "update", "cosine")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A row: its ids, the right next id at each place (-1: not known), and what it is called."""

    tokens: list[int]
    targets: list[int]
    title: str

    @property
    def known(self) -> np.ndarray:
        return np.asarray(self.targets) >= 0


def of_prompt(model: Opened, text: str) -> Asked:
    """A text; the right next token is the text's own. UserError if it is empty or too long."""
    if not text:
        raise UserError("an empty prompt has nothing to explain")
    (ids,) = model.tokens(text)
    return Asked(ids, [*ids[1:], -1], text)


def of_task(model: Opened, task: str, number: int) -> Asked:
    """Held-out example ``number`` of a synthetic task, with the answers that are asked for."""
    data = model.run.job.data
    row = {k: v[0] for k, v in data.source("test", task).rows(np.asarray([number])).items()}
    length = int(np.sum(row["segment_ids"] > 0))
    asked = row["loss_weights"][:length] > 0
    targets = np.where(asked, row["targets"][:length], -1)
    return Asked(row["tokens"][:length].tolist(), targets.tolist(), f"{task}, example {number}")


def rules_for(model: Opened) -> list[str]:
    """Exit rules that this model can be asked about; none where tokens stop by themselves, or where
    there is no loop or more than one looped segment to leave."""
    config = model.model.config
    options = dict(config.loop)
    gate = options.get("gate")
    if gate == "act" or "routing" in options or len(config.plan.looped) != 1:
        return []
    return ["state:0.03", "kl:0.0005", *(["cdf:0.5", "cdf:0.9"] if gate == "linear" else [])]


def depths(model: Opened, asked: Asked) -> dict[str, list[int]]:
    """Rule -> the loops that each token takes; none where something is changed, which exit rules
    know nothing of."""
    if model.changes:
        return {}
    tokens_BT = np.repeat(np.asarray([asked.tokens], np.int32), model.shards, axis=0)
    found = {}
    for text in rules_for(model):
        rule = ExitRule.parse(text)
        assert rule is not None
        with model.run.job.context():
            given: Any = (model.model, model.params, tokens_BT, np.ones_like(tokens_BT))
            of_rule = exit_depths(*given, rule=rule, loops=model.loops)
        found[text] = np.asarray(of_rule)[0].tolist()
    return found


def names(vocabulary: Any, ids: Sequence[int]) -> list[str]:
    """Tokens as they are shown, one by one."""
    special = {vocabulary.bos: "<bos>", vocabulary.eos: "<eos>"}
    shown = []
    for i in ids:
        text = special.get(int(i)) or vocabulary.decode([int(i)]) or f"#{i}"
        shown.append(text.replace("\n", "\\n").replace("\t", "\\t"))
    return shown


def explain(
    model: Opened,
    asked: Asked,
    segment: int | None = None,
    held: Decoded | None = None,
    lost: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[Document, dict[str, Any]]:
    """The page, and its data for JSON. ``held``: what states hold over many examples (decoded.py);
    ``lost``: what changes inside cost (effects.py). UserError for a segment that is not there."""
    plan = model.plan
    number = watched_segment(model.model.config, segment)
    own = plan.segments[number]
    is_loop = own.trained_loops > 1
    unit, trained = ("loop", own.trained_loops) if is_loop else ("layer", own.layers)
    depth = (loops_of(model.changes, model.loops) or own.loops) if is_loop else trained
    tokens = names(model.vocabulary, asked.tokens)
    found = seen(model, asked, number)
    left = depths(model, asked)
    weights = model.attention([asked.tokens], segment=number)[:, :, 0]
    heat = figures.lens(found, asked.known, tokens, unit)
    drawn = figures.states(found, unit)
    maps, heads = figures.attention(weights)
    said: list[Any] = [
        _grid(model, asked, tokens, found, trained, f"{unit.capitalize()} by {unit}"),
        _means(found, asked, unit),
        Figure("lens", f"The right token, and how far a {unit} is from the last", heat, LENS),
    ]
    about = _about(model, asked, number, f"{trained} {unit}s", f"{depth}")
    sections = [
        Section("What is shown", (Text(tuple(about)),)),
        Section(f"What each {unit} would say", tuple(said)),
        Section("How the state changes", (Figure("states", "States", drawn, STATES),)),
        *([Section("When tokens would leave", (_exits(left, tokens),))] if left else []),
        Section("Attention", (Figure("attention", "Attention", maps, ATTENTION[heads]),)),
    ]
    if held is not None:
        sections.append(Section(f"What the state after each {unit} holds", held_parts(held, unit)))
    if lost is not None:
        sections.append(Section(f"What each {unit} is needed for", (lost_table(lost),)))
    data = {
        "workdir": str(model.run.workdir),
        "step": model.step,
        "plan": str(plan),
        f"{unit}s": depth,
        "ids": asked.tokens,
        "tokens": tokens,
        "targets": asked.targets,
        "lens": _as_json(found),
        "exits": left,
        "held": None if held is None else held.as_json(),
        "lost": lost,
    }
    if is_loop and not any(change.kind == "order" for change in model.changes):
        more = seen(model.with_loops(2 * depth), asked, number)
        again = _grid(model, asked, tokens, more, trained, f"The same at {2 * depth} loops")
        sections.append(Section("At more loops", (again, _means(more, asked, unit, "means_more"))))
        data["lens_more"] = _as_json(more)
    title = textwrap.shorten(asked.title, 60, placeholder=" …")
    return Document(f"Inside {model.run.workdir.name}: {title}", tuple(sections)), data


def seen(model: Opened, asked: Asked, segment: int) -> Lens:
    """The lens of the row, [L, T, …]."""
    found = model.lens([asked.tokens], [np.maximum(asked.targets, 0).tolist()], segment=segment)
    row: Lens = jax.tree.map(lambda array: np.asarray(array)[:, 0], found)
    return row


LENS = (
    "Left: log p of the right next token, where one is known. Right: KL(the whole model || this "
    "one) in nats, of what is said. Rows are tokens."
)
STATES = (
    "Left: the norm of the state after each; middle: the change ||h_t - h_(t-1)|| / ||h_t||; "
    "each line is a token, the thick one their mean. Right: all states in "
    "the plane of their two largest principal components; each line is a token, its dot where it "
    "ends."
)

ATTENTION = {
    True: "A map for each head of each layer in each loop: rows attend to columns; white is 0, "
    "black 1.",
    False: "The mean over heads, which are too many to draw: rows attend to columns; white is 0, "
    "black 1.",
}


def _about(model: Opened, asked: Asked, segment: int, trained: str, shown: str) -> list[str]:
    several = len(model.plan.segments) > 1
    of_segment = f" (segment {segment}, counted from 0)" if several else ""
    return [
        f"Of: {asked.title}",
        f"Run {model.run.workdir}, step {model.step}, plan {model.plan}{of_segment}, trained with "
        f"{trained}, shown at {shown}.",
        f"{len(asked.tokens)} tokens; the right next token is known at {int(asked.known.sum())}.",
        "A cell is the likeliest next token had the model stopped there, through what follows and "
        "the output projection; its colour is how likely. Hover or tap for the list.",
        *([f"Changed: {' '.join(map(str, model.changes))}."] if model.changes else []),
    ]


def _grid(
    model: Opened, asked: Asked, tokens: list[str], found: Lens, trained: int, title: str
) -> Grid:
    loops = len(found.kl_LBT)
    header = ["token", *(f"{n + 1}" + ("" if n < trained else " *") for n in range(loops)), "right"]
    rows = []
    for t, token in enumerate(tokens):
        cells = []
        for n in range(loops):
            top = names(model.vocabulary, found.top_LBTN[n, t].tolist())
            p = np.exp(found.top_log_p_LBTN[n, t])
            more = [f"{100 * s:5.1f}%  {name}" for name, s in zip(top, p, strict=True)]
            if asked.targets[t] >= 0:
                right = np.exp(found.target_log_p_LBT[n, t])
                more.append(f"right: {100 * right:.1f}%, rank {found.target_rank_LBT[n, t]}")
            more.append(f"KL to the whole {found.kl_LBT[n, t]:.3f}")
            cells.append(Cell(top[0], float(p[0]), tuple(more)))
        target = asked.targets[t]
        said = names(model.vocabulary, [target])[0] if target >= 0 else ""
        rows.append((token, [*cells, Cell(said, 0.0)]))
    note = "* beyond the trained loops." if loops > trained else ""
    return Grid(title, header, rows, note)


def _means(found: Lens, asked: Asked, unit: str, name: str = "means") -> Table:
    """Means over tokens, of each loop or layer."""
    known = asked.known
    rows = []
    for n in range(len(found.kl_LBT)):
        cells = [f"{n + 1}"]
        if known.any():
            right = found.target_log_p_LBT[n, known]
            is_first = found.target_rank_LBT[n, known] == 1
            cells += [f"{100 * np.exp(right).mean():.1f}", f"{100 * is_first.mean():.1f}"]
        else:
            cells += ["", ""]
        cells += [f"{found.kl_LBT[n].mean():.4f}", f"{found.entropy_LBT[n].mean():.3f}"]
        cells += [f"{found.norm_LBT[n].mean():.2f}"]
        of_change = (found.update_LBT[n].mean(), found.cosine_LBT[n].mean())
        cells += ["" if np.isnan(value) else f"{value:.3f}" for value in of_change]
        rows.append(cells)
    header = [unit, "p of the right one (%)", "right (%)", "KL to the whole", "entropy"]
    header += ["norm", "relative update", f"cosine to the {unit} before"]
    return Table(name, "Means over the tokens", header, rows)


def _exits(left: dict[str, list[int]], tokens: list[str]) -> Table:
    rows = [[token, *(str(of[t]) for of in left.values())] for t, token in enumerate(tokens)]
    rows.append(["mean", *(f"{np.mean(of):.2f}" for of in left.values())])
    return Table("exits", "Loops that each token takes, by rule", ["token", *left], rows)


def _as_json(found: Lens) -> dict[str, Any]:
    values = {name: getattr(found, f"{name}_LBT") for name in FIELDS}
    values |= {"top": found.top_LBTN, "top_log_p": found.top_log_p_LBTN}
    return {name: _finite(np.asarray(value).tolist()) for name, value in values.items()}


def _finite(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return value


def write(document: Document, data: dict[str, Any], folder: epath.Path) -> None:
    """The page, its pictures and tables, and data.json; OSError if it cannot."""
    document.write(folder)
    write_whole(folder / "data.json", json.dumps(data, ensure_ascii=False) + "\n")
