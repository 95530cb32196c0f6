"""Disturbs training and preparing text at random, and starts the same command again each time.

    python -m benchmarks.endurance --kills=100

A run is disturbed in one way after the other: killed (SIGKILL) at a random moment, or as it saves,
or as it evaluates; stopped (SIGTERM); with a disk that is full after so many bytes; started twice
at once; by a clock that went back a day; with a bit flipped in its newest checkpoint. So is
preparing text, whose shards also vanish. When a command gets to its end, the result is compared
with that of one that was left alone: parameters and shards must be the same bits, metrics the same
numbers. A command that ends by itself before that must say one line and no more, and go on when it
is given again, after what the line asks for where it asks for something. Whatever else happens is
counted as lost, and shown; the exit code is then 1.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from benchmarks.common import machine, save

STEPS = 3000
EXPERIMENT = f"""
from looped_jax.config import default_config

def get_config():
    config = default_config()
    config.data.task = "group_z7_n4"
    config.model.update(plan="1x2", d_model=16, num_heads=4, d_ff=32)
    config.train.update(steps={STEPS}, batch_size=16, log_every=50, log_to=())
    config.checkpoint.update(every=150, keep=3)
    config.eval.update(every=300, examples=4096)
    return config
"""
TEXT = """
from looped_jax.config import default_config

def get_config():
    config = default_config()
    config.data.update(task="text", length=32, path="{path}")
    config.data.update(train_files="train-*.jsonl", validation_files="val.jsonl")
    config.prepare.update(block_kb=16, shards=6, workers=2)
    return config
"""
# Of a process, before anything else: its clock is a day behind.
CLOCK = """
import time
_now, _now_ns = time.time, time.time_ns
time.time = lambda: _now() - 86400
time.time_ns = lambda: _now_ns() - 86400 * 10**9
"""
WORDS = ("loop", "layer", "und", "тест", "⊗", "x")
LONGEST = 300.0  # Seconds after which a command hangs.


@dataclasses.dataclass
class Ended:
    """How a command ended: None where it was killed."""

    code: int | None
    errors: str

    @property
    def said(self) -> list[str]:
        return [line for line in self.errors.splitlines() if line.startswith("error: ")]

    @property
    def is_clear(self) -> bool:
        """One line, and no traceback."""
        return self.code in (1, 2) and len(self.said) == 1 and "Traceback" not in self.errors


class Part:
    """A command, what it writes, and what it should have written in the end."""

    name: str

    def __init__(self, folder: pathlib.Path, rng: random.Random):
        self.folder, self.rng = folder, rng
        self.here = folder / "disturbed"
        self.counts: collections.Counter[str] = collections.Counter()
        self.went_on: collections.Counter[str] = collections.Counter()
        self.lines: collections.Counter[str] = collections.Counter()
        self.compared = 0
        self.lost: list[str] = []
        begun = time.monotonic()
        assert self.finish(self.start(folder / "alone")).code == 0
        self.seconds = time.monotonic() - begun
        self.expected = self.result(folder / "alone")

    def command(self, output: pathlib.Path) -> list[str]:
        raise NotImplementedError

    def result(self, output: pathlib.Path) -> Any:
        raise NotImplementedError

    def ways(self) -> dict[str, Callable[[], Ended]]:
        """Name of a disturbance -> a start that has it."""
        raise NotImplementedError

    def start(self, output: pathlib.Path, **kwargs: Any) -> "subprocess.Popen[str]":
        """The command, which writes there."""
        pipes: dict[str, Any] = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen([sys.executable, "-m", *self.command(output)], **pipes, **kwargs)

    def finish(self, process: "subprocess.Popen[str]") -> Ended:
        """Waits for its end."""
        try:
            _, errors = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            process.kill()
            return Ended(99, f"it hung: {process.communicate()[1]}")
        return Ended(process.returncode, errors)

    def kill(self, process: "subprocess.Popen[str]", moment: float) -> Ended:
        """Kills it so many seconds from now, if it has not ended by then."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moment)
        was_running = process.poll() is None
        process.kill()
        _, errors = process.communicate()
        return Ended(None if was_running else process.returncode, errors)

    def moment(self) -> float:
        """A random one within the time that the whole command takes."""
        return self.rng.uniform(0, self.seconds)

    def killed(self) -> Ended:
        """At a random moment."""
        return self.kill(self.start(self.here), self.moment())

    def full_disk(self) -> Ended:
        """A write beyond a random size fails, as on a full disk."""
        most = int(10 ** self.rng.uniform(1, 4.5))
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # noqa: E731
        return self.finish(self.start(self.here, preexec_fn=limit))

    def clock_back(self) -> Ended:
        """Its clock is a day behind what is there."""
        folder = self.folder / "clock"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(CLOCK)
        path = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
        process = self.start(self.here, env={**os.environ, "PYTHONPATH": path})
        return self.kill(process, self.moment())

    def flip(self, path: pathlib.Path) -> None:
        """Flips a random bit of a file."""
        content = bytearray(path.read_bytes())
        content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)

    def mend(self, ended: Ended) -> bool:
        """Does what the line of a command asks for; whether it asks for something."""
        return False

    def disturb(self) -> None:
        """One disturbance, and what has to come of it."""
        way = self.rng.choice(sorted(self.ways()))
        self.counts[way] += 1
        ended = self.ways()[way]()
        self.judge(way, ended)

    def judge(self, way: str, ended: Ended) -> None:
        """Counts what a start came to, and compares the result where it came to its end."""
        if ended.code in (None, 0):
            self.went_on[way] += 1
        elif ended.is_clear:
            self.lines[way] += 1
            self.mend(ended)
        else:
            self.lost.append(f"{way}: ended with {ended.code}: {ended.errors[-600:]}")
        if ended.code == 0 and self.is_finished():
            self.compare(way)

    def is_finished(self) -> bool:
        raise NotImplementedError

    def compare(self, way: str) -> None:
        """Holds the result against that of the command that was left alone; begins anew."""
        self.compared += 1
        if self.result(self.here) != self.expected:
            kept = self.here.with_name(f"lost{len(self.lost)}")
            shutil.copytree(self.here, kept)
            self.lost.append(f"{way}: another result in {kept}")
        shutil.rmtree(self.here)

    def last(self) -> None:
        """Without a disturbance, whatever is there must come to its end."""
        for _ in range(3):  # A line may ask for something, twice at most.
            ended = self.finish(self.start(self.here))
            if ended.code == 0:
                break
            if not (ended.is_clear and self.mend(ended)):
                break
        if ended.code == 0:
            self.compare("left alone at last")
        else:
            self.lost.append(f"at last: ended with {ended.code}: {ended.errors[-600:]}")


class Training(Part):
    """Training a tiny model."""

    name = "training"

    def command(self, output: pathlib.Path) -> list[str]:
        experiment = self.folder / "tiny.py"
        experiment.write_text(EXPERIMENT)
        return ["looped_jax.main", f"--config={experiment}", f"--workdir={output}"]

    def result(self, output: pathlib.Path) -> Any:
        from etils import epath

        from looped_jax.training.checkpoint import read_meta

        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        metrics = [{k: v for k, v in line.items() if k[:5] != "perf/"} for line in lines]
        return read_meta(epath.Path(output / "checkpoints" / str(STEPS)))["checksums"], metrics

    def is_finished(self) -> bool:
        return (self.here / "checkpoints" / str(STEPS)).exists()

    def ways(self) -> dict[str, Callable[[], Ended]]:
        return {
            "killed": self.killed,
            "killed as it saves": self.killed_in_a_save,
            "killed as it evaluates": self.killed_in_an_evaluation,
            "stopped": self.stopped,
            "disk full": self.full_disk,
            "two at once": self.two_at_once,
            "clock a day back": self.clock_back,
            "bit flipped in the newest checkpoint": self.flipped,
        }

    def until(self, process: "subprocess.Popen[str]", true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONGEST
        while process.poll() is None and not true() and time.monotonic() < deadline:
            time.sleep(0.0005)

    def steps(self) -> list[pathlib.Path]:
        """Checkpoints, in order; also those that are being written."""
        folder = self.here / "checkpoints"
        return sorted(folder.glob("[0-9]*"), key=lambda p: int(re.match(r"\d+", p.name)[0]))

    def killed_in_a_save(self) -> Ended:
        """As a checkpoint is being written."""
        process, skipped = self.start(self.here), self.rng.randrange(3)
        seen: set[str] = set()

        def writes() -> bool:
            seen.update(p.name for p in self.steps() if not p.name.isdigit())
            return len(seen) > skipped

        self.until(process, writes)
        return self.kill(process, self.rng.uniform(0, 0.03))

    def killed_in_an_evaluation(self) -> Ended:
        """Shortly after a step that is evaluated was begun to be saved, which comes first."""
        process = self.start(self.here)
        known = {p.name for p in self.steps()}

        def evaluates() -> bool:
            new = [re.match(r"\d+", p.name)[0] for p in self.steps() if p.name not in known]
            return any(int(step) % 300 == 0 for step in new)

        self.until(process, evaluates)
        return self.kill(process, self.rng.uniform(0.02, 0.3))

    def stopped(self) -> Ended:
        """By SIGTERM, once it trains."""
        process, before = self.start(self.here), len(self.steps())
        self.until(process, lambda: len(self.steps()) > before)
        time.sleep(self.rng.uniform(0, 0.5))
        process.send_signal(signal.SIGTERM)
        return self.finish(process)

    def two_at_once(self) -> Ended:
        """One of them has to be refused in a line, and the other goes on; that is killed."""
        both = [self.start(self.here), self.start(self.here)]
        deadline = time.monotonic() + LONGEST
        while all(p.poll() is None for p in both) and time.monotonic() < deadline:
            time.sleep(0.01)
        first, second = sorted(both, key=lambda p: p.poll() is None)
        refused = self.finish(first)
        other = self.kill(second, self.moment())
        if refused.code == 2 and refused.is_clear and "is in use" in refused.said[0]:
            return other
        return Ended(98, f"{refused.code}: {refused.errors[-300:]} beside {other.code}")

    def flipped(self) -> Ended:
        """In any of its files, before a start that is killed if it goes on."""
        complete = [p for p in self.steps() if p.name.isdigit()]
        if complete:
            files = [p for p in complete[-1].rglob("*") if p.is_file() and p.stat().st_size]
            self.flip(self.rng.choice(files))
        return self.kill(self.start(self.here), self.seconds)

    def mend(self, ended: Ended) -> bool:
        found = re.search(r"checkpoint (\S+) cannot be read .* remove that folder", ended.errors)
        if found:
            shutil.rmtree(found[1])
        return bool(found)


class Preparing(Part):
    """Preparing text."""

    name = "preparing"

    def command(self, output: pathlib.Path) -> list[str]:
        source = self.folder / "text"
        if not source.exists():
            source.mkdir()
            words = random.Random(0)
            for name in ("train-0", "train-1", "val"):
                texts = (" ".join(words.choices(WORDS, k=60)) for _ in range(900))
                lines = (json.dumps({"text": text}) + "\n" for text in texts)
                (source / f"{name}.jsonl").write_text("".join(lines))
        experiment = self.folder / "text.py"
        experiment.write_text(TEXT.format(path=source))
        return ["looped_jax.prepare", f"--config={experiment}", f"--output={output}"]

    def result(self, output: pathlib.Path) -> Any:
        files = (path for path in output.rglob("*") if path.is_file())
        return {str(path.relative_to(output)): path.read_bytes() for path in files}

    def is_finished(self) -> bool:
        return (self.here / "manifest.json").exists()

    def ways(self) -> dict[str, Callable[[], Ended]]:
        return {
            "killed": self.killed,
            "disk full": self.full_disk,
            "clock a day back": self.clock_back,
            "two at once": self.two_at_once,
            "shard vanished": self.vanished,
        }

    def two_at_once(self) -> Ended:
        """Both make the same; one is killed."""
        first, second = self.start(self.here), self.start(self.here)
        killed = self.kill(first, self.moment())
        ended = self.finish(second)
        return ended if killed.code in (None, 0) or killed.is_clear else killed

    def vanished(self) -> Ended:
        """A shard, of a preparation that is finished or not."""
        shards = sorted(self.here.glob("*.array_record"))
        if shards:
            self.rng.choice(shards).unlink()
        return self.finish(self.start(self.here))


def main(kills: int, seed: int, parts: list[str], saves: bool = True) -> int:
    """Disturbs each part so often, and shows what came of it; how much was lost."""
    rng = random.Random(seed)
    results: dict[str, Any] = {"machine": machine(), "seed": seed}
    lost: list[str] = []
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(f"{'':10}{'disturbed by':40}{'times':>6}{'went on':>9}{'one line':>10}")
    for kind in (Training, Preparing):
        if kind.name not in parts:
            continue
        name = tempfile.mkdtemp()  # What was lost is kept.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{name}/cache"
        begun = time.monotonic()
        part = kind(pathlib.Path(name), rng)
        for _ in tqdm(range(kills), desc=kind.name, unit="disturbance"):
            part.disturb()
        part.last()
        for way, times in sorted(part.counts.items()):
            print(f"{kind.name:10}{way:40}{times:6}{part.went_on[way]:9}{part.lines[way]:10}")
        print(f"{kind.name:10}compared: {part.compared}, lost: {len(part.lost)}")
        for what in part.lost:
            print(f"  {what}")
        lost += part.lost
        if not part.lost:
            shutil.rmtree(name)
        results[kind.name] = {
            "seconds": round(time.monotonic() - begun),
            "disturbed": {
                way: {"times": n, "went_on": part.went_on[way], "one_line": part.lines[way]}
                for way, n in sorted(part.counts.items())
            },
            "compared": part.compared,
            "lost": part.lost,
        }
    if saves:
        save("endurance", results)
    return len(lost)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="disturbances of each command")
    parser.add_argument("--seed", type=int, default=0, help="of what is done when")
    parser.add_argument("--parts", default="training,preparing", help="which commands")
    ARGUMENTS = parser.parse_args()
    sys.exit(1 if main(ARGUMENTS.kills, ARGUMENTS.seed, ARGUMENTS.parts.split(",")) else 0)
