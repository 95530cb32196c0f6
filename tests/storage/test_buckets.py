"""Files in buckets, of real servers on this machine."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
from etils import epath
from object_stores import Store

from looped_jax.data.files import sizes_in, write_whole
from looped_jax.errors import RunError
from looped_jax.storage import appended, cache, lease
from looped_jax.storage.appended import Appended
from looped_jax.storage.buckets import BucketError, BucketPath, in_bucket


def folder(store: Store, request: pytest.FixtureRequest) -> epath.Path:
    return epath.Path(f"{store}/{request.node.originalname}")


def test_every_address_of_a_bucket_is_a_path_of_ours_and_no_other_is() -> None:
    for address in ("gs://b/x", "s3://b/x"):
        path = epath.Path(address) / "y"
        assert isinstance(path, BucketPath) and isinstance(path.parent.resolve(), BucketPath)
        assert str(path) == f"{address}/y"
    assert not in_bucket("/tmp/gs:") and not in_bucket(pathlib.Path("s3:x"))


def test_a_file_is_written_whole_replaced_listed_and_removed(
    store: Store, request: pytest.FixtureRequest
) -> None:
    here = folder(store, request)
    assert not here.exists() and not here.is_dir()
    here.mkdir(parents=True)
    for content in ("one", "", "three" * 100_000):
        write_whole(here / "part" / "a.txt", content)
        assert (here / "part" / "a.txt").read_text() == content
    write_whole(here / "b.txt", b"bytes")
    assert here.is_dir() and sorted(p.name for p in here.iterdir()) == ["b.txt", "part"]
    assert [p.name for p in here.glob("*.txt")] == ["b.txt"]
    assert sizes_in(here) == {"b.txt": 5}
    (here / "b.txt").unlink()
    (here / "b.txt").unlink(missing_ok=True)
    here.rmtree()
    assert not here.exists()


def test_what_another_process_wrote_is_seen_at_once(
    store: Store, request: pytest.FixtureRequest
) -> None:
    here = folder(store, request)
    write_whole(here / "a", "1")
    assert sizes_in(here) == {"a": 1} and (here / "a").read_text() == "1"
    code = "import sys\nfrom etils import epath\nfrom looped_jax.data.files import write_whole\n"
    code += "[write_whole(epath.Path(sys.argv[1]) / name, '22') for name in 'ab']"
    subprocess.run([sys.executable, "-c", code, str(here)], check=True)
    assert sizes_in(here) == {"a": 2, "b": 2} and (here / "a").read_text() == "22"


def test_a_bucket_that_is_not_there_is_an_error_of_the_file_and_is_not_made(store: Store) -> None:
    path = epath.Path(f"{store.scheme}://none-such/run/a")
    path.parent.mkdir(parents=True, exist_ok=True)
    with pytest.raises(OSError) as caught:
        write_whole(path, "x")
    assert caught.value.strerror
    assert not path.exists()


def test_a_request_that_fails_for_a_moment_is_made_again(
    store: Store, request: pytest.FixtureRequest
) -> None:
    here, failed = folder(store, request), []

    def fault(method: str, path: str) -> int | None:
        if len(failed) < 2:
            failed.append(path)
            return 503
        return None

    store.network.fault = fault
    write_whole(here / "a", "x")
    store.network.fault = lambda method, path: None
    assert len(failed) == 2 and (here / "a").read_text() == "x"


def test_a_request_that_is_refused_is_an_error_with_its_reason(
    store: Store, request: pytest.FixtureRequest
) -> None:
    here = folder(store, request)
    store.network.fault = lambda method, path: 403
    with pytest.raises(OSError) as caught:
        write_whole(here / "a", "x")
    store.network.fault = lambda method, path: None
    assert caught.value.strerror and "\n" not in caught.value.strerror
    assert not (here / "a").exists()


def test_lines_appended_are_there_after_sync_and_go_on(
    store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(store, request) / "lines"
    with Appended(path) as file:
        file.write("1\n")
        assert not path.exists()  # A line a request would be slow.
        file.sync()
        assert path.read_text() == "1\n"
        before = len(store.network.requests)
        file.sync()
        assert len(store.network.requests) == before  # Nothing is new.
        file.write("2\n")
    monkeypatch.setattr(appended, "SECONDS", -1.0)
    with Appended(path) as file:
        file.write("3\n")
        assert path.read_text() == "1\n2\n3\n"


def test_a_copy_is_made_once_and_of_the_right_content_only(
    store: Store, request: pytest.FixtureRequest
) -> None:
    path, content = folder(store, request) / "a.bin", os.urandom(3_000_000)
    write_whole(path, content)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(RunError, match="not of the content"):
        cache.local_copy(path, len(content), digest[::-1])
    copy = cache.local_copy(path, len(content), digest)
    assert copy.read_bytes() == content and not in_bucket(copy)
    before = len(store.network.requests)
    assert cache.local_copy(path, len(content), digest) == copy
    assert len(store.network.requests) == before
    assert not [p.name for p in copy.parent.iterdir() if p.name.endswith(".tmp")]
    with pytest.raises(RunError, match=r"more than are free.*LOOPED_JAX_CACHE"):
        cache.local_copy(path, 1 << 60, digest[::-1])


def test_the_right_to_write_is_one_process_s_until_it_ends(
    store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "DEAD_SECONDS", 1.0)
    path, said = folder(store, request) / ".lock.json", []
    known = {"host": "here", "process": os.getpid(), "since": "today"}
    first, second = (lease.Lease(path, known, said.append) for _ in range(2))
    first.acquire(said.append)
    assert not said
    with pytest.raises(lease.Held):
        second.acquire(said.append)
    assert said and not second.is_held
    first.release()
    assert not path.exists()
    second.acquire(said.append)
    second.release()


@pytest.mark.parametrize("here", [True, False], ids=["on this machine", "elsewhere"])
def test_the_right_of_a_process_that_was_killed_is_taken_over(
    store: Store,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    here: bool,
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "DEAD_SECONDS", 1.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path, said = folder(store, request) / f"{here}.json", []
    known = {"host": "a", "process": ended.pid, "since": "b", "token": "c", "beat": 7}
    known["machine"] = lease._machine() if here else "another"
    write_whole(path, json.dumps(known))
    lost: list[str] = []
    mine = lease.Lease(path, {"host": "a", "process": os.getpid(), "since": "b"}, lost.append)
    mine.acquire(said.append)
    # Of this machine it is known; of another, it has to be seen that nothing moves.
    assert len(said) == (0 if here else 1)
    assert lease.is_alive(path)
    mine.check()
    write_whole(path, json.dumps(known))  # As one would who took this process for dead.
    assert mine._thread is not None
    mine._thread.join(timeout=30)
    assert len(lost) == 1 and "on a, since b, has taken" in lost[0]
    mine.release()
    assert path.exists()  # It is the other's.


def test_an_error_of_the_library_that_is_none_of_files_becomes_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from looped_jax.storage import buckets

    class Odd(Exception):
        pass

    def fails(*_: object, **__: object) -> None:
        raise Odd("no luck")

    monkeypatch.setattr(buckets.file_system(str(store)), "pipe_file", fails)
    with pytest.raises(BucketError, match="no luck"):
        write_whole(epath.Path(f"{store}/odd"), "x")


def test_an_object_is_read_in_parts_and_each_may_fail(
    store: Store, request: pytest.FixtureRequest
) -> None:
    path, content = folder(store, request) / "a.bin", os.urandom(12_000_000)
    write_whole(path, content)
    with path.open("rb") as file:
        assert file.read(5) == content[:5] and file.tell() == 5
        file.seek(7_000_000)
        assert file.read() == content[7_000_000:]
    with path.open("rb") as file:
        store.network.fault = lambda method, path: 403
        with pytest.raises(OSError) as caught:
            file.read(5)
        store.network.fault = lambda method, path: None
    assert caught.value.strerror


def test_a_holder_that_slept_looks_whose_the_right_is_before_it_goes_on(
    store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lost = folder(store, request) / ".lock.json", []
    known = {"host": "a", "process": os.getpid(), "since": "b"}
    mine = lease.Lease(path, known, lost.append)
    mine.acquire(lost.append)
    write_whole(path, json.dumps({**known, "token": "another"}))
    mine.check()  # It was renewed a moment ago: no request for each step.
    assert not lost
    now = lease._now
    monkeypatch.setattr(lease, "_now", lambda: now() + lease.DEAD_SECONDS)
    mine.check()
    assert len(lost) == 1
    mine.release()
