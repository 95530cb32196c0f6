"""A real Dask scheduler and workers as processes: the same bytes; what is lost is done again."""

import contextlib
import functools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT
from etils import epath
from helpers import small_config

from looped_jax.data import cluster, preparation
from looped_jax.data.cluster import Cluster, Setting, unfit
from looped_jax.errors import RunError, UserError

pytest.importorskip("distributed", reason="Dask comes with the extra dask: pip install '.[dask]'")


def start(folder: pathlib.Path, kind: str, *arguments: str, **environment: str) -> Any:
    """A scheduler or worker, whose output is in a file beside it."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments, "--no-dashboard"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with (folder / f"{kind}.log").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)


@contextlib.contextmanager
def scheduler(folder: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """(address, process)"""
    folder.mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = start(folder, "scheduler", "--host=127.0.0.1", f"--port={port}")
    try:
        wait_for(lambda: "Scheduler at" in (folder / "scheduler.log").read_text())
        yield f"tcp://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def workers(folder: pathlib.Path, address: str, count: int, **environment: str) -> Iterator[list]:
    """Their processes."""
    own = ("--nthreads=1", "--no-nanny", f"--local-directory={folder}", "--death-timeout=60")
    processes = [start(folder, "worker", address, *own, **environment) for _ in range(count)]
    from distributed import Client

    try:
        with Client(address, timeout=60) as client:
            client.wait_for_workers(count, timeout=120)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def write_sources(folder: pathlib.Path, documents: int = 400) -> None:
    folder.mkdir()
    for name in ("train-0", "train-1", "val"):
        lines = (json.dumps({"text": f"{name} {i} " * (i % 50)}) for i in range(documents))
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def config(path: pathlib.Path) -> Any:
    return small_config(
        data__task="text",
        data__length=64,
        data__path=str(path),
        data__train_files="train-*",
        data__validation_files="val*",
        prepare__block_kb=2,
        prepare__shards=9,
        prepare__workers=1,
    )


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("cluster") / "source"
    write_sources(folder)
    return folder


@pytest.fixture(scope="module")
def whole(source: pathlib.Path) -> dict[str, bytes]:
    """What processes of one machine make of it."""
    preparation.prepare(config(source), epath.Path(source.parent / "whole"))
    return files(source.parent / "whole")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scheduler(tmp_path_factory.mktemp("dask") / "scheduler") as (at, _):
        yield at


def test_a_lost_worker_loses_nothing(
    source: pathlib.Path, whole: dict[str, bytes], address: str, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out"
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "import json\nfrom looped_jax import config\n\n"
        f"def get_config():\n    return config.from_json({config(source).to_json()!r})\n"
    )
    command = [sys.executable, "-m", "looped_jax.prepare", f"--config={experiment}"]
    command += [f"--output={output}", f"--scheduler={address}"]
    with workers(tmp_path, address, 2) as (first, _):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: len(list(output.rglob("*.rows"))) > 10)
        first.kill()
        out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "train: tokenise and pack" in errors and "100%" in errors
    assert "train" in out
    assert files(output) == whole


def test_errors_of_workers_come_back_as_one_line(address: str, tmp_path: pathlib.Path) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    write_sources(source, 40)
    good = (source / "train-1.jsonl").read_text()
    (source / "train-1.jsonl").write_text(good + "{\n")
    with workers(tmp_path, address, 1):
        with pytest.raises(UserError, match=r"train-1\.jsonl, line 41: not JSON.* kept in"):
            preparation.prepare(config(source), epath.Path(output), address)
        (source / "train-1.jsonl").write_text(good)
        marker = output / "work" / "train" / "train-00003-of-00009.json"
        marker.mkdir()  # No file can go there.
        with pytest.raises(RunError, match=r"cannot write in .*train-00003-of-00009"):
            preparation.prepare(config(source), epath.Path(output), address)
        marker.rmdir()
        preparation.prepare(config(source), epath.Path(output), address)
    preparation.prepare(config(source), epath.Path(tmp_path / "here"))
    assert files(output) == files(tmp_path / "here")


def test_a_worker_that_cannot_do_the_jobs_is_named_and_nothing_is_begun(
    source: pathlib.Path, address: str, tmp_path: pathlib.Path
) -> None:
    output = epath.Path(tmp_path / "out")
    with pytest.raises(UserError, match=r"it has no workers; start some with `dask worker tcp:"):
        preparation.prepare(config(source), output, address)
    other = tmp_path / "other" / "looped_jax"
    other.parent.mkdir()
    copy = subprocess.run(["cp", "-r", ROOT / "looped_jax", other])
    assert copy.returncode == 0
    (other.parent / "data").symlink_to(ROOT / "data")
    with (other / "errors.py").open("a") as file:
        file.write("# Another version.\n")
    # One that is found before the installed one.
    (tmp_path / "nothing" / "looped_jax").mkdir(parents=True)
    (tmp_path / "nothing" / "looped_jax" / "__init__.py").write_text("import nothing_here\n")
    for path, said in (
        (str(other.parent), "has another version of looped_jax"),
        (str(tmp_path / "nothing"), "cannot run looped_jax"),
    ):
        with (
            workers(tmp_path, address, 1, PYTHONPATH=path, PYTHONSAFEPATH="1"),
            pytest.raises(UserError, match=f"worker tcp://127.0.0.1:[0-9]+ {said}"),
        ):
            preparation.prepare(config(source), output, address)
    assert not output.exists()
    for wrong in ("tcp://127.0.0.1:1", "nonsense"):
        cluster_seconds = time.monotonic()
        with pytest.raises(UserError, match=f"--scheduler={wrong}: no Dask scheduler answers"):
            preparation.prepare(config(source), output, wrong)
        assert time.monotonic() - cluster_seconds < 60
    assert not output.exists()


def test_what_a_worker_has_to_have_is_looked_at(tmp_path: pathlib.Path) -> None:
    claim = epath.Path(tmp_path / "claim")
    claim.write_text("claim")
    setting = dict(
        claim=claim,
        claimed=cluster.sha256(claim),
        vocabulary="bytes",
        fingerprint=cluster.vocabulary_fingerprint("bytes"),
        versions=(("numpy", preparation.np.__version__),),
        sources=(claim,),
    )
    assert unfit(Setting(**setting)) == ""
    for change, said in (
        (dict(code="0"), "has another version of looped_jax"),
        (dict(versions=(("numpy", "0.1"),)), r"has numpy 2\..*, not 0.1"),
        (dict(versions=(("nothing", "0.1"),)), "has nothing none, not 0.1"),
        (dict(fingerprint="0"), "has another vocabulary bytes"),
        (dict(vocabulary=str(tmp_path / "a.model")), "cannot read the vocabulary"),
        (dict(sources=(claim / "x",)), "cannot see .*claim/x: .* file system that all"),
        (dict(claimed="0"), "is not on a shared file system"),
        (dict(claim=epath.Path(tmp_path / "none")), "cannot see .*file system that all"),
    ):
        reason = unfit(Setting(**{**setting, **change}))
        assert re.search(said, reason)


def test_a_lost_scheduler_or_no_worker_for_long_ends_in_one_line(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = epath.Path(tmp_path / "claim")
    claim.write_text("claim")
    fingerprint = cluster.vocabulary_fingerprint("bytes")
    setting = Setting(claim, cluster.sha256(claim), "bytes", fingerprint, (), ())
    monkeypatch.setattr(cluster, "_LOOK_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "_WORKERLESS_SECONDS", 2)
    monkeypatch.setattr(cluster, "_Checked", lambda job, setting: job)
    forever = functools.partial(time.sleep, 3600)
    with scheduler(tmp_path / "scheduler") as (at, process):
        with workers(tmp_path, at, 1) as (worker,), Cluster(at, setting) as lonely:
            future = lonely.submit(forever)
            worker.kill()
            with pytest.raises(RunError, match="has had no worker for"):
                lonely.wait([future])
        with workers(tmp_path, at, 1), Cluster(at, setting) as left:
            future = left.submit(forever)
            process.kill()
            with pytest.raises(RunError, match=r"scheduler .* is gone"):
                left.wait([future])
                left.result(future)
