"""Object stores on this machine, and a network to them that fails when it is told to."""

import contextlib
import dataclasses
import http.client
import http.server
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from looped_jax.errors import UserError

SERVER = """
import sys, time
scheme = sys.argv[1]
if scheme == "s3":
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
else:
    from gcp_storage_emulator.server import create_server
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    port = server._api._httpd.socket.getsockname()[1]
print(port, flush=True)
while True:
    time.sleep(1)
"""
PACKAGES = {"s3": ("moto", "s3fs"), "gs": ("gcp_storage_emulator", "gcsfs")}


class Network:
    """Between a client and a store: passes each request on, or does what `fault` says of it."""

    def __init__(self, port: int):
        # Of a request's method and path: None, or a number of an HTTP error to answer with.
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        network, one_at_a_time = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self._body()
                network.requests.append((self.command, self.path))
                if status := network.fault(self.command, self.path):
                    return self._answer(status, {}, b"")
                with one_at_a_time:  # More than a few at once are too many for the server of gs.
                    there = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                    there.request(self.command, self.path, body, dict(self.headers))
                    answer = there.getresponse()
                    content = answer.read()
                    there.close()
                headers = {k: v for k, v in answer.getheaders() if k.lower() not in SKIPPED}
                if self.command == "HEAD":
                    headers["Content-Length"] = answer.getheader("Content-Length") or "0"
                return self._answer(answer.status, headers, content)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                del self.headers["Transfer-Encoding"]
                self.headers["Content-Length"] = str(sum(map(len, parts)))
                return b"".join(parts)

            def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(content)))
                with contextlib.suppress(ConnectionError):  # Of a client that was killed.
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = pass_on

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()


SKIPPED = ("transfer-encoding", "connection", "content-length", "date", "server")


@dataclasses.dataclass(frozen=True)
class Store:
    """A bucket on this machine."""

    scheme: str
    network: Network
    environment: dict[str, str]

    def __str__(self) -> str:
        return f"{self.scheme}://bucket"

    def names(self, folder: str) -> list[str]:
        """All objects of a folder."""
        from looped_jax.storage.buckets import file_system

        root = f"{self}/{folder}"
        found = file_system(root).find(root)
        return sorted(name.removeprefix(f"bucket/{folder}/") for name in found)


@contextlib.contextmanager
def served(scheme: str, cache: pathlib.Path) -> Iterator[Store]:
    """A store of a scheme with an empty bucket, and this process set up to find it."""
    for package in PACKAGES[scheme]:
        pytest.importorskip(package, reason=f"{package} comes with the extra test")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, scheme], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    network = Network(int(process.stdout.readline()))
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": network.address,
        "STORAGE_EMULATOR_HOST": network.address,
        "TENSORSTORE_GCS_HTTP_URL": network.address,
        "NO_GCE_CHECK": "true",  # No credentials of a machine of Google are looked for.
        "LOOPED_JAX_CACHE": str(cache),
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        if scheme == "s3":
            from looped_jax.storage.buckets import file_system

            file_system("s3://bucket").mkdir("bucket")
        yield Store(scheme, network, environment)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        _forget_file_systems()
        process.kill()
        network.close()


def _forget_file_systems() -> None:
    from looped_jax.storage.buckets import file_system

    for address in ("gs://bucket", "s3://bucket"):
        with contextlib.suppress(UserError):
            type(file_system(address)).clear_instance_cache()


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Returns when something is so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
