"""Evaluates a run by EleutherAI's lm-evaluation-harness, through its own command line.

python -m looped_jax.lm_eval --model_args workdir=runs/pile_12x2 --tasks lambada_openai
python -m looped_jax.lm_eval --model_args workdir=runs/pile_12x2,step=5000,loops=2,exit=kl:1e-3 \\
    --include_path my_tasks --tasks my_task --limit 100 --log_samples --output_path results
python -m looped_jax.lm_eval ls tasks

All options are the harness's own. Here --model is looped_jax unless it is said, or read from the
harness's --config FILE; its model arguments: workdir, step, loops, cache, exit, draft (as
looped_jax.generate takes them) and batch_size. The results name checkpoint, step, plan and loops.
Needs the extra `lm-eval`.
"""

import argparse
import json
import multiprocessing
import sys
from typing import NoReturn

from looped_jax.config import cli
from looped_jax.errors import UserError, from_extra

# Modules of the harness that read what it is asked: what they refuse, the user can put right.
_READERS = (
    "lm_eval.config.evaluate_config",
    "lm_eval.api.registry",
    "lm_eval.evaluator",
    "lm_eval._cli",
)
_OVERRIDES = "--config.KEY=VALUE: overrides a key of the run's config, one of docs/config.md."


def main(overrides: dict[str, str], arguments: list[str]) -> None:
    """Hands the arguments on to the harness, which knows our model."""
    helps = not arguments or arguments[0] in cli.HELP
    if helps:
        print(f"{__doc__}\n{_OVERRIDES}\n", flush=True)
    try:
        with from_extra("lm-eval", "looped_jax.lm_eval"):
            from lm_eval.__main__ import cli_evaluate

            from looped_jax.interop.lm_eval_model import NAME
    except UserError as error:
        if not helps:
            raise
        print(f"The harness's options cannot be shown: {error}")
        return
    # The harness's bootstrap starts processes; forked ones would lack JAX's threads, and hang.
    multiprocessing.set_start_method("spawn")
    # It prints a usage of many lines above its own line.
    argparse.ArgumentParser.error = _refuse  # type: ignore[assignment,method-assign]
    sys.argv = ["lm-eval", *(["run", "--help"] if helps else _asked(arguments, NAME, overrides))]
    try:
        cli_evaluate()
    except (FileNotFoundError, ConnectionError) as error:
        raise UserError(_line(error)) from error
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        if not _raised_in(error).startswith(_READERS):
            raise
        raise UserError(_line(error)) from error


def _asked(arguments: list[str], model: str, overrides: dict[str, str]) -> list[str]:
    """What the harness is asked to do: of two equal options it takes the last, and model_args
    add up."""
    command, rest = "run", arguments
    if not arguments[0].startswith("-"):
        command, rest = arguments[0], arguments[1:]
    if command != "run":
        return arguments
    defaults = [] if _names_a_file(rest) else ["--model", model, "--batch_size", "auto"]
    if overrides:
        defaults += ["--model_args", json.dumps({"config": overrides})]
    return [command, *defaults, *rest]


def _names_a_file(arguments: list[str]) -> bool:
    """Whether options come from the harness's --config FILE, too."""
    return any(a.partition("=")[0] == "--config" or a.startswith("-C") for a in arguments)


def _refuse(_: argparse.ArgumentParser, message: str) -> NoReturn:
    raise UserError(message)


def _raised_in(error: Exception) -> str:
    """The module whose code raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals["__name__"]) if trace is not None else ""


def _line(error: Exception) -> str:
    """What it says, in a line."""
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    cli.run(main, own_options=True)
