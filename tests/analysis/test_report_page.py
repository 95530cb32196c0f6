"""The page of a report as one reads it: what stands where, and that figures and names can be
read."""

import csv
import functools
import io
import json
import pathlib
import re
from collections.abc import Callable, Iterator

import pytest
from etils import epath
from matplotlib import pyplot as plt
from matplotlib import text as matplotlib_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawn
from run_folders import ACCURACY, evaluated, keep, write_provenance, write_run

from looped_jax.analysis import fit_figures, plots
from looped_jax.analysis.document import Document, Figure, Part, Table, Text
from looped_jax.analysis.groups import task_groups
from looped_jax.analysis.records import find_runs
from looped_jax.analysis.report import build
from looped_jax.training import identity

LOSS = "eval/group_z7_n4/loss"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Drawn]]:
    """The figures that reports draw, as matplotlib has them."""
    found: list[Drawn] = []

    def kept(figure: Drawn) -> bytes:
        figure.canvas.draw()
        found.append(figure)
        return b"a picture"

    monkeypatch.setattr(plots, "png", kept)
    yield found
    plt.close("all")


def page(folder: pathlib.Path, made: str = "") -> Document:
    return build(*find_runs([str(folder)]), "a report", made)


def parts(document: Document) -> dict[str, Part]:
    return {
        part.name + type(part).__name__: part
        for section in document.sections
        for part in section.parts
        if isinstance(part, Table | Figure)
    }


def numbers(part: Part) -> list[dict[str, str]]:
    assert isinstance(part, Table | Figure) and part.numbers is not None
    return list(csv.DictReader(io.StringIO(part.numbers.csv())))


def legend(figure: Drawn) -> list[str]:
    axes = figure.axes[0].get_legend()
    found = [*figure.legends, *([axes] if axes else [])]
    return [text.get_text() for one in found for text in one.get_texts()]


def ticks(axis: Axes) -> list[str]:
    return [tick.get_text() for tick in axis.get_xticklabels()]


def trained(value: float, loss: float) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = [{"step": s, "train/loss": loss + 1 / s} for s in (4, 8, 12)]
    return [*lines, {"step": 12, ACCURACY: value, LOSS: loss + 0.3}]


def family(folder: pathlib.Path, *, seeds: int = 1) -> None:
    """1x1, 1x2 and 2x1, whose looped model is half way between the others."""
    for plan, value in (("1x1", 0.2), ("1x2", 0.5), ("2x1", 0.8)):
        for seed in range(seeds):
            lines = trained(value + 0.01 * seed, 2 - value)
            write_run(folder / f"{plan}-seed{seed}", lines, model__plan=plan, seed=seed)


def test_the_page_begins_with_what_the_runs_show_and_what_made_them(
    tmp_path: pathlib.Path,
) -> None:
    family(tmp_path)
    for workdir in tmp_path.iterdir():
        write_provenance(epath.Path(workdir), 2)
    html = page(tmp_path, "2030-01-02 03:04 UTC: python -m looped_jax.report").html()
    shown = [
        "<h1>a report</h1>",
        "group_z7_n4: 1x2 reaches 50.0% with the parameters of 1x1 (20.0%) and the FLOPs of 2x1 "
        "(80.0%, 1.9 times the parameters): looping did a part of what more parameters do, 50% of "
        "the way from 1x1 to 2x1.",
        "<dt>Runs</dt><dd>3 runs: 3 models on group_z7_n4</dd>",
        "<dt>Seeds</dt><dd>0</dd>",
        "<dt>Trained</dt><dd>2030-01-01 00:00 UTC to now: not ended</dd>",
        "<dt>Code</dt><dd>fedcba987654; 0123456789ab with changes</dd>",
        "<dt>Devices</dt><dd>8 x cpu</dd>",
        "<dt>Commands</dt><dd>main.py --config=x.py</dd>",
        "<dt>Report</dt><dd>2030-01-02 03:04 UTC: python -m looped_jax.report</dd>",
        "<nav>",
        "<caption>Models on group_z7_n4</caption>",
    ]
    places = [html.index(words) for words in shown]
    assert places == sorted(places)


def test_the_headline_names_the_best_where_nothing_can_be_compared(tmp_path: pathlib.Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"small{seed}", evaluated(0.2 + seed / 10), seed=seed)
        write_run(tmp_path / f"wide{seed}", evaluated(0.8), model__d_model=32, seed=seed)
    (headline, *_) = page(tmp_path).lead
    assert isinstance(headline, Text)
    assert headline.lines == (
        "group_z7_n4: 1x2, d_model 32 is the best of 2 models with 80.0% (mean of 2 seeds) after "
        "12 steps.",
    )


def test_the_headline_is_no_surer_than_its_seeds_agree(tmp_path: pathlib.Path) -> None:
    """Of many examples each, but of seeds that learn or do not."""
    values = {"1x1": (0.2, 0.22), "1x2": (0.1, 0.9), "2x1": (0.4, 0.95)}
    for plan, of_seeds in values.items():
        for seed, value in enumerate(of_seeds):
            changes = dict(model__plan=plan, seed=seed, eval__examples=4096)
            write_run(tmp_path / f"{plan}-{seed}", evaluated(value), **changes)
    (headline, *_) = page(tmp_path).lead
    assert isinstance(headline, Text)
    assert "not shown what looping does" in headline.lines[0]
    assert headline.lines[0].endswith("(Means of 2 seeds.)")


def at_steps(value: float, step: int) -> list[dict[str, float]]:
    return [{"step": step, ACCURACY: value}]


def test_models_of_other_steps_are_not_beaten_and_not_counted(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", at_steps(0.95, 12), model__plan="4x1", train__steps=24)
    write_run(tmp_path / "b", at_steps(0.4, 24), model__plan="2x1", train__steps=24)
    write_run(tmp_path / "c", [{"step": 1, "train/loss": 2.0}], model__plan="1x1", train__steps=24)
    document = page(tmp_path)
    headline = document.lead[0]
    assert isinstance(headline, Text)
    assert headline.lines == (
        "group_z7_n4: 2x1 reaches 40.0% after 24 steps; not compared: 4x1 (95.0% after 12 steps); "
        "1x1 (not evaluated).",
    )
    table = parts(document)["results_group_z7_n4Table"]
    assert isinstance(table, Table) and not table.marked and "Marked" not in table.note


def test_the_best_of_those_at_the_latest_step_is_called_that(tmp_path: pathlib.Path) -> None:
    for name, value, step in (("1x1", 0.95, 12), ("2x1", 0.2, 24), ("4x1", 0.6, 24)):
        changes = dict(model__plan=name, train__steps=24, eval__examples=4096)
        write_run(tmp_path / name, at_steps(value, step), **changes)
    document = page(tmp_path)
    headline = document.lead[0]
    assert isinstance(headline, Text)
    assert "4x1 is the best of 2 models with 60.0%" in headline.lines[0]
    assert "not compared: 1x1 (95.0% after 12 steps)" in headline.lines[0]
    table = parts(document)["results_group_z7_n4Table"]
    assert isinstance(table, Table)
    assert "the best of the models evaluated at the latest step" in table.note


def test_a_comparison_of_unfinished_runs_says_so(tmp_path: pathlib.Path) -> None:
    for plan, value in (("1x1", 0.2), ("1x3", 0.9), ("3x1", 0.9)):
        changes = dict(model__plan=plan, train__steps=12, eval__examples=4096)
        write_run(tmp_path / plan, at_steps(value, 6), **changes)
    headline = page(tmp_path).lead[0]
    assert isinstance(headline, Text)
    assert headline.lines[0].startswith("group_z7_n4, after 6 of 12 steps: 1x3 reaches 90.0%")


def test_results_stand_beside_the_name_and_the_best_is_marked(tmp_path: pathlib.Path) -> None:
    family(tmp_path, seeds=2)
    document = page(tmp_path)
    table = parts(document)["results_group_z7_n4Table"]
    assert isinstance(table, Table)
    assert list(table.header[:3]) == ["model", "group_z7_n4 (%)", "% Gap"]
    assert [table.rows[i][j] for i, j in table.marked] == ["80.5 (80.0 to 81.0)"]
    assert '<td class="marked">80.5 (80.0 to 81.0)</td>' in document.html()
    assert "| **80.5 (80.0 to 81.0)** |" in document.markdown()
    assert "Marked: the best model, better than every other by more than noise." in table.note
    assert "**" not in table.csv()


def test_models_within_the_noise_of_the_best_are_named(tmp_path: pathlib.Path) -> None:
    for plan, value in (("1x1", 0.2), ("1x2", 0.75), ("2x1", 0.8)):
        write_run(tmp_path / plan, evaluated(value), model__plan=plan)
    table = parts(page(tmp_path))["results_group_z7_n4Table"]
    assert isinstance(table, Table)
    assert "Marked: the best model; within the noise of it: 1x2." in table.note


def test_of_many_models_within_the_noise_some_are_named(tmp_path: pathlib.Path) -> None:
    for size in range(8):
        write_run(tmp_path / f"{size}", evaluated(0.5), model__d_ff=32 + size)
    document = page(tmp_path)
    said = "1x2, d_ff 33; 1x2, d_ff 34; 1x2, d_ff 35; 1x2, d_ff 36; and 3 more."
    assert document.html().count(f"within the noise of it: {said}") == 2


def test_the_headline_says_which_setting_it_is_of(tmp_path: pathlib.Path) -> None:
    for rate, values in ((0.01, (0.1, 0.3, 0.8)), (0.1, (0.2, 0.5, 0.8))):
        for plan, value in zip(("1x1", "1x2", "2x1"), values, strict=True):
            changes = dict(model__plan=plan, optimizer__learning_rate=rate)
            write_run(tmp_path / f"{plan}-{rate}", evaluated(value), **changes)
    (headline, *_) = page(tmp_path).lead
    assert isinstance(headline, Text)
    assert headline.lines[0].startswith("group_z7_n4, lr 0.1: 1x2 reaches 50.0%")


def test_a_long_command_is_set_as_text_beside_its_run(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        workdir = write_run(tmp_path / name, evaluated(0.5))
        write_provenance(workdir, 2)
        known = json.loads((workdir / "run.json").read_text())
        long = f"python -m looped_jax.main {'--config.KEY=VALUE ' * 9}{name}"
        (workdir / "run.json").write_text(json.dumps(known | {"command": long}))
    html = page(tmp_path).html()
    assert '<th>run</th><th class="long">command</th>' in html
    assert re.search(r'<td>b</td><td class="long">python -m .* b</td>', html)
    assert re.search(r"<dt>Commands</dt><dd>.* a \(and 1 more, see Provenance\)</dd>", html)


def test_losses_in_training_and_validation_are_drawn_and_numbered_for_every_seed(
    tmp_path: pathlib.Path, drawn: list[Drawn]
) -> None:
    family(tmp_path, seeds=2)
    rows = numbers(parts(page(tmp_path))["curve_train_lossFigure"])
    assert {row["metric"] for row in rows} == {"train/loss", LOSS}
    of_one = [r for r in rows if r["run"] == "1x2-seed1" and r["metric"] == "train/loss"]
    # 2 - 0.5 + 1 / step, in full.
    assert [(r["plan"], r["seed"], r["step"], float(r["value"])) for r in of_one] == [
        ("1x2", "1", str(step), 1.5 + 1 / step) for step in (4, 8, 12)
    ]
    figure = drawn[0]
    assert legend(figure) == [
        *("1x1 (2 seeds)", "1x2 (2 seeds)", "2x1 (2 seeds)"),
        *("training", "validation"),
    ]
    # Two seeds and their mean, and the mean on validation rows.
    assert len(figure.axes[0].lines) == 3 * 4


def test_runs_without_an_evaluation_have_their_training_curve(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", [{"step": s, "train/loss": 1 / s} for s in (1, 2)])
    document = page(tmp_path)
    assert "None of these runs has been evaluated." in document.markdown()
    assert "curve_train_lossFigure" in parts(document)


def test_results_in_full_are_a_line_for_each_run(tmp_path: pathlib.Path) -> None:
    for seed, value in enumerate((1 / 3, 2 / 3)):
        write_run(tmp_path / f"s{seed}", evaluated(value), seed=seed)
    document = page(tmp_path)
    document.write(epath.Path(tmp_path / "out"))
    rows = list(csv.DictReader((tmp_path / "out" / "results_group_z7_n4_numbers.csv").open()))
    assert [(row["run"], row["seed"], float(row["value"])) for row in rows] == [
        ("s0", "0", 1 / 3),
        ("s1", "1", 2 / 3),
    ]
    assert all(float(row["low_95"]) < float(row["value"]) for row in rows)
    assert "Numbers in full: results_group_z7_n4_numbers.csv" in document.html()


def test_loops_at_evaluation_are_whole_and_those_of_training_are_marked(
    tmp_path: pathlib.Path, drawn: list[Drawn]
) -> None:
    for seed in (0, 1):
        workdir = write_run(tmp_path / f"s{seed}", evaluated(0.5), seed=seed)
        for loops, value in ((1, 0.1), (2, 0.5 + seed / 10), (4, 0.25)):
            keep(workdir, 12, loops, value)
    found = parts(page(tmp_path))
    rows = numbers(found["loops_eval_group_z7_n4_accuracyFigure"])
    assert [(r["run"], r["loops"], float(r["value"])) for r in rows if r["loops"] == "2"] == [
        ("s0", "2", 0.5),
        ("s1", "2", 0.6),
    ]
    table = found["loops_eval_group_z7_n4_accuracyTable"]
    assert isinstance(table, Table)
    assert list(table.header) == ["model", "1 loop", "2 loops", "4 loops"]
    assert [list(row) for row in table.rows] == [["1x2 (2 seeds)", "10.0", "55.0", "25.0"]]
    assert table.marked == {(0, 2)}
    (figure,) = (f for f in drawn if f.axes[0].get_xlabel() == "loops at evaluation")
    assert set(ticks(figure.axes[0])) <= {str(n) for n in range(6)}
    rings = [line for line in figure.axes[0].lines if line.get_markersize() == plots.RING["ms"]]
    assert [line.get_xydata().tolist() for line in rings] == [[[2, pytest.approx(55)]]]
    assert legend(figure) == ["1x2 (2 seeds)", "loops in training"]


@pytest.mark.parametrize(("steps", "shown"), [(3, "2"), (20_000, "10,000"), (2_000_000, "500,000")])
def test_steps_are_whole_numbers(steps: int, shown: str, drawn: list[Drawn]) -> None:
    plots.curves([plots.Curve("1x2", [(0, 0.5), (steps, 0.7)])], "training step", "y")
    found = ticks(drawn[0].axes[0])
    assert shown in found
    assert not [tick for tick in found if "." in tick or "e" in tick]


@pytest.mark.parametrize(
    "lines",
    [
        [(0.0, 7.5), (1.0, 8.7)],  # No power of ten among them.
        [(0.0, 3.0), (1.0, 30_000.0)],
    ],
)
def test_a_logarithmic_axis_has_numbers(
    lines: list[tuple[float, float]], drawn: list[Drawn]
) -> None:
    plots.curves([plots.Curve("1x2", lines)], "training step", "perplexity", log_y=True)
    axis = drawn[0].axes[0]
    low, high = axis.get_ylim()
    found = [tick for tick in axis.get_yticklabels() if low < tick.get_position()[1] < high]
    assert len(found) >= 3
    assert all(float(tick.get_text().replace(",", "")) > 0 for tick in found)


def test_every_legend_names_the_plans(tmp_path: pathlib.Path, drawn: list[Drawn]) -> None:
    names = [f"eval/varassign_depth{d}_{f}/accuracy" for d in (0, 1) for f in ("math", "code")]
    for name, plan, loss in (("base", "1x1", 2.0), ("looped", "1x2", 1.9)):
        lines = [
            {"step": s, "train/loss": loss, "eval/text/loss": loss, "eval/text/perplexity": 9.0}
            | dict.fromkeys(names, loss / 10)
            for s in (6, 12)
        ]
        data = dict(data__task="text", data__length=32, model__plan=plan)
        workdir = write_run(tmp_path / name, lines, **data)
        for loops in (1, 2):
            keep(workdir, 12, loops, 0.5)
    page(tmp_path)
    with_legends = [legend(figure) for figure in drawn if legend(figure)]
    assert len(with_legends) > 3
    for words in with_legends:
        said = [word for word in words if word not in ("training", "validation")]
        assert said in (["base: 1x1", "looped: 1x2"], ["1xL"])


def test_a_model_keeps_its_colour_from_figure_to_figure(
    tmp_path: pathlib.Path, drawn: list[Drawn]
) -> None:
    family(tmp_path)
    for loops in (1, 2):
        keep(epath.Path(tmp_path / "1x2-seed0"), 12, loops, 0.5)
    page(tmp_path)
    colours = {
        line.get_color()
        for figure in drawn
        for line in figure.axes[0].lines
        if line.get_label() == "1x2"
    }
    assert len(colours) == 1


def test_published_tables_come_after_ones_own(tmp_path: pathlib.Path) -> None:
    lines = [{"step": 12, "eval/igsm/accuracy": 0.3}]
    write_run(tmp_path / "a", lines, data__task="igsm", model__plan="1x1")
    write_run(tmp_path / "b", evaluated(0.5))
    titles = [section.title for section in page(tmp_path).sections]
    own = [titles.index(f"Results: {task}") for task in ("igsm", "group_z7_n4")]
    assert titles.index("As published") > max(*own, titles.index("Costs"))


NAME = "<b>x$a_{$ & _*y*"


def test_names_with_html_and_dollars_are_shown_as_they_are(
    tmp_path: pathlib.Path, drawn: list[Drawn]
) -> None:
    folder = tmp_path / NAME
    for value, start in ((0.5, NAME), (0.7, "_other$")):
        workdir = write_run(folder / f"{NAME}{value}", trained(value, 1), train__start_from=start)
        for loops in (1, 2):
            keep(workdir, 12, loops, value)
    document = build(*find_runs([str(folder)]), f"of {NAME}", f"report --runs={NAME}")
    html, markdown = document.html(), document.markdown()
    assert "<b>" not in html and html.count("&lt;b&gt;x$a_{$ &amp; _*y*") > 8
    assert r"\<b>x\$a_{\$ & _\*y\*" in markdown and "<b>" not in markdown.replace(r"\<b>", "")
    # What is no mathematics is drawn character by character.
    said = [text for figure in drawn for text in legend(figure)]
    shown = plots.as_text(NAME)
    assert f"{NAME}0.5: 1x2, start_from {NAME}".replace("$", r"\$") in said
    assert any(shown in text for text in said)
    every = functools.reduce(
        set.union, (set(figure.findobj(matplotlib_text.Text)) for figure in drawn), set()
    )
    assert not [t for t in every if "$" in t.get_text().replace(r"\$", "")]
    document.write(epath.Path(tmp_path / "out"))
    rows = list(csv.reader((tmp_path / "out" / "costs.csv").open()))
    assert rows[1][0] == f"{NAME}0.5"


def test_numbers_and_pictures_of_equal_names_are_files_of_their_own(
    tmp_path: pathlib.Path,
) -> None:
    for task in ("group_z7_n4", "group_s3_n4"):
        lines = [{"step": 12, "train/loss": 1.0, f"eval/{task}/accuracy": 0.5}]
        write_run(tmp_path / task, lines, data__task=task)
    page(tmp_path).write(epath.Path(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"curve_train_loss_numbers.csv", "curve_train_loss_2_numbers.csv"} <= names
    assert {"curve_train_loss.png", "curve_train_loss_2.png"} <= names


def test_a_series_over_depth_has_its_means_in_full(tmp_path: pathlib.Path) -> None:
    family(tmp_path, seeds=2)
    records, _ = find_runs([str(tmp_path)])
    (group,), _ = task_groups(records)
    (figure, _) = fit_figures.depth(group)
    rows = numbers(figure)
    assert [(r["series"], r["depth"], r["seeds"]) for r in rows] == [
        *(("kx1", "1", "2"), ("kx1", "2", "2")),
        *(("1xL", "1", "2"), ("1xL", "2", "2")),
    ]
    assert float(rows[-1][ACCURACY]) == pytest.approx(0.505)


def test_a_command_is_recorded_so_that_it_can_be_given_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = pathlib.Path(identity.__file__).parents[1]
    for program, words in (
        (package / "main.py", "python -m looped_jax.main"),
        (package / "theory" / "__main__.py", "python -m looped_jax.theory"),
        (pathlib.Path("/somewhere/train_mine.py"), "train_mine.py"),
    ):
        monkeypatch.setattr("sys.argv", [str(program), "--config=a b.py"])
        assert identity.command() == f"{words} '--config=a b.py'"


def test_the_page_says_how_it_is_seen_in_the_dark_and_on_paper(
    run_module: Callable[..., object], tmp_path: pathlib.Path
) -> None:
    family(tmp_path / "runs")
    runs, out = tmp_path / "runs", tmp_path / "out"
    done = run_module("looped_jax.report", f"--runs={runs}", f"--out={out}")
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    html = (out / "index.html").read_text()
    # On paper the page is light, whatever the reader's screen is.
    assert "@media screen and (prefers-color-scheme: dark)" in html
    assert "@media print" in html and "@media (max-width: 40rem)" in html
    assert f"python -m looped_jax.report --runs={runs} --out={out}" in html
