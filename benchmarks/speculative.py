"""What drafting with few loops and verifying with all gains when decoding one row, of trained runs.

Each run continues four prompts, one by one, by 128 tokens: decoding one by one, and with drafts of
several loop counts and lengths; all in turn, so that ratios are of one machine. Times have the
prompts in them. Every way has to say the same; what differs (logits as good as equal) is counted.

    python -m benchmarks.speculative --rounds=5 runs/drafts runs/last

docs/exits.md has the commands that train the two.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.common import interleaved, machine, save
from looped_jax.inference.generator import Generated, Generator
from looped_jax.inference.policy import Policy
from looped_jax.inference.text import prompt_ids
from looped_jax.training.run import open_run

PROMPTS = ("The ", "In this paper ", "def main(", "She looked ")
NEW = 128
DRAFTS = ("none", "1:2", "1:4", "2:4")


def say(
    generator: Generator, prompts: list[list[int]], said: dict[str, list[Generated]], name: str
) -> None:
    """Keeps what was generated under this name."""
    said[name] = generator.generate(prompts, NEW, chunk=NEW)


def main() -> None:
    """Times all in turn and prints ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    timed: dict[str, Callable[[], Any]] = {}
    said: dict[str, list[Generated]] = {}
    generators: dict[str, Generator] = {}
    for workdir in arguments.workdirs:
        run = open_run(workdir)
        job, params = run.job, run.parameters()
        prompts = [prompt_ids(job.data.vocabulary, prompt) for prompt in PROMPTS]
        for draft in DRAFTS:
            policy = Policy.parse("per_loop", "none", draft)
            policy.check(job.model.config, None)
            parts = (job.model, params, job.mesh, job.rules)
            name = f"{workdir}, {draft}"
            generators[name] = Generator(*parts, batch_size=1, policy=policy)
            timed[name] = functools.partial(say, generators[name], prompts, said, name)
    seconds = interleaved(timed, arguments.rounds)
    rows = {}
    for workdir in arguments.workdirs:
        plain = f"{workdir}, none"
        count = sum(len(row.tokens) for row in said[plain])
        print(f"{workdir}\ndraft  accepted  tokens/pass  ms/token  gain  rows that differ")
        for draft in DRAFTS:
            name = f"{workdir}, {draft}"
            ratios = [a / b for a, b in zip(seconds[plain], seconds[name], strict=True)]
            row = {
                **generators[name].usage.of_draft,
                "ms_per_token": 1e3 * statistics.median(seconds[name]) / count,
                "gain": statistics.median(ratios),
                "differ": sum(a != b for a, b in zip(said[plain], said[name], strict=True)),
            }
            rows[name] = row
            print(
                f"{draft:5}  {row.get('accepted', 0):8.1%}  {row.get('tokens_per_pass', 1):11.2f}  "
                f"{row['ms_per_token']:8.2f}  {row['gain']:4.2f}  {row['differ']}"
            )
    save("speculative", {"machine": machine(), "rows": rows, "seconds": seconds})


if __name__ == "__main__":
    main()
