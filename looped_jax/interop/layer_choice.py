"""Which layers of a pretrained model become the distinct layers of a plan.

Segments before the first looped one take the model's first layers, those behind the last looped one
its last; what lies between has the rest to choose from, and without a looped segment all have all.
Rules, for K layers out of a pool of p (Relaxed Recursive Transformers, arXiv 2410.20672, section
2.2, has the first four under other names; ShortGPT, arXiv 2403.03853, the last):

stepwise    layers round(linspace(0, p - 1, K)) of the pool
first, last, middle     K in a row from its beginning, its end, its middle
average     layer i is the mean of layers i, i + K, i + 2K, … of the pool; K divides p
influence   the K that change the stream most: 1 - cos(stream before, stream after), on text
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from looped_jax.errors import UserError
from looped_jax.models.loop_plan import LoopPlan

RULES = ("stepwise", "first", "middle", "last", "average", "influence")
Choice = tuple[tuple[int, ...], ...]


def parts_of(plan: LoopPlan, depth: int) -> tuple[list[int], list[int], list[int]]:
    """Of a model of ``depth`` layers, the numbers that its first segments take, those that the
    looped ones choose from, and those that its last segments take. UserError if there are too
    few."""
    counts, looped = [segment.layers for segment in plan.segments], plan.looped
    first = sum(counts[: looped[0]]) if looped else 0
    last = sum(counts[looped[-1] + 1 :]) if looped else 0
    if plan.distinct_layers > depth:
        raise UserError(
            f"plan {plan} has {plan.distinct_layers} distinct layers, the source only {depth}"
        )
    numbers = list(range(depth))
    return numbers[:first], numbers[first : depth - last], numbers[depth - last :]


def chosen(
    plan: LoopPlan, depth: int, rule: str, influence: Callable[[], Sequence[float]]
) -> Choice:
    """For each distinct layer of the plan the source's layers, of which it is the mean. ``rule``:
    one of RULES, or numbers, e.g. `0-3,10-17,20`. ``influence``: called for that rule. UserError
    for a rule that the plan cannot follow."""
    if rule not in RULES:
        return _listed(plan, depth, rule)
    front, pool, back = parts_of(plan, depth)
    count = plan.distinct_layers - len(front) - len(back)
    return (*_each(front), *_of_pool(pool, count, rule, influence), *_each(back))


def _each(numbers: Sequence[int]) -> Choice:
    return tuple((number,) for number in numbers)


def _of_pool(
    pool: list[int], count: int, rule: str, influence: Callable[[], Sequence[float]]
) -> Choice:
    size = len(pool)
    if count == size:
        return _each(pool)
    if rule == "average":
        if size % count:
            raise UserError(
                f"--layers=average: {count} layers do not divide the {size} that there are to "
                "choose from"
            )
        return tuple(tuple(pool[i::count]) for i in range(count))
    starts = {"first": 0, "middle": (size - count) // 2, "last": size - count}
    if rule in starts:
        return _each(pool[starts[rule] : starts[rule] + count])
    if rule == "stepwise":
        return _each([pool[round(place)] for place in np.linspace(0, size - 1, count)])
    by_influence = influence()
    kept = sorted(pool, key=lambda number: -by_influence[number])[:count]
    return _each(sorted(kept))


def _listed(plan: LoopPlan, depth: int, text: str) -> Choice:
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise UserError(
                f"--layers={text} is none of {', '.join(RULES)}, nor numbers such as 0-3,10-17,20"
            )
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if beyond := [number for number in numbers if number >= depth]:
        raise UserError(f"--layers={text}: the source has {depth} layers, none is {beyond[0]}")
    if len(numbers) != plan.distinct_layers:
        raise UserError(
            f"--layers={text} names {len(numbers)} layers; plan {plan} has {plan.distinct_layers}"
        )
    return _each(numbers)
