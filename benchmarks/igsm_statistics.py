"""Depth and number of operations of symbolic i-GSM problems, for the task's docstring.

python -m benchmarks.igsm_statistics
"""

import numpy as np

from benchmarks.common import save
from looped_jax.data.tasks import get_task
from looped_jax.data.tasks.igsm import draw_problems

COUNT = 100_000


def main() -> None:
    """Draws COUNT problems and prints means and ranges."""
    problems = draw_problems(np.random.default_rng(0), COUNT)
    statements = (problems.operand_NP3 >= 0).sum(axis=2) + (problems.constant_NP >= 0)
    columns = {
        "parameters": problems.count_N,
        "needed": problems.needed_NP().sum(axis=1),
        "depth": problems.depth_N(),
        "operations": problems.operations_N(),
        "answer": problems.value_NP[np.arange(COUNT), problems.count_N - 1],
    }
    assert statements.max() <= 4
    results = {}
    for name, values in columns.items():
        tenths = np.percentile(values, [10, 50, 90]).astype(int).tolist()
        shares = {
            int(v): int(n) / COUNT
            for v, n in zip(*np.unique(values, return_counts=True), strict=True)
        }
        results[name] = {
            "mean": float(values.mean()),
            "percentiles_10_50_90": tenths,
            "range": [int(values.min()), int(values.max())],
            "shares": shares,
        }
        print(
            f"{name:10} mean {values.mean():5.2f}  10/50/90% {tenths}  range "
            f"{values.min()}..{values.max()}"
        )
    print("answer shares", {k: round(v, 3) for k, v in results["answer"]["shares"].items()})
    tokens = [
        (get_task(name).examples(0, "train", np.arange(2048)).inputs_NS > 0).sum(axis=1).mean()
        for name in ("igsm",)
    ]
    print(f"tokens in the question, mean {tokens[0]:.0f}")
    save("igsm_statistics", {"count": COUNT, **results})


if __name__ == "__main__":
    main()
