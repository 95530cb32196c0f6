"""The paper's own tables, as they stand below those of a report's runs."""

import re

from looped_jax.analysis import published
from looped_jax.analysis.document import Table
from looped_jax.evaluation.metric_table import Metric


def published_table(task: str) -> Table | None:
    """That of the family which a training task belongs to; None where the paper has none."""
    return _language_models() if task == "text" else _synthetic(task)


def _synthetic(task: str) -> Table | None:
    """The paper's table of the family that a task belongs to, at the paper's size."""
    name = re.split(r"[_-]", task)[0]
    if name not in published.SYNTHETIC:
        return None
    models = published.table(name)
    columns = list(next(iter(models.values())))
    rows = [[m, *(f"{row[c]:.1f}" for c in columns)] for m, row in models.items()]
    title = f"As published (Saunshi et al., ICLR 2025): {name} at full size, accuracy (%)"
    return Table(f"published_{name}", title, ["model", *columns], rows)


def _language_models() -> Table:
    models = published.table("lm_groups")
    judged = list(published.JUDGED)
    header = ["model"]
    for metric in judged:
        header += [Metric(f"group/{metric}").in_words, "% Gap"]
    rows = []
    for name, row in models.items():
        cells = [name]
        for metric in judged:
            gap = row.get(f"gap_{metric}")
            value = f"{row[metric]:.{published.JUDGED[metric]}f}" if metric in row else ""
            cells += [value, "" if gap is None else f"{gap:.0f}"]
        rows.append(cells)
    differing = [gap for gap in published.printed_gaps() if not gap.agrees]
    note = (
        "Saunshi et al., ICLR 2025, tables 3 and 4: 1B-scale models, 250B tokens of the Pile. "
        "Recomputed from the printed averages, the printed % Gaps agree within rounding"
    )
    if differing:
        note += ", but for " + "; ".join(
            f"{g.model}, {Metric(f'group/{g.metric}').in_words}: printed {g.printed:.0f}, "
            f"recomputed {g.recomputed:.1f} (rounding allows {g.allowed[0]:.0f} to "
            f"{g.allowed[1]:.0f})"
            for g in differing
        )
    return Table("published_lm_groups", "As published: language models", header, rows, note + ".")
