"""What a set of runs shows, as a Document: the paper's tables and figures for these runs."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from looped_jax.analysis.curve_figures import by_loops, learning_curves
from looped_jax.analysis.document import Document, Figure, Part, Section, Table, Text
from looped_jax.analysis.fit_figures import depth, isoplots
from looped_jax.analysis.groups import TaskGroup, task_groups
from looped_jax.analysis.headline import headlines
from looped_jax.analysis.loop_figures import loop_figures
from looped_jax.analysis.provenance import facts, mixed_numerics, mixed_samples, provenance_tables
from looped_jax.analysis.published_tables import published_table
from looped_jax.analysis.records import Record
from looped_jax.analysis.results import components, main_table
from looped_jax.analysis.run_tables import configs, costs
from looped_jax.analysis.similarity import similarity


def build(
    records: Sequence[Record], missing: Sequence[str], title: str, made: str = ""
) -> Document:
    """The report: what the runs show and what made them first, their own tables and figures, then
    the paper's. ``made``: when and by which command. What cannot be shown is said in its place;
    nothing stops the rest."""
    groups, left_out = task_groups(records)
    warnings = [f"Missing: {problem}" for problem in missing]
    warnings += left_out + mixed_numerics(records)
    for group in groups:
        own = [record for model in group.models for record in model.records]
        warnings += [f"{group.title}: {problem}" for problem in mixed_samples(own)]
    counted = ", ".join(f"{_count(len(g.models), 'model')} on {g.title}" for g in groups)
    lead: list[Part] = [Text(tuple(headlines(groups)), "headline")]
    lead.append(facts(records, f"{_count(len(records), 'run')}: {counted}", made))
    if warnings:
        lead.append(Text(tuple(warnings), "warning"))
    sections: list[Section] = []

    def add(heading: str, parts: Sequence[Part]) -> None:
        if parts:
            sections.append(Section(heading, tuple(parts)))

    for group in groups:
        add(f"Results: {group.title}", _results(group))
        add(f"Depth: {group.title}", depth(group))
        add(f"Loops while training: {group.title}", loop_figures(group))
        if group.task == "text":
            add(f"Isoplots: {group.title}", isoplots(group))
    add("Similarity of blocks", similarity(records))
    add("Costs", [costs(records)])
    add("As published", [table for g in groups if (table := published_table(g.task))])
    add("Provenance", provenance_tables(records))
    add("Configs", configs(records))
    return Document(title, _each_once(sections), tuple(lead))


def _count(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number} {of}s"


def _results(group: TaskGroup) -> list[Part]:
    parts: list[Part] = []
    if any(group.best(metric) for metric in group.metrics):
        parts.append(main_table(group))
        if group.task == "text":
            parts += components(group)
    else:
        parts.append(Text(("None of these runs has been evaluated.",), "warning"))
    return [*parts, *learning_curves(group), *by_loops(group)]


def _each_once(sections: Sequence[Section]) -> tuple[Section, ...]:
    """What two groups share, such as the paper's table, stands in the first; files have names of
    their own where two groups are judged by one metric, or two runs' names make one file's."""
    shown: list[Part] = []
    seen: Counter[tuple[type, str]] = Counter()
    found = []
    for section in sections:
        parts: list[Part] = []
        for part in section.parts:
            if isinstance(part, Table | Figure):
                if part in shown:
                    continue
                shown.append(part)
                file = (type(part), part.name)
                seen[file] += 1
                if seen[file] > 1:
                    part = dataclasses.replace(part, name=f"{part.name}_{seen[file]}")
            parts.append(part)
        found.append(Section(section.title, tuple(parts)))
    return tuple(found)
