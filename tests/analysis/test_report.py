"""The report over run folders: whole, incomplete, and of different tasks."""

import csv
import json
import pathlib
import re
from collections.abc import Callable

import pytest
from etils import epath
from helpers import small_config

from looped_jax import config as config_lib
from looped_jax.analysis.document import Table
from looped_jax.analysis.models import task_groups
from looped_jax.analysis.records import append_evaluation, find_runs
from looped_jax.analysis.report import build
from looped_jax.config import UserError
from looped_jax.training.metrics import read_metrics

ACCURACY = "eval/group_z7_n4/accuracy"


def write_run(
    folder: pathlib.Path, lines: list[dict[str, float]], **overrides: object
) -> epath.Path:
    """A run's folder as training leaves it, but for checkpoints."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_lib.to_json(small_config(**overrides)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return epath.Path(folder)


def evaluated(value: float, step: int = 12) -> list[dict[str, float]]:
    return [{"step": 6, ACCURACY: value / 2}, {"step": step, ACCURACY: value}]


def family(folder: pathlib.Path) -> None:
    for plan, value in (("1x1", 0.2), ("1x2", 0.5), ("2x1", 0.8)):
        write_run(folder / plan, evaluated(value), model__plan=plan)


def tables(folder: pathlib.Path) -> dict[str, Table]:
    document = build(*find_runs([str(folder)]), "a report")
    parts = [part for section in document.sections for part in section.parts]
    return {part.name: part for part in parts if isinstance(part, Table)}


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
    (group,) = task_groups(find_runs([str(tmp_path)])[0])
    assert [model.label for model in group.models] == [
        "1x2 (d=16, 12 steps, batch 16)",
        "1x2 (d=32, 12 steps, batch 16)",
    ]


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
    # 20 points over log 4.
    assert row[2].startswith("14.43 ")


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
        append_evaluation(workdir, step, loops, "validation", {ACCURACY: value})
    append_evaluation(workdir, 12, 1, "test", {ACCURACY: 0.3})
    (record,), _ = find_runs([str(tmp_path / "a")])
    assert record.by_loops(ACCURACY) == {1: 0.1, 2: 0.5, 4: 0.6}


def test_text_runs_show_perplexity_components_and_the_papers_table(tmp_path: pathlib.Path) -> None:
    for plan, value in (("1x1", 9.0), ("1x2", 8.0), ("2x1", 7.0)):
        line = {"step": 12, "eval/text/loss": 2.0, "eval/text/perplexity": value}
        line |= {"eval/text/ArXiv/bits_per_byte": value / 4, "eval/text/bits_per_byte": 3.0}
        write_run(tmp_path / plan, [line], data__task="text", data__length=32, model__plan=plan)
    found = tables(tmp_path)
    table = found["results_text"]
    assert [row[table.header.index("% Gap")] for row in table.rows] == ["", "50", ""]
    (row,) = found["components"].rows
    assert list(row) == ["ArXiv", "2.250", "2.000", "1.750"]
    assert "printed 95" in found["published_lm_groups"].note


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
