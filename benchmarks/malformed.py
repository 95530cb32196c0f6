"""A thousand malformed inputs, and what the commands make of each.

Inputs with something wrong in them (benchmarks/malformed_inputs.py: command lines, configs, files
of users, of runs and of others) are given to the commands, each in a folder of its own. Right is:
exit code 2 (1 where a run is damaged), nothing on stderr but one `error:` line, which names what is
wrong, no file left behind, within a minute. A damaged line of a run's records is right where the
command goes on and says which it left out.

    python -m benchmarks.malformed [--count=1000] [--seed=0] [--kind=plan] [--save]
"""

import argparse
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import resource
import runpy
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection

import zstandard
from tqdm import tqdm

from benchmarks.common import machine, save
from benchmarks.malformed_inputs import RUNS, SMALL, Case, cases

SECONDS = 60.0  # Within which a command has to have said what is wrong.
MEMORY = 16 << 30  # Bytes that a process may ask for.
LONGEST = 1000  # Characters of a line that anyone reads.


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command did. ``left``: files that were not there before, or are others now."""

    code: int | None  # None: it hung, or the process died.
    stdout: str
    stderr: str
    left: tuple[str, ...]
    seconds: float


def complaint(case: Case, outcome: Outcome) -> str:
    """What is wrong with how a case was answered; empty if nothing."""
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if outcome.code is None:
        return "hung or died"
    if "Traceback" in outcome.stderr:
        return "traceback"
    if outcome.code not in case.codes:
        return f"exit code {outcome.code}"
    said = outcome.stderr + outcome.stdout
    if outcome.code == 0:
        named = any(name in said for name in case.names)
        return "" if named else f"does not say {case.names[0]}"
    if len(errors) != 1 or lines != errors:
        return f"{len(lines)} lines on stderr"
    if len(errors[0]) > LONGEST:
        return f"a line of {len(errors[0])} characters"
    if not any(name in errors[0] for name in case.names):
        return f"does not name {case.names[0][:40]}"
    if outcome.left and outcome.code == 2:
        return f"left {', '.join(outcome.left[:3])}"
    return ""


def files_of(folder: pathlib.Path) -> dict[str, bytes | None]:
    """Files with their content, and folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


@contextlib.contextmanager
def captured(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """stdout and stderr of this process, of libraries in other languages too."""
    said: dict[str, str] = {}
    kept = {}
    for number, name in ((1, "stdout"), (2, "stderr")):
        kept[number] = os.dup(number)
        with (folder / name).open("wb") as file:
            os.dup2(file.fileno(), number)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True)
        for number in (1, 2)
    )
    try:
        yield said
    finally:
        sys.stdout, sys.stderr = streams
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(kept[number], number)
            os.close(kept[number])
            said[name] = (folder / name).read_text(errors="replace")


def run_command(module: str, arguments: tuple[str, ...]) -> int:
    """`python -m looped_jax.MODULE ARGUMENTS` in this process; its exit code."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(f"looped_jax.{module}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def answered(case: Case, runs: pathlib.Path) -> Outcome:
    """Does what a case says, in a folder of its own."""
    with tempfile.TemporaryDirectory() as text:
        folder, beside = pathlib.Path(text) / "here", pathlib.Path(text)
        folder.mkdir()
        if case.run:
            shutil.copytree(runs / case.run, folder / case.run)
        for name, content in case.files.items():
            path = folder / name
            path.unlink(missing_ok=True)
            if content is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        before = files_of(folder)
        home = os.getcwd()
        os.chdir(folder)
        start = time.perf_counter()
        try:
            with captured(beside) as said:
                code = run_command(case.module, case.arguments)
        finally:
            os.chdir(home)
        seconds = time.perf_counter() - start
        after = files_of(folder)
        left = tuple(sorted(p for p in {*before, *after} if before.get(p, 0) != after.get(p, 0)))
        return Outcome(code, said["stdout"], said["stderr"], left, seconds)


def write_shards(folder: pathlib.Path) -> None:
    """A little text for training and validation."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train-0", "val"):
        record = json.dumps({"text": f"{name}: {'of loops ' * 20}", "meta": {}}) + "\n"
        content = zstandard.ZstdCompressor().compress(record.encode() * 40)
        (folder / f"{name}.jsonl.zst").write_bytes(content)


def make_runs(folder: pathlib.Path) -> None:
    """Trains RUNS, whole, in ``folder``."""
    for name, overrides in RUNS.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (folder / "small.py").write_bytes(SMALL)
        home = os.getcwd()
        os.chdir(folder)
        write_shards(folder / "shards")
        try:
            given = tuple(f"--config.{override}" for override in overrides)
            with captured(folder) as said:
                code = run_command("main", ("--config=small.py", f"--workdir={name}", *given))
                code = code or run_command("evaluate", (f"--workdir={name}", "--loops=1,2"))
        finally:
            os.chdir(home)
        if code:
            raise RuntimeError(said["stderr"])
    shutil.move(folder / "shards", folder / "text/shards")


def work(pipe: Connection, runs: pathlib.Path) -> None:
    """A process that makes the runs, if they are not there, and answers cases until told to end."""
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))  # Others work on this machine.
    warnings.filterwarnings("ignore", message=".*found in sys.modules")
    if not (runs / "text/shards").exists():
        make_runs(runs)
    pipe.send(None)  # Ready.
    while (case := pipe.recv()) is not None:
        pipe.send(answered(case, runs))


class Worker:
    """A process for cases; another one when a case hung or killed it."""

    def __init__(self, runs: pathlib.Path):
        self._runs = runs
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, self._runs), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def answer(self, case: Case) -> Outcome:
        self._pipe.send(case)
        try:
            if self._pipe.poll(SECONDS):
                outcome: Outcome = self._pipe.recv()
                slow = outcome.seconds > SECONDS
                return dataclasses.replace(outcome, code=None) if slow else outcome
        except EOFError:
            pass
        self._process.kill()
        self._process.join()
        self._start()
        return Outcome(None, "", "", (), SECONDS)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join()


def table(counts: dict[str, list[int]]) -> str:
    """Tried and right, by kind."""
    lines = [f"{'kind':22}{'tried':>6}{'right':>7}"]
    rows = {
        **counts,
        "all": [sum(c[0] for c in counts.values()), sum(c[1] for c in counts.values())],
    }
    lines += [f"{kind:22}{tried:>6}{right:>7}" for kind, (tried, right) in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Makes the runs, tries all cases, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="of this kind only")
    parser.add_argument("--runs", default="", help="where the runs lie that are damaged, if kept")
    parser.add_argument("--save", action="store_true", help="in benchmarks/results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as text, contextlib.ExitStack() as stack:
        runs = pathlib.Path(arguments.runs or text).absolute()
        counts: dict[str, list[int]] = {}
        wrong = []
        worker = stack.enter_context(Worker(runs))
        for case in tqdm(cases(arguments.count, arguments.seed, runs), unit="case"):
            if arguments.kind not in case.kind:
                continue
            outcome = worker.answer(case)
            of_kind = counts.setdefault(case.kind, [0, 0])
            said = complaint(case, outcome)
            of_kind[0] += 1
            of_kind[1] += not said
            if said:
                last = outcome.stderr.strip().splitlines()[-1:] or [""]
                wrong.append({"kind": case.kind, "input": str(case), "complaint": said})
                tqdm.write(f"{case.kind}: {said}: {case}\n    {last[0][:300]}")
    print(table(counts))
    if arguments.save:
        save(
            "malformed",
            {"machine": machine(), "seed": arguments.seed, "counts": counts, "wrong": wrong},
        )


if __name__ == "__main__":
    main()
