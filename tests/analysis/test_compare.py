import json
import pathlib

import pytest
from etils import epath
from matplotlib import image

from looped_jax.analysis import compare
from looped_jax.config import ConfigDict, RunError
from looped_jax.models.loop_plan import LoopPlan

METRIC = "eval/x/accuracy"
ROLES = ConfigDict(dict(metric=METRIC, base="base", looped="looped", iso_flop="iso_flop"))


def runs(base: float, looped: float, iso_flop: float) -> list[compare.Run]:
    def run(name: str, plan: str, parameters: int, flops: int, last: float) -> compare.Run:
        return compare.Run(name, LoopPlan.parse(plan), parameters, flops, (5, 10), (0.1, last))

    return [
        run("base", "1x1", 1000, 10**6, base),
        run("looped", "1x3", 1000, 3 * 10**6, looped),
        run("iso_flop", "3x1", 2500, 3 * 10**6, iso_flop),
    ]


def test_the_table_lists_plans_sizes_and_the_final_metric() -> None:
    lines = compare.table(runs(0.2, 0.975, 0.99), METRIC).splitlines()
    assert len(lines) == 5
    assert lines[3].split() == ["looped", "1x3", "1,000", "3e+06", "97.5%"]
    assert len({len(line.rstrip()) for line in lines}) == 1


@pytest.mark.parametrize(
    ("results", "credited"),
    [
        ((0.40, 0.98, 0.99), True),
        ((0.40, 1.00, 0.97), True),  # Better than iso-FLOP.
        ((0.40, 0.90, 0.99), False),  # More than three points behind.
        ((0.97, 0.97, 0.99), False),  # Near iso-FLOP, but so is the base.
        ((0.40, 0.41, 0.43), False),  # Nothing was learned by anyone.
    ],
)
def test_the_sentence_credits_looping_only_where_the_numbers_do(
    results: tuple[float, float, float], credited: bool
) -> None:
    text = compare.sentence(runs(*results), ROLES)
    assert ("did what depth by parameters does" in text) == credited
    assert ("did not do" in text) != credited
    for value in results:
        assert f"{100 * value:.1f}%" in text
    assert "2.5 times the parameters" in text


def test_numbers_are_saved_in_full() -> None:
    text = compare.to_csv(runs(0.2, 1 / 3, 0.99), METRIC)
    assert text.splitlines()[0] == f"run,plan,parameters,flops_per_step,step,{METRIC}"
    assert text.splitlines()[2] == f"looped,1x3,1000,3000000,10,{1 / 3}"


def test_a_plot_is_drawn(tmp_path: pathlib.Path) -> None:
    path = epath.Path(tmp_path) / "plot.png"
    compare.plot(runs(0.2, 0.9, 0.99), METRIC, "title", path)
    assert image.imread(path).std() > 0.05


def test_a_curve_is_read_from_a_run_and_a_missing_metric_named(tmp_path: pathlib.Path) -> None:
    lines = [{"step": 5, METRIC: 0.5}, {"step": 6, "train/loss": 1.0}, {"step": 10, METRIC: 0.75}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert compare.read_curve(epath.Path(tmp_path), METRIC) == ((5, 10), (0.5, 0.75))
    with pytest.raises(RunError, match=f"no metric 'eval/y'; it has {METRIC}, train/loss"):
        compare.read_curve(epath.Path(tmp_path), "eval/y")
