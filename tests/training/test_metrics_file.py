import json
import pathlib

import pytest
from etils import epath

from looped_jax.training.metrics_file import MetricsWriter, read_metrics


def write(workdir: pathlib.Path, resumed_step: int, steps: range) -> None:
    writer = MetricsWriter(epath.Path(workdir), resumed_step)
    for step in steps:
        writer.write(step, {"train/loss": 1 / step})
        if step % 4 == 0 and not writer.evaluated(step):
            writer.write(step, {"eval/x/loss": float(step)})
    writer.sync()
    writer.close()


def test_a_resumed_run_leaves_the_file_as_if_never_stopped(tmp_path: pathlib.Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    write(whole, 0, range(1, 13))
    write(stopped, 0, range(1, 8))
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "tr')
    write(stopped, 4, range(5, 13))
    assert (stopped / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_an_evaluation_already_written_is_known_after_a_restart(tmp_path: pathlib.Path) -> None:
    write(tmp_path, 0, range(1, 9))
    writer = MetricsWriter(epath.Path(tmp_path), 8)
    assert [step for step in range(10) if writer.evaluated(step)] == [4, 8]
    writer.close()


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: pathlib.Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "a": 2.0}) + '\n{"step": 2')
    assert read_metrics(epath.Path(tmp_path)) == [{"step": 1, "a": 2.0}]
    assert read_metrics(epath.Path(tmp_path / "none")) == []


DAMAGED = ['{"step": 2, "tr', "\0" * 24, "[2]", "3", '{"a": 1.0}', '{"step": "2"}', "[" * 9000]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_left_out_and_said_once(
    line: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [json.dumps({"step": step, "a": 2.0}) for step in (1, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([good[0], line, good[1], ""]))
    for _ in range(2):
        assert [x["step"] for x in read_metrics(epath.Path(tmp_path))] == [1, 3]
    said = capsys.readouterr().err
    assert said == f"{tmp_path}: line 2 of metrics.jsonl is damaged and left out\n"
    # The run goes on with the others.
    writer = MetricsWriter(epath.Path(tmp_path), 3)
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == good
