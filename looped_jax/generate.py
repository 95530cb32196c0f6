"""Continues a prompt with a run's model and prints the text as it comes.

python -m looped_jax.generate --workdir=runs/pile_mini --prompt="The " --max_tokens=100
python -m looped_jax.generate --workdir=runs/addition_1x12 --prompt="315 + 120 + 045 + 824 ="

Reads lines from stdin where --prompt is -. Greedy unless --temperature is set.
"""

import json
import sys
from typing import Any

from looped_jax.config import cli
from looped_jax.errors import UserError
from looped_jax.inference.generator import Generator
from looped_jax.inference.policy import CACHE_HELP, DRAFT_HELP, EXIT_HELP, Policy
from looped_jax.inference.sampling import Sampling
from looped_jax.inference.text import complete, cut
from looped_jax.models.transformer import check_loops
from looped_jax.training.run import open_run

_FLAGS = cli.Flags()
_WORKDIR = _FLAGS.path("workdir", "", "The run.")
_PROMPT = _FLAGS.string("prompt", None, "Text to continue; - reads one prompt a line.")
_MAX_TOKENS = _FLAGS.integer("max_tokens", 64, "At most so many tokens.", lower_bound=1)
_TEMPERATURE = _FLAGS.float("temperature", 0.0, "0 is greedy.")
_TOP_K = _FLAGS.integer("top_k", 0, "Draw from the k likeliest tokens; 0: from all.")
_TOP_P = _FLAGS.float("top_p", 1.0, "Draw from the likeliest that reach this probability.")
_STOP = _FLAGS.multi_string("stop", [], "Text that ends the output, not printed.")
_LOOPS = _FLAGS.integer("loops", None, "Loop count in place of the plan's.", lower_bound=1)
_CACHE = _FLAGS.string("cache", "per_loop", CACHE_HELP)
_EXIT = _FLAGS.string("exit", "none", EXIT_HELP)
_DRAFT = _FLAGS.string("draft", "none", DRAFT_HELP)
_STEP = _FLAGS.integer("step", None, "Checkpoint; default: the newest.", lower_bound=0)
_SEED = _FLAGS.integer("seed", 0, "Of the draws.")
# Tokens between two looks at the output: what appears at a time.
_CHUNK = 4


def main(overrides: dict[str, str]) -> None:
    """Restores, generates, streams."""
    if _PROMPT.value is None:
        raise UserError("say --prompt=TEXT, or --prompt=- for prompts on stdin")
    sampling = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    policy = Policy.parse(_CACHE.value, _EXIT.value, _DRAFT.value)
    if policy.draft is not None:
        policy.draft.check_greedy(sampling.temperature)
    run = open_run(_WORKDIR.value, _STEP.value, overrides)
    check_loops(run.job.model, _LOOPS.value)
    policy.check(run.job.model.config, _LOOPS.value)  # Before anything large is read.
    vocabulary = run.job.data.vocabulary
    # One row at a time: all devices work on it, or hold copies.
    job = run.job
    generator = Generator(
        *(job.model, run.parameters(), job.mesh, job.rules, _LOOPS.value),
        batch_size=1,
        policy=policy,
        eos=vocabulary.eos,
    )
    if _PROMPT.value != "-":
        stream(generator, vocabulary, _PROMPT.value, sampling)
    else:
        for number, line in enumerate(sys.stdin):
            prompt = line.rstrip("\n")
            text = generate_text(generator, vocabulary, prompt, sampling, number=number)
            print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
    usage = generator.usage
    print(
        f"mean loops of a token: {usage.loops:.2f}; cache ({policy.cache}): "
        f"{usage.cache_bytes / 1e6:.2f} MB at most",
        file=sys.stderr,
    )
    if found := usage.of_draft:
        print(
            f"draft {policy.draft}: {found['accepted']:.1%} of the drafted tokens accepted, "
            f"{found['tokens_per_pass']:.2f} tokens per pass with all loops",
            file=sys.stderr,
        )


def generate_text(
    generator: Generator,
    vocabulary: Any,
    prompt: str,
    sampling: Sampling,
    on_tokens: Any = None,
    number: int = 0,
) -> str:
    """The continuation of one prompt, as the flags say; of the same prompt under another number
    another sample."""
    (text,) = complete(
        generator,
        vocabulary,
        [prompt],
        _MAX_TOKENS.value,
        stops=_STOP.value,
        sampling=sampling,
        seed=_SEED.value,
        first_number=number,
        on_tokens=on_tokens,
        chunk=_CHUNK,
    )
    return text


def stream(generator: Generator, vocabulary: Any, prompt: str, sampling: Sampling) -> None:
    """Prints the continuation as it comes, holding back what may be the start of a stop text or
    half a character."""
    tokens: list[int] = []
    shown = 0
    held = max((len(stop) for stop in _STOP.value), default=1) - 1

    def on_tokens(_: int, new: list[int]) -> None:
        nonlocal shown
        tokens.extend(new)
        text = vocabulary.decode(tokens).rstrip("\ufffd")
        until = len(cut(text, _STOP.value)) if any(s in text for s in _STOP.value) else None
        until = max(shown, len(text) - held) if until is None else until
        sys.stdout.write(text[shown:until])
        sys.stdout.flush()
        shown = max(shown, until)

    text = generate_text(generator, vocabulary, prompt, sampling, on_tokens)
    print(text[shown:])


if __name__ == "__main__":
    cli.run(main, _FLAGS)
