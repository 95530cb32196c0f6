"""What the page of looped_jax.explain has of many examples of a task: what states hold, and what
changes inside cost."""

from collections.abc import Mapping

import numpy as np

from looped_jax.analysis.document import Figure, Table
from looped_jax.evaluation.metric_table import Metric
from looped_jax.inside import figures
from looped_jax.inside.decoded import Decoded

HELD = (
    "Linear probes (multinomial logistic regression) on the state where the answer is asked for, "
    "fitted to {n:,} examples of the validation split ({fit:,} different ones), tried on as many "
    "of the test split ({tried:,} different ones), in percent. Fresh: the same model with fresh "
    "parameters. Construction: the paper's, with its own loops. Most frequent: always saying the "
    "class that was seen most often."
)


def held_parts(held: Decoded, unit: str) -> tuple[Table | Figure, ...]:
    """What the states of a task hold, as Decoded has it: tables and a picture."""
    count = len(held.read_L)
    header = ["quantity", *(f"{unit} {n + 1}" for n in range(count))]
    header += [f"fresh, {n + 1}" for n in range(count)]
    built = held.built_QL
    if built is not None:
        header += [f"construction, {n + 1}" for n in range(built.shape[1])]
    header.append("most frequent")

    def percent(values: np.ndarray) -> list[str]:
        return [f"{100 * value:.1f}" for value in values]

    rows = []
    for q, name in enumerate(held.names):
        cells = [*percent(held.probed_QL[q]), *percent(held.fresh_QL[q])]
        cells += [] if built is None else percent(built[q])
        rows.append([name, *cells, *percent(held.frequent_Q[[q]])])
    note = HELD.format(n=held.examples, fit=held.distinct[0], tried=held.distinct[1])
    read = [["exact match", *percent(held.read_L)]]
    at_end = f"Exact match had the model stopped after each {unit}"
    return (
        Table("read", at_end, header[: 1 + count], read, "In percent, of the test split."),
        Figure("held", "What linear probes find", figures.held(held, unit), note),
        Table("held", "The same as numbers", header, rows),
    )


def lost_table(lost: Mapping[str, Mapping[str, float]]) -> Table:
    """Headline metrics of the model as it is and of each change."""
    keys = [key for key in lost[""] if Metric(key).headline]
    header = ["change", *(Metric(key).heading for key in keys)]
    rows = [
        [change or "none", *(Metric(key).shown(values[key]) for key in keys)]
        for change, values in lost.items()
    ]
    note = (
        "skip:N leaves loop N out; order:… goes through the loops in this order; layer:N.K leaves "
        "layer K of loop N out. Of loops that have the same weights and nothing of their own it is "
        "the same which one is left out. Of held-out rows of the validation split."
    )
    return Table("effects", "With something changed inside", header, rows, note)
