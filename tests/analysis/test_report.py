"""The report over run folders: whole, incomplete, and of different tasks."""

import csv
import itertools
import json
import pathlib
import re
from collections.abc import Callable

import matplotlib.pyplot as plt
import pytest
from etils import epath
from helpers import small_config
from run_folders import ACCURACY, evaluated, keep, write_provenance, write_run

from looped_jax.analysis import plots
from looped_jax.analysis.document import Figure, Table
from looped_jax.analysis.groups import task_groups
from looped_jax.analysis.records import Record, find_runs
from looped_jax.analysis.report import build
from looped_jax.data.tasks.downstream import group_members
from looped_jax.errors import UserError
from looped_jax.evaluation.metrics import metric_of
from looped_jax.training.job import planned_step_flops
from looped_jax.training.metrics_file import read_metrics


def family(folder: pathlib.Path) -> None:
    for plan, value in (("1x1", 0.2), ("1x2", 0.5), ("2x1", 0.8)):
        write_run(folder / plan, evaluated(value), model__plan=plan)


def tables(folder: pathlib.Path) -> dict[str, Table]:
    document = build(*find_runs([str(folder)]), "a report")
    parts = [part for section in document.sections for part in section.parts]
    return {part.name: part for part in parts if isinstance(part, Table)}


def labels(folder: pathlib.Path) -> list[str]:
    (group,), _ = task_groups(find_runs([str(folder)])[0])
    return [model.label for model in group.models]


def test_the_gap_is_computed_where_base_and_full_model_are_there(tmp_path: pathlib.Path) -> None:
    family(tmp_path)
    table = tables(tmp_path)["results_group_z7_n4"]
    gap = table.header.index("% Gap")
    assert {row[0]: row[gap] for row in table.rows} == {"1x1": "", "1x2": "50", "2x1": ""}


def test_seeds_of_a_model_are_one_row_with_their_range(tmp_path: pathlib.Path) -> None:
    for seed, value in enumerate((0.2, 0.4, 0.6)):
        write_run(tmp_path / f"seed{seed}", evaluated(value), seed=seed)
    (row,) = tables(tmp_path)["results_group_z7_n4"].rows
    assert "40.0 (20.0 to 60.0)" in row


def test_models_of_different_size_are_different_rows(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", evaluated(0.2))
    write_run(tmp_path / "b", evaluated(0.4), model__d_model=32)
    assert labels(tmp_path) == ["1x2, d_model 16", "1x2, d_model 32"]


def test_runs_of_a_sweep_over_hyper_parameters_are_no_seeds(tmp_path: pathlib.Path) -> None:
    changes: list[dict[str, object]] = [
        dict(optimizer__name="adafactor", optimizer__learning_rate=1e-3),
        dict(optimizer__name="adafactor", optimizer__learning_rate=1e-1),
        dict(),
        dict(model__d_ff=64),
    ]
    for i, (change, value) in enumerate(zip(changes, (0.99, 0.02, 0.9, 0.95), strict=True)):
        write_run(tmp_path / f"r{i}", evaluated(value), seed=i, **change)
    table = tables(tmp_path)["results_group_z7_n4"]
    assert [row[0] for row in table.rows] == [
        "1x2, d_ff 32, lr 0.001, adafactor",
        "1x2, d_ff 32, lr 0.1, adafactor",
        "1x2, d_ff 32, lr 0.01, adamw",
        "1x2, d_ff 64, lr 0.01, adamw",
    ]
    assert "seeds" not in table.header


def test_a_seed_counts_once(tmp_path: pathlib.Path) -> None:
    for name, seed, value in (("a", 0, 0.2), ("b", 1, 0.4), ("c", 1, 0.9)):
        write_run(tmp_path / name, evaluated(value), seed=seed, name=name)
    document = build(*find_runs([str(tmp_path)]), "a report")
    assert "c is left out: b is the same model with the same seed, 1" in document.markdown()
    (row,) = tables(tmp_path)["results_group_z7_n4"].rows
    assert "30.0 (20.0 to 40.0)" in row


def test_a_label_does_not_list_what_a_run_did_not_do(tmp_path: pathlib.Path) -> None:
    runs = {
        "a": dict(model__plan="4x1"),
        "b": dict(model__plan="4x1", regularizer__block=2, regularizer__strength=10.0),
        "c": dict(model__plan="4x1", stacking__block=2),
    }
    for name, changes in runs.items():
        write_run(tmp_path / name, evaluated(0.5), **changes)
    assert labels(tmp_path) == [
        "4x1",
        "4x1, regularizer.block 2, regularizer.strength 10",
        "4x1, stacking.block 2",
    ]


def test_runs_on_different_data_share_no_table_fit_or_line(tmp_path: pathlib.Path) -> None:
    for plan, path, value in (("1x1", "a", 9.0), ("2x1", "b", 7.0), ("1x2", "b", 8.0)):
        line = {"step": 12, "eval/text/loss": 2.0, "eval/text/perplexity": value}
        data = dict(data__task="text", data__length=32, data__path=path)
        write_run(tmp_path / plan, [line], model__plan=plan, **data)
    groups, _ = task_groups(find_runs([str(tmp_path)])[0])
    assert {g.title: [m.label for m in g.models] for g in groups} == {
        "text (a)": ["1x1"],
        "text (b)": ["1x2", "2x1"],
    }
    found = tables(tmp_path)
    assert {"results_text", "results_text_2"} <= found.keys()
    assert "published_lm_groups_2" not in found
    assert not [name for name in found if name.startswith("scaling")]


@pytest.mark.parametrize(
    ("values", "change", "gap"),
    [
        ((0.2, 0.5, 0.8), {}, "50"),
        ((0.5, 0.8, 0.4), {}, None),  # Iso-FLOP is below the base: would be -300.
        ((0.5, 0.55, 0.52), {}, None),  # And here above it within the noise of 32 examples.
        ((0.2, 0.5, 0.8), {"optimizer__learning_rate": 0.5}, None),
        ((0.2, 0.5, 0.8), {"train__steps": 24}, None),
        ((0.2, 0.5, 0.8), {"seed": 3}, "50"),
    ],
)
def test_the_gap_is_between_models_alike_but_for_the_plan(
    values: tuple[float, float, float],
    change: dict[str, object],
    gap: str | None,
    tmp_path: pathlib.Path,
) -> None:
    for plan, value in zip(("1x1", "1x2", "2x1"), values, strict=True):
        changes = change if plan == "1x2" else {}
        write_run(tmp_path / plan, evaluated(value), model__plan=plan, **changes)
    table = tables(tmp_path)["results_group_z7_n4"]
    shown = [row[table.header.index("% Gap")] for row in table.rows if "% Gap" in table.header]
    assert shown == ([] if gap is None else ["", gap, ""])


@pytest.mark.parametrize(("off", "gap"), [(0.02, 50), (0.2, None)])
def test_a_group_of_tasks_has_a_gap_where_it_is_more_than_the_noise_of_its_tasks(
    off: float, gap: int | None, tmp_path: pathlib.Path
) -> None:
    names = [f"eval/{n}/{metric_of(n)([]).headline}" for n in group_members("math_word_problems")]
    for plan, value in (("1x1", 0.3), ("1x2", 0.35), ("2x1", 0.4)):
        line = {"step": 12.0, "eval/text/loss": 2.0}
        for name in names:
            line |= {name: value, f"{name}_low": value - off, f"{name}_high": value + off}
        for seed in (0, 1):
            folder = tmp_path / f"{plan}-{seed}"
            changes = dict(data__task="text", data__length=32, model__plan=plan, seed=seed)
            write_run(folder, [line], **changes)
    (group,), _ = task_groups(find_runs([str(tmp_path)])[0])
    model = next(m for m in group.models if str(m.plan) == "1x2")
    measured = model.measured("group/math_word_problems")
    assert measured is not None and measured[1] is not None
    # The error of a mean of n independent numbers is that of one over the root of n.
    assert 0.35 - measured[1][0] == pytest.approx(off / len(names) ** 0.5)
    of_group = group.gap(model, "group/math_word_problems")
    assert of_group == (None if gap is None else pytest.approx(gap))


def test_a_stopped_seed_is_not_averaged_and_a_stopped_model_has_no_gap(
    tmp_path: pathlib.Path,
) -> None:
    family(tmp_path)
    write_run(tmp_path / "s", [{"step": 6, ACCURACY: 0.0}], model__plan="1x1", seed=1)
    table = tables(tmp_path)["results_group_z7_n4"]
    rows = {row[0]: row for row in table.rows}
    assert "20.0 of 1" in rows["1x1"]
    (tmp_path / "2x1" / "metrics.jsonl").write_text(json.dumps({"step": 6, ACCURACY: 0.8}) + "\n")
    table = tables(tmp_path)["results_group_z7_n4"]
    assert "% Gap" not in table.header
    assert "80.0 at step 6" in {row[0]: row for row in table.rows}["2x1"]


def test_names_with_dollars_and_underscores_are_shown(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a$x_{$b", evaluated(0.5))
    write_run(tmp_path / "_hidden", evaluated(0.7), seed=1)
    document = build(*find_runs([str(tmp_path)]), "a report")
    parts = [part for section in document.sections for part in section.parts]
    assert any(isinstance(part, Figure) and part.name.startswith("curve") for part in parts)
    axes = plt.figure().gca()
    for name in ("a$x_{$b", "_hidden"):
        axes.plot([0], [0], label=plots.as_text(name))
    legend = [text.get_text() for text in axes.legend().get_texts()]
    assert legend == [r"a\$x_{\$b", "\N{NO-BREAK SPACE}_hidden"]


def test_what_loops_did_is_drawn_for_each_model_and_looped_segment(tmp_path: pathlib.Path) -> None:
    def line(step: int, *segments: str) -> dict[str, float]:
        found = {"step": step, ACCURACY: 0.5, "loop/decay_mean": 0.4}
        for segment, loop in itertools.product(segments, (1, 2)):
            where = f"eval/group_z7_n4{segment}/loop_{loop}"
            found |= {f"{where}/state_norm": 9.0, f"{where}/cosine_between_tokens": -0.2}
        return found

    write_run(tmp_path / "a", [line(6, ""), line(12, "")])
    one, two = ("/segment_0", "/segment_1")
    write_run(tmp_path / "b", [line(12, one, two)], model__plan="1x2,1x2")
    write_run(tmp_path / "c", evaluated(0.5), model__plan="2x1")
    sections = {s.title: s.parts for s in build(*find_runs([str(tmp_path)]), "a report").sections}
    figures = sections["Loops while training: group_z7_n4"]
    assert [figure.name for figure in figures if isinstance(figure, Figure)] == [
        "loops_while_training_a",
        "loops_while_training_b_segment_0",
        "loops_while_training_b_segment_1",
    ]


def test_what_made_the_runs_is_shown_and_mixtures_are_warned_of(tmp_path: pathlib.Path) -> None:
    for i, numerics in enumerate((1, 2)):
        workdir = write_run(tmp_path / f"r{i}", evaluated(0.5), seed=i)
        write_provenance(workdir, numerics, rows=8 + i)
    write_run(tmp_path / "old", evaluated(0.5), seed=2)
    text = build(*find_runs([str(tmp_path)]), "a report").markdown()
    formats = (
        "Runs of different numerics formats are not comparable (1: r0; 2: r1; not recorded: old)"
    )
    assert formats in text
    samples = "group_z7_n4 was measured on different held-out examples (r0 | r1): not comparable"
    assert samples in text
    # Nor are they seeds of one model.
    assert set(labels(tmp_path)) == {
        f"1x2, numerics format {which}" for which in ("1", "2", "not recorded")
    }
    rows = {row[0]: list(row) for row in tables(tmp_path)["provenance"].rows}
    assert rows["r0"][1:5] == [
        "fedcba987654, then 0123456789ab with changes",
        *("1", "8 x cpu", "3"),
    ]
    assert rows["r0"][6] == "not ended"
    assert rows["old"][1] == "not recorded"


def test_a_run_of_any_mesh_and_batch_is_counted_on_these_devices(tmp_path: pathlib.Path) -> None:
    config = small_config(train__batch_size=12)
    workdir = write_run(tmp_path / "a", evaluated(0.5), train__batch_size=12)
    record = Record("a", workdir, config, tuple(read_metrics(workdir)))
    assert record.parameters > 0  # Twelve rows do not divide over eight devices.


def test_flops_of_a_run_are_those_of_its_own_batch(tmp_path: pathlib.Path) -> None:
    of_step = []
    for batch in (0, 48):
        folder = tmp_path / str(batch)
        write_run(folder / "a", evaluated(0.5), train__batch_size=12, eval__batch_size=batch)
        (record,), _ = find_runs([str(folder)])
        of_step.append(record.step_flops)
        assert record.step_flops == planned_step_flops(record.config)
    assert of_step[0] == of_step[1]


def test_flops_of_a_run_that_grows_are_those_of_the_depths_that_it_had(
    tmp_path: pathlib.Path,
) -> None:
    last = {"eval/group_z7_n4/accuracy": 0.5}
    of_depth = {n: planned_step_flops(small_config(model__plan=f"{n}x1")) for n in (2, 4)}
    for step, expected in ((4, 4 * of_depth[2]), (12, 4 * of_depth[2] + 8 * of_depth[4])):
        grown = dict(model__plan="4x1", stacking__block=2, train__steps=12)
        write_run(tmp_path / str(step), [{"step": step, **last}], **grown)
        (record,), _ = find_runs([str(tmp_path / str(step))])
        assert record.flops == expected


def test_a_run_that_is_named_twice_counts_once(tmp_path: pathlib.Path) -> None:
    family(tmp_path)
    records, _ = find_runs([str(tmp_path), str(tmp_path / "1x1")])
    assert len(records) == 3
    (tmp_path / "more").mkdir()
    write_run(tmp_path / "more" / tmp_path.name / "1x1", evaluated(0.1), seed=4)
    both = [str(tmp_path), str(tmp_path / "more" / tmp_path.name)]
    assert len({record.name for record in find_runs(both)[0]}) == 4


def test_damaged_files_of_a_run_are_named_and_the_rest_is_shown(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "whole", evaluated(0.5))
    for name, content in (("empty", ""), ("list", "[1]"), ("text", "x")):
        write_run(tmp_path / name, evaluated(0.5))
        (tmp_path / name / "config.json").write_text(content)
    write_run(tmp_path / "stepless", [{ACCURACY: 0.5}])
    records, missing = find_runs([str(tmp_path)])
    assert [record.name for record in records] == ["whole"]
    assert len(missing) == 4
    assert all("cannot be read" in p or p == "stepless: has no metrics yet" for p in missing)
    with pytest.raises(UserError, match=r"list/config\.json cannot be read"):
        find_runs([str(tmp_path / "list")])


def test_what_is_missing_is_said_and_the_rest_is_shown(tmp_path: pathlib.Path) -> None:
    runs = [{"name": n} for n in ("whole", "stopped", "no_evaluation", "begun", "absent")]
    write_run(tmp_path / "whole", evaluated(0.5))
    write_run(tmp_path / "stopped", [{"step": 6, ACCURACY: 0.1}], seed=1)
    write_run(tmp_path / "no_evaluation", [{"step": 2, "train/loss": 1.0}], seed=2)
    write_run(tmp_path / "begun", [], seed=3)
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": runs}))
    records, missing = find_runs([str(tmp_path)])
    assert [record.name for record in records] == ["whole", "stopped", "no_evaluation"]
    assert missing == [
        "stopped: stopped at step 6 of 12",
        "no_evaluation: has no evaluation (stopped at step 2)",
        "begun: has no metrics yet",
        "absent: not started",
    ]
    page = build(records, missing, "a report").html()
    assert all(problem in page for problem in missing)
    assert "50.0" in page


def test_runs_of_different_tasks_are_reported_apart(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", evaluated(0.5))
    other = [{"step": 12, "eval/group_s3_n4/accuracy": 0.7}]
    write_run(tmp_path / "b", other, data__task="group_s3_n4")
    assert {"results_group_z7_n4", "results_group_s3_n4"} <= tables(tmp_path).keys()


def test_one_depth_gives_no_scaling_law_and_two_give_one(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "1x1", evaluated(0.2), model__plan="1x1")
    assert "scaling_group_z7_n4" not in tables(tmp_path)
    write_run(tmp_path / "1x4", evaluated(0.4), model__plan="1x4")
    (row,) = tables(tmp_path)["scaling_group_z7_n4"].rows
    # 20 points over log 4; two points have no interval.
    assert row[2] == "14.43"


def test_published_numbers_stand_beside_runs_of_the_same_task(tmp_path: pathlib.Path) -> None:
    lines = [{"step": 12, "eval/igsm/accuracy": 0.3}]
    write_run(tmp_path / "a", lines, data__task="igsm", model__plan="1x1")
    found = tables(tmp_path)
    (row,) = found["results_igsm"].rows
    assert row[found["results_igsm"].header.index("paper")] == "24.5"
    assert ["1x8", "73.2"] in [list(row) for row in found["published_igsm"].rows]


def test_evaluations_with_other_loop_counts_are_found(tmp_path: pathlib.Path) -> None:
    workdir = write_run(tmp_path / "a", evaluated(0.5))
    for step, loops, value in ((6, 1, 0.9), (12, 1, 0.1), (12, 4, 0.6), (12, None, 0.5)):
        keep(workdir, step, loops, value)
    keep(workdir, 12, 1, 0.3, split="test")
    (record,), _ = find_runs([str(tmp_path / "a")])
    assert record.by_loops(ACCURACY) == {1: 0.1, 2: 0.5, 4: 0.6}


def test_evaluations_of_other_models_parameters_or_data_are_left_out(
    tmp_path: pathlib.Path,
) -> None:
    workdir = write_run(tmp_path / "a", evaluated(0.5))
    keep(workdir, 12, 1, 0.1, checkpoint="of a run that was in this folder before")
    keep(workdir, 12, 3, 0.2, data="other")
    keep(workdir, 12, 4, 0.6)
    keep(workdir, 12, 2, 0.5)
    keep(workdir, 12, 2, 0.9, overrides={"model.rope_theta": 1.0})
    keep(workdir, 18, 1, 0.9, overrides={"model.rope_theta": 1.0})
    (record,), _ = find_runs([str(tmp_path / "a")])
    assert record.by_loops(ACCURACY) == {2: 0.5, 4: 0.6}


def test_evaluations_on_other_rows_than_the_runs_own_are_left_out(tmp_path: pathlib.Path) -> None:
    workdir = write_run(tmp_path / "a", evaluated(0.5))
    write_provenance(workdir, 2, rows=8)
    keep(workdir, 12, 1, 0.1, data='{"rows": 8}')
    keep(workdir, 12, 2, 0.9, data='{"rows": 9}')
    (record,), _ = find_runs([str(tmp_path / "a")])
    assert record.by_loops(ACCURACY) == {1: 0.1}


@pytest.mark.parametrize("broken", ['{"step": 12, "loo', "\0\0\0", "[]", '{"step": "x"}', "\x85"])
def test_a_broken_line_of_evaluations_is_named_and_skipped(
    broken: str, tmp_path: pathlib.Path
) -> None:
    workdir = write_run(tmp_path / "a", evaluated(0.5))
    keep(workdir, 12, 1, 0.1)
    with (workdir / "evaluations" / "held_out.jsonl").open("a") as file:
        file.write(broken + "\n")
    keep(workdir, 12, 4, 0.6)
    (record,), missing = find_runs([str(tmp_path / "a")])
    assert missing == ["a: line 2 of held_out.jsonl is damaged and left out"]
    assert record.by_loops(ACCURACY) == {1: 0.1, 4: 0.6}


def test_text_runs_show_perplexity_components_and_the_papers_table(tmp_path: pathlib.Path) -> None:
    for plan, value in (("1x1", 9.0), ("1x2", 8.0), ("2x1", 7.0)):
        line = {"step": 12, "eval/text/loss": 2.0, "eval/text/perplexity": value}
        line |= {"eval/text/ArXiv/bits_per_byte": value / 4, "eval/text/bits_per_byte": 3.0}
        write_run(tmp_path / plan, [line], data__task="text", data__length=32, model__plan=plan)
    found = tables(tmp_path)
    table = found["results_text"]
    assert [row[table.header.index("% Gap")] for row in table.rows] == ["", "50", ""]
    rows = [list(row) for row in found["components"].rows]
    assert rows[1] == ["ArXiv", "", "", "2.250", "2.000", "1.750"]
    assert rows[0][0] == "all"
    assert "printed 95" in found["published_lm_groups"].note


def test_text_has_its_intervals_and_what_was_measured(tmp_path: pathlib.Path) -> None:
    line = {"step": 12, "eval/text/loss": 2.0}
    for part, value, tokens in (("text", 8.0, 5000), ("text/ArXiv", 4.0, 1000)):
        line |= {f"eval/{part}/perplexity": value, f"eval/{part}/tokens": tokens}
        line |= {f"eval/{part}/perplexity_low": value - 1, f"eval/{part}/documents": 20}
        line |= {f"eval/{part}/perplexity_high": value + 2}
    write_run(tmp_path / "a", [line], data__task="text", data__length=32)
    found = tables(tmp_path)
    (row,) = found["results_text"].rows
    assert "8.000 [7.000, 10.000]" in row
    assert "95% interval over documents" in found["results_text"].note
    assert [list(row) for row in found["components_perplexity"].rows] == [
        ["all", "5,000", "20", "8.000 [7.000, 10.000]"],
        ["ArXiv", "1,000", "20", "4.000 [3.000, 6.000]"],
    ]


def test_one_command_makes_a_page_that_stands_alone(
    run_module: Callable[..., object], variants_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "report"
    done = run_module("looped_jax.report", f"--runs={variants_run}", f"--out={out}")
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    page = (out / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:image/png", "#")) for source in sources)
    assert "<script" not in page
    with (out / "results_group_z7_n4.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = read_metrics(epath.Path(variants_run) / "looped")[-1][ACCURACY]
    shown = {row["model"]: row["group_z7_n4 (%)"] for row in rows}
    assert shown.keys() == {"1x1", "1x2", "2x1"}
    assert shown["1x2"] == f"{100 * last:.1f}"
    # The untied model has a heatmap, read from its checkpoint.
    assert (out / "similarity_iso_flop.png").stat().st_size > 1000
    assert "results_group_z7_n4" not in (out / "report.md").read_text()
    assert "% Gap" in (out / "report.md").read_text()


def test_folders_without_runs_are_refused_in_one_line(
    fails_in_one_line: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    assert "say --runs" in fails_in_one_line("looped_jax.report")
    empty = f"--runs={tmp_path}"
    assert "holds no run" in fails_in_one_line("looped_jax.report", empty, f"--out={tmp_path}/o")
    with pytest.raises(UserError, match="no folder"):
        find_runs([str(tmp_path / "nowhere")])


def test_isoplots_have_a_fit_per_model_and_none_from_one_checkpoint(tmp_path: pathlib.Path) -> None:
    names = [f"eval/varassign_depth{d}_{f}/accuracy" for d in (0, 1) for f in ("math", "code")]

    def line(step: int, loss: float, value: float) -> dict[str, float]:
        return {"step": step, "eval/text/loss": loss, **dict.fromkeys(names, value)}

    lines = [line(4, 3.0, 0.1), line(8, 2.5, 0.2), line(12, 2.0, 0.3)]
    write_run(tmp_path / "1x2", lines, data__task="text", data__length=32)
    one = dict(data__task="text", data__length=32, model__plan="1x1")
    write_run(tmp_path / "1x1", lines[:1], **one)
    rows = tables(tmp_path)["isoplot_group_reasoning_primitives"].rows
    assert [list(row) for row in rows] == [
        ["1x1", "1", "no fit: fewer than two points", ""],
        ["1x2", "3", "-20.00", "1.00"],
    ]
