"""The tables of runs one by one: what they cost, and how their configs differ."""

import json
from collections.abc import Sequence

from looped_jax.analysis.document import Details, Part, Table
from looped_jax.analysis.records import Record
from looped_jax.config import flatten


def costs(records: Sequence[Record]) -> Table:
    """Of every run its plan, seed, size, steps, FLOPs and speed."""
    header = [
        "run",
        "plan",
        "seed",
        "parameters",
        "steps",
        "FLOPs/step",
        "FLOPs in all",
        "s/step",
        "tokens/s",
        "MFU (%)",
    ]
    rows = []
    for record in records:
        tokens = record.config.train.batch_size * record.job.model.config.max_length
        seconds = record.step_seconds
        mfu = record.last("perf/mfu")
        rows.append(
            [
                record.name,
                str(record.plan),
                str(record.seed),
                f"{record.parameters:,}",
                f"{record.step:,}",
                f"{record.step_flops:.3g}",
                f"{record.flops:.3g}",
                "" if seconds is None else f"{seconds:.3f}",
                "" if seconds is None else f"{tokens / seconds:,.0f}",
                "" if mfu is None else f"{100 * mfu:.1f}",
            ]
        )
    note = (
        "FLOPs are counted from the architecture: of a step at the model's full depth, of all at "
        "the depth that each had; seconds are the median of the logged medians."
    )
    return Table("costs", "What the runs cost", header, rows, note)


def configs(records: Sequence[Record]) -> list[Part]:
    """The keys that differ, in a table, and every config."""
    flat = [dict(flatten(record.config)) for record in records]
    differing = [
        key
        for key in flat[0]
        if key != "name" and len({json.dumps(f.get(key), default=str) for f in flat}) > 1
    ]
    parts: list[Part] = []
    if differing:
        rows = [
            [record.name, *(str(f.get(key)) for key in differing)]
            for record, f in zip(records, flat, strict=True)
        ]
        parts.append(Table("configs", "What differs", ["run", *differing], rows))
    for record in records:
        text = json.dumps(record.config.to_dict(), indent=1, sort_keys=True)
        parts.append(Details(f"config of {record.name}", text))
    return parts
