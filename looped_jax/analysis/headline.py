"""What a report says first: of every task, what looping did, or which model is best."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from looped_jax.analysis import compare
from looped_jax.analysis.groups import Model, TaskGroup
from looped_jax.evaluation.metric_table import Metric

# Models, of many that cannot be told apart.
NAMED = 4


def headlines(groups: Sequence[TaskGroup]) -> list[str]:
    """A sentence for each group."""
    return [f"{group.title}{_of_group(group)}" for group in groups]


def _of_group(group: TaskGroup) -> str:
    """By the first metric that models are judged by: what the comparison of a base, a looped and an
    iso-FLOP model shows, of the best looped model that has both; else the best model."""
    for metric in group.metrics:
        best = group.best(metric)
        if best is None:
            continue
        having = [model for model in group.models if group.peers(model, metric)]
        if having:
            return _compared(group, having, metric)
        return _best(group, best, metric)
    return ": none of these runs has been evaluated."


def _compared(group: TaskGroup, looped: Sequence[Model], metric: str) -> str:
    def gain(model: Model) -> float:
        value = model.mean(metric)
        return float("-inf") if value is None else Metric(metric).gain(value, 0.0)

    model = max(looped, key=gain)
    peers = group.peers(model, metric)
    assert peers is not None
    base, full = peers
    roles = {"base": base.label, "looped": model.label, "iso_flop": full.label}
    runs = [_as_run(of, metric) for of in (base, model, full)]
    sentence = compare.sentence(runs, ConfigDict({"metric": metric, **roles}))
    counts = {len(of.seeds(metric)) for of in (base, model, full)}
    means = f" (Means of {_seeds(counts)}.)" if counts != {1} else ""
    word = "" if Metric(metric).percent else Metric(metric).word
    several = len({of.setting for of in group.models}) > 1
    of_what = "".join(f", {said}" for said in (word, model.setting if several else "") if said)
    return f"{of_what}{_unfinished(model, metric)}: {sentence}{means}"


def _unfinished(model: Model, metric: str) -> str:
    """`, after 6 of 12 steps`; nothing of a model that is done."""
    step, steps = model.step(metric), model.first.config.train.steps
    return "" if step is None or step >= steps else f", after {step:,} of {steps:,} steps"


def _seeds(counts: set[int]) -> str:
    """`2 seeds`, `1 to 3 seeds`."""
    low, high = min(counts), max(counts)
    return f"{high} seeds" if low == high else f"{low} to {high} seeds"


def _as_run(model: Model, metric: str) -> compare.Run:
    """The seeds of a model as one run, whose noise reaches as far as they do."""
    measured, step = model.measured(metric), model.step(metric)
    assert measured is not None and step is not None
    value, noise = measured
    if noise is not None:
        values = model.values(metric)
        noise = min(noise[0], *values), max(noise[1], *values)
    record = model.first
    of_run = (record.config, record.parameters, record.step_flops)
    return compare.Run(model.label, *of_run, (step,), (value,), noise)


def _best(group: TaskGroup, best: Model, metric: str) -> str:
    found = Metric(metric)
    values = [value for _, value in best.seeds(metric)]
    reaches = f"{found.with_unit(found.average(values))}"
    reaches += "" if found.percent else f" ({found.word})"
    reaches += f" (mean of {len(values)} seeds)" if len(values) > 1 else ""
    after = _unfinished(best, metric).lstrip(", ") or f"after {best.step(metric):,} steps"
    compared = group.compared(metric)
    others = [_not_compared(m, metric) for m in group.models if m not in compared]
    apart = f"; not compared: {_some(others)}" if others else ""
    if len(compared) == 1:
        return f": {best.label} reaches {reaches} {after}{apart}."
    near = group.near_best(metric)
    within = f"; within the noise of it: {some_models(near)}" if near else ""
    best_of = f"{best.label} is the best of {len(compared)} models"
    return f": {best_of} with {reaches} {after}{within}{apart}."


def _not_compared(model: Model, metric: str) -> str:
    """A model that was evaluated at another step than the others, with what it reached there."""
    mean, step = model.mean(metric), model.step(metric)
    if mean is None or step is None:
        return f"{model.label} (not evaluated)"
    return f"{model.label} ({Metric(metric).with_unit(mean)} after {step:,} steps)"


def some_models(models: Sequence[Model]) -> str:
    """Their labels, the first ones where there are many."""
    return _some([model.label for model in models])


def _some(names: Sequence[str]) -> str:
    more = f"; and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more
