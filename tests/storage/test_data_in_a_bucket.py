"""Text that is read from a bucket, prepared into one, and trained on from there."""

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import pytest
from conftest import ROOT
from etils import epath
from helpers import write_language_model, write_pile
from object_stores import Store

from looped_jax.data.files import write_whole


@pytest.fixture(scope="module")
def pile(store: Store, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """The same shards on a disk (what is returned) and in the bucket, in its folder pile."""
    folder = tmp_path_factory.mktemp("raw") / "pile"
    write_pile(folder)
    for path in folder.iterdir():
        write_whole(epath.Path(f"{store}/pile/{path.name}"), path.read_bytes())
    write_language_model(
        folder.parent / "lm.py",
        data__path=str(folder),
        data__length=64,
        prepare__block_kb=1,
        prepare__shards=3,
        prepare__workers=1,
        train__steps=4,
        eval__examples=4,
    )
    return epath.Path(folder)


def start(module: str, pile: epath.Path, *arguments: str) -> Any:
    command = [sys.executable, "-m", f"looped_jax.{module}", f"--config={pile.parent / 'lm.py'}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([*command, *arguments], cwd=ROOT, **pipes)


def run(code: int, *arguments: Any) -> str:
    process = start(*arguments)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return errors


def losses(workdir: pathlib.Path) -> list[Any]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k[:5] != "perf/"} for line in lines]


def test_a_bucket_s_text_prepared_into_a_bucket_is_what_a_disk_gives(
    store: Store, pile: epath.Path, tmp_path: pathlib.Path
) -> None:
    run(0, "prepare", pile, f"--output={tmp_path / 'disk'}")
    there = f"{store}/prepared"
    source = f"--config.data.path={store}/pile"
    # Killed as it copies: the first shard has arrived, no manifest.
    process = start("prepare", pile, source, f"--output={there}")
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(name.endswith(".array_record") for name in store.names("prepared")):
            break
        time.sleep(0.02)
    process.kill()
    process.communicate()
    other = ("--config.prepare.seed=5", f"--output={there}")
    assert "holds another preparation" in run(2, "prepare", pile, source, *other)
    run(0, "prepare", pile, source, f"--output={there}")
    content = {path.name: path.read_bytes() for path in (tmp_path / "disk").iterdir()}
    assert store.names("prepared") == sorted(content)
    assert all((epath.Path(there) / name).read_bytes() == content[name] for name in content)
    run(0, "prepare", pile, source, f"--output={there}")  # It is there.

    run(0, "main", pile, f"--config.data.path={tmp_path / 'disk'}", f"--workdir={tmp_path / 'a'}")
    run(0, "main", pile, f"--config.data.path={there}", f"--workdir={tmp_path / 'b'}")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    copies = list((pathlib.Path(os.environ["LOOPED_JAX_CACHE"]) / "files").glob("*.array_record"))
    assert copies  # Of shards whose rows were read.

    changed = epath.Path(there) / "validation-00000-of-00001.array_record"
    write_whole(changed, content[changed.name][::-1])
    for copy in copies:
        copy.unlink()
    said = run(1, "main", pile, f"--config.data.path={there}", f"--workdir={tmp_path / 'c'}")
    assert "is not of the content that its manifest says" in said
    changed.unlink()
    said = run(2, "main", pile, f"--config.data.path={there}", f"--workdir={tmp_path / 'd'}")
    assert said.count("\n") == 1 and "is missing" in said


def test_raw_text_is_read_from_a_bucket(
    store: Store, pile: epath.Path, tmp_path: pathlib.Path
) -> None:
    run(0, "main", pile, f"--workdir={tmp_path / 'a'}")
    run(0, "main", pile, f"--config.data.path={store}/pile", f"--workdir={tmp_path / 'b'}")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_what_cannot_be_prepared_into_a_bucket_is_refused(store: Store, pile: epath.Path) -> None:
    scheduler = "--scheduler=tcp://127.0.0.1:1"
    said = run(2, "prepare", pile, scheduler, f"--output={store}/refused")
    assert said.count("\n") == 1 and "copy it to the bucket" in said
    said = run(2, "prepare", pile, f"--output={store.scheme}://none-such/x")
    assert said.count("error: ") == 1 and "cannot write in" in said.splitlines()[-1]
