import dataclasses
import json
import math
import pathlib

import pytest
from etils import epath
from helpers import small_config
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image

from looped_jax.analysis import compare
from looped_jax.config import ConfigDict
from looped_jax.errors import RunError
from looped_jax.evaluation.intervals import Interval
from looped_jax.evaluation.metric_table import Metric

METRIC = "eval/group_z7_n4/accuracy"
PERPLEXITY = "eval/text/perplexity"
CREDIT = "depth by looping did what depth by parameters does"
DENIAL = "looping did not do what more parameters do"
PART = "looping did a part of what more parameters do"
NOTHING = "not shown"


def roles(metric: str = METRIC) -> ConfigDict:
    return ConfigDict(dict(metric=metric, base="base", looped="looped", iso_flop="iso_flop"))


def runs(
    base: float,
    looped: float,
    iso_flop: float,
    noise: tuple[Interval | None, Interval | None, Interval | None] = (None, None, None),
    **overrides: object,
) -> list[compare.Run]:
    """Of 1x1, 1x3 and 3x1; ``overrides`` change the config of the second."""

    def run(
        name: str, plan: str, size: int, flops: int, last: float, noise: Interval | None
    ) -> compare.Run:
        changes = overrides if name == "looped" else {}
        config = small_config(model__plan=plan, **changes)
        return compare.Run(name, config, size, flops, (5, 10), (0.1, last), noise)

    return [
        run("base", "1x1", 1000, 10**6, base, noise[0]),
        run("looped", "1x3", 1000, 3 * 10**6, looped, noise[1]),
        run("iso_flop", "3x1", 2500, 3 * 10**6, iso_flop, noise[2]),
    ]


def of_examples(n: int, *results: float) -> list[compare.Run]:
    noise = [Metric(METRIC).noise({METRIC: value}, n) for value in results]
    return runs(*results, noise=tuple(noise))  # type: ignore[arg-type]


def test_the_table_lists_plans_sizes_and_the_final_metric() -> None:
    lines = compare.table(runs(0.2, 0.975, 0.99), METRIC).splitlines()
    assert len(lines) == 5
    assert lines[3].split() == ["looped", "1x3", "1,000", "3e+06", "97.5%"]
    assert len({len(line.rstrip()) for line in lines}) == 1
    noisy = compare.table(of_examples(1000, 0.2, 0.975, 0.99), METRIC).splitlines()
    assert noisy[3].endswith("97.5%  [96.3, 98.3]")


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ((0.40, 0.98, 0.99), CREDIT),
        ((0.40, 1.00, 0.97), CREDIT),  # Better than iso-FLOP.
        ((0.40, 0.90, 0.99), PART),  # More than three points behind.
        ((0.95, 0.955, 0.99), DENIAL),  # No better than the base.
        ((0.60, 0.50, 0.99), DENIAL),  # Worse than it.
        ((0.97, 0.97, 0.98), NOTHING),  # So is the base: nothing to match.
        ((0.40, 0.90, 0.41), NOTHING),  # Parameters did nothing.
        ((0.40, 0.41, 0.43), NOTHING),  # Nothing was learned by anyone.
        ((0.11, 0.18, 0.19), NOTHING),  # Chance is one of seven.
    ],
)
def test_the_sentence_credits_looping_only_where_the_numbers_do(
    results: tuple[float, float, float], verdict: str
) -> None:
    text = compare.sentence(of_examples(1000, *results), roles())
    assert [v for v in (CREDIT, PART, DENIAL, NOTHING) if v in text] == [verdict]
    for value in results:
        assert f"{100 * value:.1f}%" in text
    assert "2.5 times the parameters" in text


def test_a_part_is_said_in_percent_of_the_way() -> None:
    text = compare.sentence(of_examples(1000, 0.4, 0.7, 0.9), roles())
    assert text.endswith(f"{PART}, 60% of the way from 1x1 to 3x1.")


def test_the_sentence_says_why_nothing_is_shown() -> None:
    def why(runs: list[compare.Run], metric: str = METRIC) -> str:
        return compare.sentence(runs, roles(metric)).split("not shown what looping does: ")[1]

    assert why(of_examples(1000, 0.11, 0.18, 0.19)) == "all are near chance (14.3%)."
    few = "neither 1x3 nor 3x1 is better than 1x1 by more than the noise."
    assert why(of_examples(20, 0.5, 0.6, 0.65)) == few
    assert "nothing to match" in why(of_examples(1000, 0.4, 0.9, 0.41))
    assert "cannot be told from 3x1" in why(of_examples(60, 0.4, 0.8, 0.9))
    assert "no better and worse" in why(runs(1, 2, 3), "eval/text/tokens")
    others = [dataclasses.replace(r, data=r.name) for r in of_examples(1000, 0.4, 0.98, 0.99)]
    assert why(others) == "the runs were not trained and evaluated on the same data."
    unlike = runs(0.4, 0.98, 0.99, optimizer__learning_rate=0.5)
    assert why(unlike) == "the runs differ in more than the plan (lr 0.01 | lr 0.5 | lr 0.01)."


@pytest.mark.parametrize(
    ("metric", "results", "verdict"),
    [
        # Looped is worse than its base.
        (PERPLEXITY, (7.5468, 7.8172, 7.4407), DENIAL),
        ("eval/text/loss", (2.0, 2.6, 1.9), DENIAL),
        (PERPLEXITY, (9.0, 7.05, 7.0), CREDIT),
        ("eval/text/loss", (2.5, 1.91, 1.9), CREDIT),
        ("eval/text/loss", (2.5, 2.45, 1.9), PART),
        (PERPLEXITY, (7.5, 7.49, 7.48), NOTHING),
    ],
)
def test_of_perplexity_and_loss_less_is_better(
    metric: str, results: tuple[float, float, float], verdict: str
) -> None:
    assert verdict in compare.sentence(runs(*results), roles(metric))


def test_a_perplexity_whose_intervals_overlap_shows_nothing() -> None:
    wide = ((8.0, 10.0), (6.5, 9.0), (6.4, 8.9))
    assert NOTHING in compare.sentence(runs(9.0, 7.05, 7.0, noise=wide), roles(PERPLEXITY))
    narrow = ((8.9, 9.1), (7.0, 7.1), (6.95, 7.05))
    assert CREDIT in compare.sentence(runs(9.0, 7.05, 7.0, noise=narrow), roles(PERPLEXITY))


@given(st.floats(1, 5), st.floats(1, 5), st.floats(1, 5))
def test_no_worse_model_is_credited(base: float, looped: float, iso_flop: float) -> None:
    text = compare.sentence(runs(base, looped, iso_flop), roles("eval/text/loss"))
    if CREDIT in text:
        assert looped < base
        assert looped <= 1.01 * iso_flop + 1e-9


def test_models_that_do_not_play_the_roles_are_not_said_to() -> None:
    base, looped, iso_flop = runs(0.4, 0.98, 0.99)
    other = compare.Run("base", base.config, 500, base.flops, base.steps, base.values, base.noise)
    assert "with 2 times the parameters of 1x1" in compare.sentence(
        [other, looped, iso_flop], roles()
    )


def test_numbers_are_saved_in_full() -> None:
    text = compare.to_csv(runs(0.2, 1 / 3, 0.99), METRIC)
    assert (
        text.splitlines()[0] == f"run,plan,parameters,flops_per_step,step,{METRIC},low_95,high_95"
    )
    assert text.splitlines()[2] == f"looped,1x3,1000,3000000,10,{1 / 3},,"


def test_a_plot_is_drawn(tmp_path: pathlib.Path) -> None:
    path = epath.Path(tmp_path) / "plot.png"
    compare.plot(runs(0.2, 0.9, 0.99), METRIC, "title", path)
    assert image.imread(path).std() > 0.05


def test_a_run_is_read_with_its_noise_and_a_missing_metric_named(tmp_path: pathlib.Path) -> None:
    lines = [{"step": 5, METRIC: 0.5}, {"step": 6, "train/loss": 1.0}, {"step": 10, METRIC: 0.75}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    arguments = ("x", epath.Path(tmp_path), small_config(eval__examples=16), 1, 1)
    run = compare.read_run(*arguments, METRIC)
    assert (run.steps, run.values) == ((5, 10), (0.5, 0.75))
    assert run.noise is not None
    # Wilson's interval of 12 of 16, as a table of it has it.
    assert run.noise == pytest.approx((0.505, 0.898), abs=0.001)
    with pytest.raises(RunError, match=f"no metric 'eval/y'; it has {METRIC}, train/loss"):
        compare.read_run(*arguments, "eval/y")


def test_components_are_listed_with_interval_tokens_and_documents(tmp_path: pathlib.Path) -> None:
    line = {
        "step": 5,
        PERPLEXITY: 8.0,
        "eval/text/bits_per_byte": 3.0,
        "eval/text/loss": math.log(8),
    }
    line |= {"eval/text/perplexity_low": 7.5, "eval/text/perplexity_high": 8.5}
    line |= {"eval/text/tokens": 4096.0, "eval/text/documents": 12.0}
    more = line | {"eval/text/ArXiv/perplexity": 4.0, "eval/text/ArXiv/bits_per_byte": 2.0}
    for name, content in (("a", line), ("b", more)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(content) + "\n")
    lines = compare.components_table(
        {name: epath.Path(tmp_path / name) for name in ("a", "b")}
    ).splitlines()
    assert lines[0].split()[:3] == ["text", "tokens", "documents"]
    both = ["8.000", "[7.500,", "8.500]", "(3.000)"]
    assert lines[2].split() == ["all", "4,096", "12", *both, *both]
    assert lines[3].split() == ["ArXiv", "4.000", "(2.000)"]
