"""What every entry point shares: flags, `--config.KEY=VALUE` overrides, exit codes.

Exit 0 on success, 2 on something the user can put right (one line on stderr), 1 on a fault
(one line where it is an expected kind of fault, a traceback where it is a bug), 75 when it was
told to stop by SIGTERM, has saved itself and is not done.
"""

import builtins
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from absl import logging as absl_logging

from looped_jax.config import reference
from looped_jax.errors import Preempted, RunError, UserError

HELP = ("--help", "-h", "--helpfull", "-help", "-helpfull")


class Flags:
    """A command's own flags, so that one program can import several commands. Each method defines
    one, whose `value` is known once `run` has parsed it."""

    def __init__(self) -> None:
        self.values = flags.FlagValues()

    def string(self, name: str, default: str | None, help: str) -> flags.FlagHolder[Any]:
        return flags.DEFINE_string(name, default, help, flag_values=self.values)

    def integer(
        self, name: str, default: int | None, help: str, lower_bound: int | None = None
    ) -> flags.FlagHolder[Any]:
        return flags.DEFINE_integer(name, default, help, lower_bound, flag_values=self.values)

    def float(
        self,
        name: str,
        default: builtins.float | None,
        help: str,
        lower_bound: builtins.float | None = None,
        upper_bound: builtins.float | None = None,
    ) -> flags.FlagHolder[Any]:
        bounds = (lower_bound, upper_bound)
        return flags.DEFINE_float(name, default, help, *bounds, flag_values=self.values)

    def bool(self, name: str, default: builtins.bool, help: str) -> flags.FlagHolder[Any]:
        return flags.DEFINE_bool(name, default, help, flag_values=self.values)

    def list(self, name: str, default: Sequence[str], help: str) -> flags.FlagHolder[Any]:
        return flags.DEFINE_list(name, [*default], help, flag_values=self.values)

    def enum(
        self, name: str, default: str | None, choices: Sequence[str], help: str
    ) -> flags.FlagHolder[Any]:
        return flags.DEFINE_enum(name, default, choices, help, flag_values=self.values)

    def multi_string(self, name: str, default: Sequence[str], help: str) -> flags.FlagHolder[Any]:
        return flags.DEFINE_multi_string(name, default, help, flag_values=self.values)

    def multi_enum(
        self, name: str, default: Sequence[str], choices: Sequence[str], help: str
    ) -> flags.FlagHolder[Any]:
        return flags.DEFINE_multi_enum(name, default, choices, help, flag_values=self.values)

    def help(self) -> str:
        """All of them with their defaults."""
        own, _, _ = self.values.get_help().partition("\nabsl.flags:")
        return own.strip().partition("\n")[2].rstrip()


def run(
    main: Callable[..., None],
    own: Flags | None = None,
    *,
    prints_only: bool = True,
    own_options: bool = False,
    positional: bool = False,
) -> None:
    """Parses the command's flags ``own``, calls ``main`` with the config overrides, exits with the
    code.

    ``prints_only``: what the command is for is what it prints, so it ends when nobody reads that
    any more; otherwise (training, preparing) it goes on in silence. ``own_options``: the options
    are another program's; ``main`` gets the overrides and the other arguments, --help among them.
    ``positional``: ``main`` gets the overrides and the arguments that are no flags.
    """
    arguments, own = list(sys.argv), own or Flags()
    asks_for_help = any(argument in HELP for argument in arguments[1:])
    if not prints_only and not asks_for_help:
        sys.stdout, sys.stderr = _Unread(sys.stdout), _Unread(sys.stderr)
    # Progress, metrics and errors are ours to print; libraries' notices hide them.
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)
    try:
        if asks_for_help and not own_options:
            print(_help(main, own), flush=True)
            return
        overrides, rest = split_overrides([_expanded(argument) for argument in arguments])
        if own_options:
            main(overrides, rest[1:])
            sys.stdout.flush()
            return
        try:
            extra = own.values(rest)[1:]
        except flags.Error as error:
            raise UserError(" ".join(str(error).split())) from error
        if extra and not positional:
            raise UserError(f"unexpected argument {extra[0]!r}")
        main(overrides, *([extra] if positional else []))
        sys.stdout.flush()  # Here a reader that has gone is known for one.
    except UserError as error:
        _exit(f"error: {error}", 2)
    except RunError as error:
        _exit(f"error: {error}", 1)
    except Preempted as message:
        _exit(str(message), os.EX_TEMPFAIL)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:
        if _place()[1] == 1:
            raise
        traceback.print_exc()
        _exit("stopped by the error above", 1)
    except KeyboardInterrupt:
        _exit("interrupted; the same command goes on from what was saved", 128 + signal.SIGINT)


def _help(main: Callable[[dict[str, str]], None], own: Flags) -> str:
    """A command's docstring, flags and, where it takes a config, the keys."""
    said = f"{sys.modules[main.__module__].__doc__}\n{own.help()}"
    if "config" in own.values:
        return (
            f"{said}\n  --config.KEY=VALUE: overrides a key of the config, one of\n"
            f"{reference.plain()}"
        )
    return f"{said}\n  --config.KEY=VALUE: overrides a key of the run's config, where there is one."


class _Unread:
    """A stream that may lose its reader (`2>&1 | head`): what is written then goes nowhere."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except BrokenPipeError:
            self._forget()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._forget()

    def _forget(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _expanded(argument: str) -> str:
    """`--workdir=~/x` as a shell would have it in `--workdir ~/x`."""
    name, equals, value = argument.partition("=")
    return f"{name}={os.path.expanduser(value)}" if equals and value.startswith("~/") else argument


def split_overrides(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Takes `--config.KEY=VALUE` (or `--config.KEY VALUE`) out of argv: (overrides, the rest)."""
    overrides, rest = {}, []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not name.startswith(("--config.", "-config.")):
            rest.append(argument)
            continue
        if not equals:
            value = next(arguments, "")
            if not value or value.startswith("--"):
                raise UserError(f"{name} needs a value: {name}=VALUE")
        overrides[name.lstrip("-").removeprefix("config.")] = value
    return overrides, rest


def _exit(message: str, code: int) -> None:
    process, processes = _place()
    # What the user can put right is the same in every process; a fault is one's own.
    if processes > 1 and code == 1:
        print(f"process {process}: {message}", file=sys.stderr)
    elif process == 0:
        print(message, file=sys.stderr)
    if processes > 1 and code != os.EX_TEMPFAIL:  # With which all end together.
        # An orderly end would wait for the others, who wait for this one.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _place() -> tuple[int, int]:
    """This process's number, and of how many."""
    if "jax" not in sys.modules:  # Not every entry point needs it, and it takes a while.
        return 0, 1
    import jax

    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()
