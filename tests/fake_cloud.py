"""`gcloud` as far as launch/tpu_vm.sh needs it, on this machine: hosts are folders, ssh is a shell.

python tests/fake_cloud.py ARGUMENTS…, with FAKE_CLOUD, the folder of all it knows:
  state       of the TPU; not there: no TPU
  errors      a line for each coming call of `create` or `describe`: with what it fails, if any
  calls       a line of JSON for each call: its arguments
  hosts/N     the home of host N; HOSTS of them are made by `create`
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(os.environ.get("FAKE_CLOUD", "."))
# What stands for python3.11 on a host: its `-m venv` makes an environment that is the tests' own.
PYTHON = """#!/bin/sh
mkdir -p .venv/bin
echo 'export PATH={bin}:$PATH' >.venv/bin/activate
[ -z "${{JAX_NUM_PROCESSES:-}}" ] ||
    echo "export JAX_PROCESS_ID=$(basename "$HOME")" >>.venv/bin/activate
printf '#!/bin/sh\\necho "$@" >>"$HOME/pip"\\n' >.venv/bin/pip
chmod +x .venv/bin/pip
"""


def main(arguments: list[str]) -> int:
    with (CLOUD / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    if arguments[:2] == ["storage", "ls"]:
        return _list(arguments[2])
    assert arguments[:2] == ["compute", "tpus"], arguments
    verb, options = arguments[3], dict(a.split("=", 1) for a in arguments if "=" in a)
    state = CLOUD / "state"
    if verb in ("create", "describe") and (message := _error()):
        print(message, file=sys.stderr)
        return 1
    if verb == "create":
        assert not state.exists()
        for number in range(int(os.environ.get("HOSTS", "1"))):
            (CLOUD / "hosts" / str(number)).mkdir(parents=True)
        state.write_text("READY\n")
        return 0
    if not state.exists():
        print("ERROR: (gcloud) NOT_FOUND: Resource was not found.", file=sys.stderr)
        return 1
    if verb == "describe":
        print(state.read_text(), end="")
    elif verb == "delete":
        lose("GONE", CLOUD)
        state.unlink()
    else:
        assert state.read_text() == "READY\n"
        return max(_on(host, verb, arguments, options) for host in _hosts(options["--worker"]))
    return 0


def _error() -> str:
    path = CLOUD / "errors"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    path.write_text("".join(lines[1:]))
    return lines[0].strip() if lines else ""


def _hosts(worker: str) -> list[pathlib.Path]:
    hosts = sorted((CLOUD / "hosts").iterdir())
    return hosts if worker == "all" else [hosts[int(worker)]]


def _on(home: pathlib.Path, verb: str, arguments: list[str], options: dict[str, str]) -> int:
    if verb == "scp":
        shutil.copy(arguments[4], home / arguments[5].partition(":")[2])
        return 0
    (home / "bin").mkdir(exist_ok=True)
    python = home / "bin" / "python3.11"
    if not python.exists():
        python.write_text(PYTHON.format(bin=pathlib.Path(sys.executable).parent))
        python.chmod(0o755)
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    # As ssh has it: one string for the user's shell on the other side.
    shell = os.environ.get("FAKE_SHELL", "bash")
    return subprocess.run(
        [shell, "-c", options["--command"]],
        cwd=home,
        env={**os.environ, "HOME": str(home), "PATH": path},
    ).returncode


def _list(pattern: str) -> int:
    """gs://… is the folder `buckets`."""
    found = sorted((CLOUD / "buckets").glob(pattern.removeprefix("gs://")))
    for path in found:
        print(f"gs://{path.relative_to(CLOUD / 'buckets')}")
    return 0 if found else 1


def lose(state: str, cloud: pathlib.Path) -> None:
    """All hosts go, with what runs there and what they hold."""
    (cloud / "state").write_text(f"{state}\n")
    for home in (cloud / "hosts").iterdir():
        kill(home)
        shutil.rmtree(home)


def kill(home: pathlib.Path) -> None:
    """All that was started in the background on a host."""
    for process in pathlib.Path("/proc").iterdir():
        if process.name.isdigit() and process.name != str(os.getpid()):
            try:
                environment = (process / "environ").read_bytes().split(b"\0")
                inside = f"HOME={home}".encode() in environment
                if inside and os.getsid(int(process.name)) != os.getsid(0):
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
