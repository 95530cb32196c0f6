"""Where metrics go beside metrics.jsonl, and that none of it can stop a run."""

import json
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from etils import epath
from helpers import small_config
from tensorboard_events import read_events

from looped_jax.config import parse_value, to_json
from looped_jax.config.keys import TRACKERS
from looped_jax.config.validation import validate
from looped_jax.errors import UserError
from looped_jax.training import trackers, trainer
from looped_jax.training.job import make_job
from looped_jax.training.metrics_file import read_metrics
from looped_jax.training.trackers import OPENERS, Trackers
from looped_jax.training.trackers.base import IDS, Start
from looped_jax.training.trackers.tensorboard import TensorBoard

EVERY = 4  # Steps from one evaluation to the next.


def lines(steps: range) -> list[dict[str, float]]:
    """What a run writes at these steps."""
    found: list[dict[str, float]] = []
    for step in steps:
        found.append({"step": step, "train/loss": 1 / step})
        if step % EVERY == 0:
            found.append({"step": step, "eval/x/loss": float(step)})
    return found


def send(folder: pathlib.Path, name: str, after: int, steps: range, finished: bool) -> None:
    """What one process sends that goes on from step ``after``."""
    config = small_config(name="a", train__log_to=(name,), train__steps=12)
    kept = lines(range(1, after + 1))
    of_run = Trackers(Start(epath.Path(folder), config, after), kept)
    for line in lines(steps):
        of_run.write(int(line["step"]), {k: v for k, v in line.items() if k != "step"})
    of_run.flush()
    of_run.close(finished)


def send_with_a_kill(folder: pathlib.Path, name: str) -> None:
    """A run of 12 steps that goes on from its checkpoint of step 4 after a kill at step 7."""
    send(folder, name, 0, range(1, 8), finished=False)
    send(folder, name, 4, range(5, 13), finished=True)


def test_tensorboard_gets_what_it_lost_with_a_process_or_was_left_out_of(
    tmp_path: pathlib.Path,
) -> None:
    send(tmp_path, "tensorboard", 0, range(1, 3), finished=False)
    # Of steps 3 to 6, an evaluation at a step that was saved among them, it heard nothing.
    send(tmp_path, "tensorboard", 6, range(7, 9), finished=True)
    expected = [(k, int(x["step"]), v) for x in lines(range(1, 9)) for k, v in x.items()]
    assert sent("tensorboard", tmp_path) == [x for x in expected if x[0] != "step"]


def test_every_tracker_that_a_config_can_name_is_there() -> None:
    assert tuple(OPENERS) == TRACKERS


def test_tensorboard_gets_the_same_scalars(tmp_path: pathlib.Path) -> None:
    send(tmp_path, "tensorboard", 0, range(1, 5), finished=True)
    scalars = read_events(tmp_path)
    assert [step for name, step, _ in scalars if name == "train/loss"] == [1, 2, 3, 4]
    assert ("eval/x/loss", 4, 4.0) in scalars


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_that_a_run_begins_with_later_gets_the_steps_before(
    name: str, tmp_path: pathlib.Path
) -> None:
    send(tmp_path, name, 6, range(7, 9), finished=True)
    expected = [(k, int(x["step"]), v) for x in lines(range(1, 9)) for k, v in x.items()]
    assert sorted(sent(name, tmp_path)) == sorted(x for x in expected if x[0] != "step")


def sent(name: str, folder: pathlib.Path) -> list[tuple[str, int, float]]:
    """(metric, step, value) that a tracker has of the run."""
    if name == "tensorboard":
        return [(key, step, pytest.approx(value)) for key, step, value in read_events(folder)]
    client, run_id = mlflow_run(folder)
    metrics = ("train/loss", "eval/x/loss")
    found = [m for key in metrics for m in client.get_metric_history(run_id, key)]
    return [(metric.key, metric.step, metric.value) for metric in found]


def mlflow_run(folder: pathlib.Path) -> tuple[Any, str]:
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow comes with the extra mlflow")
    client = tracking.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return client, json.loads((folder / IDS).read_text())["mlflow"]


def test_mlflow_has_one_run_and_each_step_once_after_a_kill(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow comes with the extra mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    send_with_a_kill(tmp_path, "mlflow")
    client, run_id = mlflow_run(tmp_path)
    experiment = client.get_experiment_by_name("looped_jax")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "a", "FINISHED")
    history = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(step, 1 / step) for step in range(1, 13)]
    assert [m.step for m in client.get_metric_history(run_id, "eval/x/loss")] == [4, 8, 12]
    assert run.data.params["train.steps"] == "12"
    assert run.data.params["model.plan"] == small_config().model.plan


def test_mlflow_gets_what_it_lost_when_it_could_not_be_reached(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow comes with the extra mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    send(tmp_path, "mlflow", 0, range(1, 3), finished=False)
    send(tmp_path, "mlflow", 6, range(7, 9), finished=True)  # Steps 3 to 6 were not sent.
    client, run_id = mlflow_run(tmp_path)
    history = client.get_metric_history(run_id, "train/loss")
    assert [metric.step for metric in history] == [*range(1, 9)]


def wandb_records(path: pathlib.Path) -> Iterator[Any]:
    """The records of an offline run: a log of blocks as LevelDB's, after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record, block = path.read_bytes(), 7, b"", 32768
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # Whole, or its last part.
            yield Record.FromString(record)
            record = b""


def test_wandb_offline_keeps_the_whole_run_under_one_id_after_a_kill(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb comes with the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    send_with_a_kill(tmp_path, "wandb")
    run_id = json.loads((tmp_path / IDS).read_text())["wandb"]
    paths = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    assert {path.name for path in paths} == {f"run-{run_id}.wandb"}
    history: list[dict[str, Any]] = []
    for record in wandb_records(paths[-1]):
        if record.HasField("run"):
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            assert record.run.project == "looped_jax" and record.run.display_name == "a"
            assert (config["train.steps"], config["train.log_to"]) == (12, ["wandb"])
        if record.HasField("history"):
            items = record.history.item
            history.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    assert [line["_step"] for line in history] == [*range(1, 13)]
    assert [line["train/loss"] for line in history] == [1 / step for step in range(1, 13)]
    assert [line["_step"] for line in history if "eval/x/loss" in line] == [4, 8, 12]


class Breaks:
    """A tracker that breaks at its third write."""

    complete_until = 0

    def __init__(self, start: Start):
        self.left = 2

    def write(self, step: int, scalars: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("no\nnetwork")

    def flush(self) -> None:
        pass

    def close(self, finished: bool) -> None:
        raise ConnectionError("still no network")


def test_a_tracker_that_breaks_is_left_out_with_one_line_and_the_run_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(OPENERS, "wandb", lambda: Breaks)
    every = dict(train__steps=6, train__log_every=1, eval__every=6)
    config = small_config(train__log_to=("wandb", "tensorboard"), **every)
    trainer.train(make_job(config), epath.Path(tmp_path / "run"))
    warnings = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning")]
    assert warnings == [
        "warning: no more metrics to wandb (ConnectionError: no network); training goes on, "
        "metrics.jsonl has everything"
    ]
    logged = [x for x in read_metrics(epath.Path(tmp_path / "run")) if "train/loss" in x]
    events = [step for name, step, _ in read_events(tmp_path / "run") if name == "train/loss"]
    assert [line["step"] for line in logged] == events == [1, 2, 3, 4, 5, 6]


def test_a_tracker_that_cannot_be_opened_is_left_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_key(_: Start) -> Any:
        raise RuntimeError("no API key")

    monkeypatch.setitem(OPENERS, "wandb", lambda: no_key)
    send(tmp_path, "wandb", 0, range(1, 3), finished=True)
    assert "to wandb (RuntimeError: no API key); training goes on" in capsys.readouterr().err


def test_a_full_disk_ends_tensorboard_and_not_the_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class OnAFullDisk(TensorBoard):
        def __init__(self, start: Start):
            super().__init__(start)
            self._file._py_recordio_writer._writer = open("/dev/full", "wb")  # noqa: SIM115

    monkeypatch.setitem(OPENERS, "tensorboard", lambda: OnAFullDisk)
    # More than any buffer, and than the queue of a writer in a thread of its own.
    send(tmp_path, "tensorboard", 0, range(1, 2000), finished=True)
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and "No space left on device" in said


def test_without_trackers_metrics_jsonl_is_all_there_is(tmp_path: pathlib.Path) -> None:
    config = small_config(train__log_to=(), train__steps=2)
    trainer.train(make_job(config), epath.Path(tmp_path / "run"))
    found = {p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(".lock")}
    assert found == {"config.json", "metrics.jsonl", "run.json", "checkpoints"}


def test_a_run_goes_on_with_other_trackers(tmp_path: pathlib.Path) -> None:
    workdir = epath.Path(tmp_path / "run")
    cadence = dict(train__steps=4, train__log_every=1, checkpoint__every=2)
    trainer.train(make_job(small_config(train__log_to=(), **cadence)), workdir)
    with_tensorboard = small_config(**cadence)
    (workdir / "checkpoints" / "4").rename(tmp_path / "lost")
    trainer.train(make_job(with_tensorboard), workdir)
    assert (workdir / "config.json").read_text() == to_json(with_tensorboard)
    events = [step for name, step, _ in read_events(tmp_path / "run") if name == "train/loss"]
    assert events == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wand", "'wand' is not one of tensorboard, wandb, mlflow; did you mean 'wandb'?"),
        ("wandb,wandb", "'wandb' is there twice"),
        ("(1,)", "1 is not a name"),
    ],
)
def test_names_of_no_tracker_are_refused_in_one_line(text: str, message: str) -> None:
    value = parse_value(text, small_config().train.log_to)
    with pytest.raises(UserError) as caught:
        validate(small_config(train__log_to=value))
    assert f"config.train.log_to: {message}" in str(caught.value)


def test_what_one_process_writes_is_sent_by_one(tmp_path: pathlib.Path) -> None:
    start = Start(epath.Path(tmp_path), small_config(), 0, writes=False)
    trackers.Trackers(start, lines(range(1, 3))).close(True)
    assert not any(tmp_path.iterdir())
