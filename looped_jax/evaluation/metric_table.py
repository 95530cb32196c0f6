"""What a measured number is: which way is better, its unit, how it is shown and averaged.

Names are those of metrics.jsonl: `eval/<task>/<kind>`, for a part of a task (a component of a text,
a domain) `eval/<task>/<part>/<kind>`, with other loops than the plan's `eval/<task>/loops_<N>/…`,
`train/<kind>`; and `group/<name>`, the average of a group of
downstream tasks. The last word, the kind, says what the number is; `<kind>_low` and `<kind>_high`
are the ends of its 95% interval. A kind that is not in the table is shown as it is, and judges
nothing.
"""

import dataclasses
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from looped_jax.data.tasks import get_task
from looped_jax.errors import UserError
from looped_jax.evaluation.intervals import Interval, binomial_interval

# Differences that count as none: points of percent, and a share of what is not in percent.
EQUAL_POINTS = 3.0
EQUAL_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of the table. ``higher_is_better`` is None for what is neither good nor bad."""

    higher_is_better: bool | None = None
    unit: str = ""
    scale: float = 1.0  # From what is stored to what is shown.
    form: str = ".6g"
    average: Callable[[Sequence[float]], float] = statistics.fmean  # Over seeds.
    log_axis: bool = False


SHARE = Kind(higher_is_better=True, unit="%", scale=100.0, form=".1f")
COUNT = Kind(form=",.0f")
KINDS = {
    "accuracy": SHARE,
    **dict.fromkeys(("exact", "f1", "unfiltered_f1", "HEQ", "DHEQ"), SHARE),
    "loss": Kind(higher_is_better=False, unit="nats per token", form=".4f"),
    # The geometric mean is the perplexity of the mean loss.
    "perplexity": Kind(False, form=".3f", average=statistics.geometric_mean, log_axis=True),
    "bits_per_byte": Kind(False, unit="bits per byte", form=".3f"),
    "tokens": COUNT,
    "documents": COUNT,
}
# What a task's models are judged by.
HEADLINES = ("accuracy", "perplexity")
ENDS = ("_low", "_high")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric by its name."""

    name: str

    @property
    def group(self) -> str:
        """The group of downstream tasks that it is the average of, if it is one."""
        return self.name.removeprefix("group/") if self.name.startswith("group/") else ""

    @property
    def word(self) -> str:
        """The last word of the name."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def where(self) -> tuple[str, ...]:
        """Task and part: () unless it is an evaluation."""
        first, *parts = self.name.split("/")
        return tuple(parts[:-1]) if first == "eval" else ()

    @property
    def kind(self) -> Kind:
        if self.group:
            return SHARE
        word = self.word
        for end in ENDS:
            word = word.removesuffix(end)
        found = KINDS.get(word, Kind())
        # The end of an interval looks like what it belongs to, and judges nothing.
        return found if word == self.word else dataclasses.replace(found, higher_is_better=None)

    @property
    def headline(self) -> bool:
        """Whether the models of a task are judged by it."""
        return self.word in HEADLINES and len(self.where) == 1

    @property
    def percent(self) -> bool:
        return self.kind.unit == "%"

    @property
    def chance(self) -> float | None:
        """What guessing among the possible answers scores; None where that is not known."""
        if self.word != "accuracy" or len(self.where) != 1:
            return None
        try:
            return get_task(self.where[0]).chance
        except UserError:
            return None

    def beside(self, word: str) -> str:
        """The name of another metric of the same task and part."""
        return f"{self.name.removesuffix(self.word)}{word}"

    def interval(self, line: Mapping[str, float]) -> Interval | None:
        """The interval that was measured with it, if it was."""
        low, high = (line.get(self.name + end) for end in ENDS)
        return None if low is None or high is None else (low, high)

    def noise(self, line: Mapping[str, float], examples: int | None) -> Interval | None:
        """The interval of the value in this line, given what it was measured on; None where that is
        not known. An accuracy over ``examples`` is binomial; the loss of a text is the logarithm
        of its perplexity."""
        if found := self.interval(line):
            return found
        if self.word == "loss" and (found := Metric(self.beside("perplexity")).interval(line)):
            return math.log(found[0]), math.log(found[1])
        if self.word == "accuracy" and examples and self.name in line:
            return binomial_interval(line[self.name], examples)
        return None

    def gain(self, value: float, reference: float) -> float:
        """How much better ``value`` is; below zero if it is worse. ValueError for a metric of
        which it is not known what is better."""
        if self.kind.higher_is_better is None:
            raise ValueError(f"{self.name} has no better and worse")
        return value - reference if self.kind.higher_is_better else reference - value

    def tolerance(self, reference: float) -> float:
        """The difference from ``reference`` up to which two values count as equal."""
        return EQUAL_POINTS / 100 if self.percent else EQUAL_SHARE * abs(reference)

    def average(self, values: Sequence[float]) -> float:
        """Of the seeds of one model."""
        return self.kind.average(values)

    def shown(self, value: float) -> str:
        """The number alone, as under a heading: percent as points."""
        return f"{self.kind.scale * value:{self.kind.form}}"

    def with_unit(self, value: float) -> str:
        """The number as in a sentence."""
        return self.shown(value) + ("%" if self.percent else "")

    def span(self, interval: Interval) -> str:
        """An interval, as it is shown everywhere."""
        return f"[{self.shown(interval[0])}, {self.shown(interval[1])}]"

    def with_interval(self, line: Mapping[str, float]) -> str:
        """The number in this line, and the interval that was measured with it, if it was."""
        found = self.interval(line)
        return self.shown(line[self.name]) + (f" {self.span(found)}" if found else "")

    @property
    def in_words(self) -> str:
        """Its task, and what is measured where that is not an accuracy."""
        if self.group:
            return self.group.replace("_", " ")
        if not self.where:
            return self.name
        task = " ".join(self.where)
        return task if self.word == "accuracy" else f"{task} {self.word}"

    @property
    def heading(self) -> str:
        """Of a table's column."""
        return self.in_words + (" (%)" if self.percent else "")

    @property
    def axis(self) -> str:
        """Of a figure."""
        if self.word == "accuracy" and self.where:
            return f"{self.in_words}: exact match (%)"
        unit = self.kind.unit
        return self.in_words + (f" ({unit})" if unit else "")


# A value and its noise.
Measured = tuple[float, Interval | None]


def clear_gain(metric: Metric, measured: Measured, reference: Measured) -> bool:
    """Whether a value is better than another by more than the noise of both: their intervals are
    combined as those of independent samples (Newcombe), which is cautious where both were measured
    on the same examples. Where one has none, by more than the tolerance."""
    value, noise = measured
    other, noise_of_other = reference
    gain = metric.gain(value, other)
    if noise is None or noise_of_other is None:
        return gain > metric.tolerance(other)
    # The ends that face each other.
    worse, better = (0, 1) if metric.kind.higher_is_better else (1, 0)
    return gain > math.hypot(value - noise[worse], noise_of_other[better] - other)


def text_parts(names: Sequence[str] | Mapping[str, float], word: str) -> list[str]:
    """Metrics of this kind of the evaluated text, with the plan's loops: of all of it first, then
    of its components."""
    metrics = [Metric(name) for name in names]
    metrics = [m for m in metrics if m.where[:1] == ("text",) and m.word == word]
    found = [m.name for m in metrics if not re.match(r"eval/text/loops_\d+/", m.name)]
    return sorted(found, key=lambda name: (len(Metric(name).where), name))


def counted(lines: Iterable[Mapping[str, float]], parts: Sequence[str], word: str) -> bool:
    """Whether any of these evaluations says how many tokens, or documents, a part has."""
    names = {Metric(part).beside(word) for part in parts}
    return any(name in line for line in lines for name in names)


def count_of(lines: Iterable[Mapping[str, float]], name: str) -> str:
    """A count of several evaluations: one number where they agree, as they should."""
    counts = sorted({line[name] for line in lines if name in line})
    return " or ".join(Metric(name).shown(count) for count in counts)


def judged_by(line: Mapping[str, float]) -> list[Metric]:
    """What each task of an evaluation is judged by: its headline metrics; of one that has none,
    what an interval was measured of."""
    metrics = [m for m in map(Metric, line) if len(m.where) == 1]
    with_headline = {m.where for m in metrics if m.headline}
    return [m for m in metrics if m.headline or (m.where not in with_headline and m.interval(line))]


def shown_evaluation(line: Mapping[str, float]) -> str:
    """An evaluation in a few words: what each task is judged by."""
    return ", ".join(f"{m.in_words} {m.with_unit(line[m.name])}" for m in judged_by(line))
