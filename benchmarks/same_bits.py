"""Whether two commits train the same models, to the last bit: the guard of a refactor.

    python -m benchmarks.same_bits OLD [NEW]          # NEW: the working tree; needs $PILE_DIR

Both train the quick start and the sweeps phop_small and pile_small of experiments/sweeps for
50 steps; all arrays of their checkpoints (parameters and optimizer) and all scalars of their
metrics.jsonl but those of speed are compared. Exit code 1 where something moved. About 12 minutes
on 2 CPU cores. What a commit computed is kept in --folder for the next comparison.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 50
SHORT = [f"--config.{key}={STEPS}" for key in ("train.steps", "eval.every", "checkpoint.every")]
SHORT.append("--config.eval.examples=256")
COMMANDS = {
    "quickstart": ["looped_jax.main", "--config=experiments/quickstart.py"],
    "phop_small": ["looped_jax.sweep", "--sweep=experiments/sweeps/phop_small.py"],
    "pile_small": ["looped_jax.sweep", "--sweep=experiments/sweeps/pile_small.py"],
}


def git(*arguments: str) -> str:
    """What git says."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def train(code: pathlib.Path, out: pathlib.Path) -> None:
    """Runs the commands of the code in a folder; a run that is done already is skipped."""
    for name, command in tqdm(COMMANDS.items(), desc=f"training in {code}", unit="command"):
        arguments = [*command, f"--workdir={out / name}", *SHORT]
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=code,
            env={**os.environ, "PYTHONPATH": str(code)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{' '.join(arguments)} in {code}: {done.stderr.strip()[-2000:]}")


def of_commit(commit: str, folder: pathlib.Path) -> pathlib.Path:
    """The folder of the runs of a commit, trained if they are not there."""
    out = folder / git("rev-parse", commit)
    with tempfile.TemporaryDirectory() as temporary:
        code = pathlib.Path(temporary) / "code"
        git("worktree", "add", "--detach", str(code), commit)
        try:
            train(code, out)
        finally:
            git("worktree", "remove", "--force", str(code))
    return out


def arrays(run: pathlib.Path) -> dict[str, np.ndarray]:
    """Path of each array of a run's last checkpoint -> its content."""
    last = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(last / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def scalars(run: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the machine."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def differences(old: pathlib.Path, new: pathlib.Path) -> Iterator[str]:
    """A line for each thing that is not the same in two runs."""
    before, after = arrays(old), arrays(new)
    for path in sorted({*before, *after}):
        if path not in before or path not in after:
            yield f"{path}: only in {'the old' if path in before else 'the new'} checkpoint"
        elif before[path].shape != after[path].shape:
            yield f"{path}: {before[path].shape} was, {after[path].shape} is"
        elif before[path].tobytes() != after[path].tobytes():
            most = np.max(np.abs(before[path].astype(float) - after[path].astype(float)))
            yield f"{path}: differs by up to {most:.2e}"
    if scalars(old) != scalars(new):
        yield "metrics.jsonl"


def main() -> None:
    """Trains with both, prints what moved."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", help="a commit; without it the working tree")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/same_bits"))
    options = parser.parse_args()
    folder = options.folder.absolute()
    old = of_commit(options.old, folder)
    if options.new:
        new = of_commit(options.new, folder)
    else:
        new = pathlib.Path(tempfile.mkdtemp())
        train(ROOT, new)
    runs = [path.parent.relative_to(old) for path in sorted(old.rglob("metrics.jsonl"))]
    moved = 0
    for run in runs:
        lines = list(differences(old / run, new / run))
        moved += bool(lines)
        print(f"{run}: {'the same' if not lines else ''}")
        print("".join(f"  {line}\n" for line in lines), end="")
    print(f"{len(runs)} runs, {moved} of them moved")
    sys.exit(moved > 0)


if __name__ == "__main__":
    main()
