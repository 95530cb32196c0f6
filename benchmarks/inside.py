"""Where in the loops the answer of p-hop and of variable assignment appears: docs/inside.md.

Small models of both tasks, looped and not, of equal FLOPs, are trained by looped_jax.main with
several seeds (those of variable assignment are language models on bytes, docs/evaluate.md). Then
each is asked at which loop or layer its state says the answer and what is on the way to it (beside
the same model with fresh parameters), what leaving a loop or layer out costs, and whose answer it
says when another example's state is put where the answer is asked for. Runs in --out are kept and
gone on with.

    python -m benchmarks.inside --out=runs/inside_study
"""

import argparse
import pathlib
import subprocess
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import looped_jax
from benchmarks.common import machine, save
from experiments.sweeps.phop_small import SMALL
from looped_jax.inside.decoded import answered, decoded
from looped_jax.inside.effects import usual_changes
from looped_jax.inside.opened import Opened
from looped_jax.inside.questions import Questions, questions

ROOT = pathlib.Path(__file__).parents[1]
TASKS = {"phop_p2_n16": "p-hop: two hops", "varassign_depth0_math": "variable assignment"}
PLANS = {"phop_p2_n16": ("1x3", "3x1"), "varassign_depth0_math": ("2x2", "4x1")}
SEEDS = {"phop_p2_n16": (1, 2, 3), "varassign_depth0_math": (1, 2)}
TRAINING = {
    "phop_p2_n16": (
        "experiments/phop.py",
        {**SMALL, "train.batch_size": 128, "eval.every": 500, "eval.examples": 2048},
    ),
    "varassign_depth0_math": ("experiments/assignment.py", {"eval.every": 1500}),
}
EXAMPLES = 1024


def run(*command: str) -> None:
    """Of the project's root; SystemExit if it failed."""
    line = [sys.executable, "-m", *command]
    if (ended := subprocess.run(line, cwd=ROOT, stdout=sys.stderr, check=False)).returncode:
        raise SystemExit(f"{' '.join(line)} ended with {ended.returncode}")


def trained(task: str, plan: str, seed: int, out: pathlib.Path) -> Opened:
    """The model, trained by the command that a user would type."""
    experiment, keys = TRAINING[task]
    keys = {**keys, "seed": seed}
    if task.startswith("varassign"):
        keys["data.path"] = documents = out / "programs_depth0"
        if not documents.exists():
            made_by = "looped_jax.data.tasks.assignment_documents"
            run(made_by, "--depth=0", f"--out={documents}")
    folder = out / f"{task}_{plan}_{seed}"
    overrides = [f"--config.{key}={value}" for key, value in keys.items()]
    run("looped_jax.main", f"--config={experiment}:{plan}", f"--workdir={folder}", *overrides)
    model: Opened = looped_jax.load(folder)
    return model


def patched(model: Opened, asked: Questions) -> list[dict[str, float]]:
    """After each loop: how often the model begins the own answer, and how often that of another
    example whose state is put where the answer is asked for. Pairs are of one length and have
    different answers."""
    place = int(np.bincount(asked.place_N).argmax())
    alike = np.flatnonzero(asked.place_N == place)
    own, other = alike[: len(alike) // 2], alike[len(alike) // 2 :][: len(alike) // 2]
    answer_N = np.asarray(
        [row[where] for row, where in zip(asked.targets, asked.place_N, strict=True)]
    )
    differ = answer_N[own] != answer_N[other]
    own, other = own[differ], other[differ]

    def rows(which: np.ndarray) -> list[list[int]]:
        return [asked.tokens[n][: place + 1] for n in which]

    found = []
    for loop in range(1, model.plan.segments[0].loops + 1):
        changed = model.patched(rows(other), loop, [place])
        said_N = changed.logits(rows(own))[:, place].argmax(-1)
        shares = {"own": said_N == answer_N[own], "other": said_N == answer_N[other]}
        found.append({name: float(np.mean(values)) for name, values in shares.items()})
    return found


def measured(model: Opened, task: str) -> dict[str, Any]:
    """All of one model."""
    asked = questions(model, task, "test", EXAMPLES)

    def exact_match(changed: Opened) -> float:
        return float(answered(changed, asked)[0][-1])

    left_out = {text: exact_match(model.intervened(text)) for text in one_left_out(model)}
    return {
        "held": decoded(model, task, EXAMPLES).as_json(),
        "left_out": left_out,
        "patched": patched(model, asked) if model.plan.looped else None,
    }


def one_left_out(model: Opened) -> list[str]:
    """Each loop, of a plan without loops each layer."""
    return [text for text in usual_changes(model) if text.startswith(("skip", "layer"))]


def table(results: dict[str, Any]) -> str:
    """Markdown, in percent: means over seeds, of what was asked loop by loop in their order."""
    heads = ("task", "plan", "exact match by seed", "stopped after 1, 2, …")
    heads = (*heads, "without 1, 2, …", "other's state after 1, 2, …")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for task, of_plans in results.items():
        for plan, of_seeds in of_plans.items():
            read_SL = [one["held"]["read_L"] for one in of_seeds]
            whole = "skip" if of_seeds[0]["patched"] else "layer"
            left_out = [
                [value for text, value in one["left_out"].items() if text.startswith(whole)]
                for one in of_seeds
            ]
            columns = [np.mean(read_SL, axis=0), np.mean(left_out, axis=0)]
            if of_seeds[0]["patched"]:
                others = [[of["other"] for of in one["patched"]] for one in of_seeds]
                columns.append(np.mean(others, axis=0))
            cells = [
                task,
                plan.replace("x", "⊗"),
                *map(_percent, [[r[-1] for r in read_SL], *columns]),
            ]
            lines.append("| " + " | ".join(cells + [""] * (len(heads) - len(cells))) + " |")
    return "\n".join(lines)


def _percent(values: Any) -> str:
    return ", ".join(f"{100 * value:.0f}" for value in values)


def picture(results: dict[str, Any], to: pathlib.Path) -> None:
    """For each task: exact match by depth, and what probes find in both models and in the looped
    one with fresh parameters; means over seeds."""
    figure, axes = plt.subplots(
        *(len(TASKS), 4), figsize=(12, 6.4), layout="constrained", width_ratios=(1.5, 1, 1, 1)
    )
    for row, (task, words) in zip(axes, TASKS.items(), strict=True):
        looped, plain = PLANS[task]
        for plan, color in ((looped, "tab:blue"), (plain, "tab:orange")):
            read_SL = 100 * np.asarray([one["held"]["read_L"] for one in results[task][plan]])
            unit, each = ("loops", int(plan[0])) if plan == looped else ("layers", 1)
            depth = each * np.arange(1, read_SL.shape[1] + 1)  # In layers gone through.
            label = f"{plan.replace('x', '⊗')}, after its {unit}"
            row[0].plot(depth, read_SL.mean(0), c=color, marker="o", label=label)
            row[0].fill_between(depth, read_SL.min(0), read_SL.max(0), color=color, alpha=0.2, lw=0)
        row[0].set(title=words, ylabel="exact match had it stopped there, %", ylim=(0, 103))
        row[0].xaxis.get_major_locator().set_params(integer=True)
        row[0].set_xlabel("layers gone through")
        row[0].grid(alpha=0.3)
        row[0].legend(frameon=False, fontsize=8)
        panels = [(looped, "probed_QL"), (plain, "probed_QL"), (looped, "fresh_QL")]
        for axis, (plan, field) in zip(row[1:], panels, strict=True):
            of_seeds = [one["held"] for one in results[task][plan]]
            values_QL = 100 * np.mean([one[field] for one in of_seeds], axis=0)
            image = axis.imshow(values_QL, vmin=0, vmax=100, cmap="Greens", aspect="auto")
            for (q, n), value in np.ndenumerate(values_QL):
                color = "white" if value > 60 else "black"
                axis.text(n, q, f"{value:.0f}", ha="center", va="center", fontsize=8, c=color)
            fresh = ", fresh parameters" if field == "fresh_QL" else ""
            axis.set_title(plan.replace("x", "⊗") + fresh, fontsize=10)
            axis.set_xticks(range(values_QL.shape[1]), range(1, values_QL.shape[1] + 1))
            axis.set_xlabel("layer" if plan == plain else "loop")
            named = of_seeds[0]["names"] if axis is row[1] else [""] * len(values_QL)
            axis.set_yticks(range(len(values_QL)), named, fontsize=8)
        figure.colorbar(image, ax=row[-1], label="accuracy of the probe, %")
    figure.savefig(to, dpi=130, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Trains, measures, saves, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=pathlib.Path)
    out = parser.parse_args().out.resolve()
    results: dict[str, Any] = {task: {plan: [] for plan in PLANS[task]} for task in TASKS}
    arms = [(task, plan, seed) for task in TASKS for seed in SEEDS[task] for plan in PLANS[task]]
    for task, plan, seed in tqdm(arms, unit="model"):
        model = trained(task, plan, seed, out)
        results[task][plan].append(measured(model, task))
        found = {"machine": machine(), "training": TRAINING, "seeds": SEEDS, "tasks": results}
        save("inside", found)
    print(table(results))
    picture(results, ROOT / "docs" / "images" / "inside_study.png")


if __name__ == "__main__":
    main()
