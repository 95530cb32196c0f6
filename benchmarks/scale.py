"""The paper's language models on TPU slices, compiled ahead of time: the tables of docs/scale.md.

    python -m benchmarks.scale            # compile what is missing, then write the tables
    python -m benchmarks.scale --tables   # only write them

Needs the TPU compiler (`pip install 'jax[tpu]'`) and no TPU; about a minute per program. Each
program is compiled by `python -m looped_jax.compile` in a process of its own; what it printed is
kept in benchmarks/results/scale.json, so that the same command goes on where it stopped.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

from tqdm import tqdm

from benchmarks.common import RESULTS
from experiments.pile import FAMILY

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOC = ROOT / "docs" / "scale.md"
SHARDED = {"mesh.fsdp": "16", "mesh.data": "-1"}
BY_LAYER = {"model.remat": "layer", "model.saved_names": "()"}
# The other reading of "1.5B parameters", see experiments/pile.py.
VOCABULARY_256K = BY_LAYER | {
    "model.mlp": "gelu",
    "model.tied_output": "true",
    "model.vocab_size": "256000",
}
# Topology -> what differs from the config, 512 rows of 1280 tokens, on it.
TOPOLOGIES = {
    "v5e:8x8": {},
    "v5p:4x4x4": {},
    "v4:4x4x4": {},
    "v5p:8x8x16": {"train.batch_size": "8192"},
}
# Meshes of 64 chips for rows that are eight times as long, as many tokens a step.
LONG_ROWS = {
    "fsdp=16, data=4": {"mesh.fsdp": "16", "mesh.data": "4"},
    "fsdp=16, sequence=4": {"mesh.fsdp": "16", "mesh.data": "1", "mesh.sequence": "4"},
    "fsdp=4, sequence=16": {"mesh.fsdp": "4", "mesh.data": "1", "mesh.sequence": "16"},
}
PLANS = (*FAMILY, "4x1,4x4,4x1")
# Compile times of these are compared, one after another in each round.
DEPTHS = ("12x1", "4x6", "24x1")
ROUNDS = 3


def programs() -> dict[str, tuple[str, str, dict[str, str]]]:
    """Name -> (plan, topology, overrides) of all that is compiled."""
    cells: dict[str, tuple[str, str, dict[str, str]]] = {}
    for plan in ("12x2", "24x1"):
        cells[f"256k {plan} v5e:8x8"] = (plan, "v5e:8x8", SHARDED | VOCABULARY_256K)
        on_16 = SHARDED | VOCABULARY_256K | {"train.grad_accumulation": "4"}
        cells[f"256k {plan} v5e:4x4"] = (plan, "v5e:4x4", on_16)
    for gather in ("layer", "segment"):
        for plan in ("24x1", "12x2", "6x4", "4x6"):
            gathered = SHARDED | BY_LAYER | {"model.gather": gather}
            cells[f"gather {gather} {plan}"] = (plan, "v5e:8x8", gathered)
    for topology, rows in (("v5p:4x4x4", "512"), ("v5p:4x8x8", "2048"), ("v5p:8x8x16", "8192")):
        cells[f"weak {topology}"] = ("12x2", topology, SHARDED | {"train.batch_size": rows})
    for mesh, own in LONG_ROWS.items():
        long = own | BY_LAYER | {"train.batch_size": "64", "data.length": "10240"}
        cells[f"long {mesh}"] = ("12x2", "v5e:8x8", long)
    for number in range(ROUNDS):
        for plan in DEPTHS:
            cells[f"compile {number} {plan}"] = (plan, "v5p:4x4x4", SHARDED)
    for topology, own in TOPOLOGIES.items():
        for plan in PLANS:
            cells[f"{plan} {topology}"] = (plan, topology, SHARDED | own)
    return cells


def compile_one(plan: str, topology: str, overrides: dict[str, str]) -> dict[str, Any]:
    """What looped_jax.compile prints; its one line of error in `error` if it fails."""
    arguments = [f"--config=experiments/pile.py:{plan}", f"--topology={topology}"]
    arguments += [f"--config.{key}={value}" for key, value in overrides.items()]
    command = [sys.executable, "-m", "looped_jax.compile", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1], "command": command[1:]}
    return json.loads(done.stdout) | {"command": command[1:]}


def gigabytes(number: float) -> str:
    """Two digits are enough to read."""
    return f"{number / 1e9:.1f}"


def collectives(found: dict[str, Any]) -> str:
    """Bytes by kind, the small ones left out."""
    kinds = found["collective_bytes_per_device"].items()
    return ", ".join(f"{kind} {gigabytes(n)}" for kind, n in sorted(kinds) if n > 5e7)


def cells_of(found: dict[str, Any]) -> list[str]:
    """Columns that all tables share."""
    memory = found["bytes_per_device"]
    fits = "yes" if found["fits"] else "**no**"
    row = [f"{found['compile_seconds']:.0f}", gigabytes(memory["peak"]), fits]
    if "estimate" not in found:
        return [*row, "", "", "", ""]
    low, high = found["estimate"]["step_seconds"]
    best, worst = found["estimate"]["mfu"]
    flops = f"{found['flops_per_device'] / 1e12:.0f}"
    return [*row, flops, collectives(found), f"{low:.2f} – {high:.2f}", f"{worst:.0%} – {best:.0%}"]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


COLUMNS = [
    "compile, s",
    "peak memory, GB",
    "fits",
    "TFLOP",
    "collectives, GB",
    "step, s",
    "MFU",
]


def tables(results: dict[str, dict[str, Any]]) -> str:
    """What stands between the marks in docs/scale.md."""
    lines: list[str] = []
    for topology in TOPOLOGIES:
        there = {p: results.get(f"{p} {topology}") for p in PLANS}
        rows = [
            [f"`{p}`", f"{r['parameters'] / 1e9:.2f}", *cells_of(r)]
            for p, r in there.items()
            if r and "error" not in r
        ]
        if rows:
            batch = int(TOPOLOGIES[topology].get("train.batch_size", 512))
            lines += [f"**{topology}**, {batch:,} rows of 1,280 tokens", ""]
            lines += [*table(["plan", "parameters, 1e9", *COLUMNS], rows), ""]
    lines += [
        "**The same with a tied vocabulary of 256,000 and an ungated MLP** (`remat=layer`)",
        "",
    ]
    rows = []
    for name, found in results.items():
        if name.startswith("256k ") and "error" not in found:
            _, plan, topology = name.split()
            parts = " in 4 parts" if topology == "v5e:4x4" else ""
            parameters = f"{found['parameters'] / 1e9:.2f}"
            rows.append([f"`{plan}`, {topology}{parts}", parameters, *cells_of(found)])
    lines += [*table(["plan", "parameters, 1e9", *COLUMNS], rows), ""]
    lines += ["**Weights gathered at each use, or once per step** (v5e:8x8, `remat=layer`)", ""]
    rows = []
    for plan in ("24x1", "12x2", "6x4", "4x6"):
        for gather in ("layer", "segment"):
            found = results.get(f"gather {gather} {plan}", {"error": ""})
            if "error" not in found:
                rows.append([f"`{plan}`", f"`{gather}`", *cells_of(found)[1:]])
    lines += [*table(["plan", "gather", *COLUMNS[1:]], rows), ""]
    rows = [
        [f"`{mesh}`", *cells_of(results[f"long {mesh}"])[1:]]
        for mesh in LONG_ROWS
        if "error" not in results.get(f"long {mesh}", {"error": ""})
    ]
    if rows:
        what = "`12x2`, v5e:8x8, 64 rows of 10,240 tokens, `remat=layer`"
        lines += [f"**Rows split over chips**: {what}", ""]
        lines += [*table(["mesh", *COLUMNS[1:]], rows), ""]
    lines += ["**Weak scaling**: `12x2`, 8 rows a chip, `fsdp=16`, the rest on `data`", ""]
    rows = []
    for name, found in results.items():
        if name.startswith("weak ") and "error" not in found:
            wire = gigabytes(found["wire_bytes_per_device"])
            rows.append([str(found["devices"]), name.split()[1], collectives(found), wire])
    lines += table(["chips", "topology", "collectives, GB a chip", "sent by a chip, GB"], rows)
    lines += ["", "**Compile time with depth** (v5p:4x4x4, seconds, one round after another)", ""]
    rounds = {p: [results.get(f"compile {n} {p}", {}) for n in range(ROUNDS)] for p in DEPTHS}
    rows = [
        [f"`{plan}`", *(f"{r['compile_seconds']:.0f}" for r in found if "compile_seconds" in r)]
        for plan, found in rounds.items()
    ]
    lines += table(["plan", *(f"round {n + 1}" for n in range(ROUNDS))], rows)
    return "\n".join(lines)


def write_tables(results: dict[str, dict[str, Any]]) -> None:
    """Replaces what is between the marks in docs/scale.md."""
    begin, end = "<!-- tables: python -m benchmarks.scale -->\n", "\n<!-- end of tables -->"
    text = DOC.read_text()
    before, after = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    DOC.write_text(before + "\n" + tables(results) + "\n" + after)


def main() -> None:
    """Compiles what is missing and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    only_tables = parser.parse_args().tables
    path = RESULTS / "scale.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    missing = {name: cell for name, cell in programs().items() if name not in results}
    for name, cell in tqdm(() if only_tables else missing.items(), unit="program"):
        tqdm.write(name)
        results[name] = compile_one(*cell)
        if "error" in results[name]:
            tqdm.write(results[name]["error"])
        path.write_text(json.dumps(results, indent=1) + "\n")
    write_tables(results)


if __name__ == "__main__":
    main()
