"""What every entry point shares: flags, `--config.KEY=VALUE` overrides, exit codes.

Exit 0 on success, 2 on something the user can put right (one line on stderr), 1 on a fault
(one line where it is an expected kind of fault, a traceback where it is a bug). A run that SIGTERM
stopped has saved itself: 0 too, or what LOOPED_JAX_EXIT_STOPPED says.
"""

import builtins
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from looped_jax.config import quiet, reference
from looped_jax.config.places import expanded
from looped_jax.errors import Preempted, RunError, UserError, is_out_of_memory
from looped_jax.storage.buckets import BucketError, in_bucket

# The environment's name for the exit code of a run that SIGTERM stopped, 0 where it is not set.
EXIT_STOPPED = "LOOPED_JAX_EXIT_STOPPED"
HELP = ("--help", "-h", "--helpfull", "-help", "-helpfull")


class Flags:
    """A command's own flags, so that one program can import several commands. Each method defines
    one, whose `value` is known once `run` has parsed it."""

    def __init__(self) -> None:
        self.values = flags.FlagValues()

    def string(self, name: str, default: str | None, help: str) -> flags.FlagHolder[Any]:
        return flags.DEFINE_string(name, default, help, flag_values=self.values)

    def path(
        self, name: str, default: str | None, help: str, on_disk: builtins.bool = False
    ) -> flags.FlagHolder[Any]:
        """A file or folder; `~` is the home folder, which a shell does not see in `--out=~/x`.
        ``on_disk``: what is written there cannot be in a bucket."""
        serializer: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
        return flags.DEFINE(_PathParser(on_disk), name, default, help, self.values, serializer)

    def paths(self, name: str, help: str) -> flags.FlagHolder[Any]:
        """Several, with commas between them."""
        return flags.DEFINE(_PathsParser(), name, [], help, self.values, flags.ListSerializer(","))

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


class _PathParser(flags.ArgumentParser):
    def __init__(self, on_disk: bool):
        self._on_disk = on_disk

    def parse(self, argument: str) -> str:
        if self._on_disk and in_bucket(argument):
            raise ValueError("this is written on a disk only; copy it to the bucket afterwards")
        return expanded(argument)


class _PathsParser(flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        return [expanded(path) for path in super().parse(argument)]


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
    quiet.silence_libraries()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Whatever a model says, in a terminal of ASCII too.
            stream.reconfigure(errors="backslashreplace")
    try:
        if asks_for_help and not own_options:
            print(_help(main, own), flush=True)
            return
        overrides, rest = split_overrides(arguments)
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
        # Told apart from a run that is done by whoever starts it again (launch/keep.sh).
        _exit(str(message), int(os.environ.get(EXIT_STOPPED) or 0), orderly=True)
    except BucketError as error:
        _exit(f"error: {error.strerror}; the same command goes on from what was saved", 1)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if said := _of_the_machine(error):
            _exit(f"error: {said}", 2 if _place()[1] == 1 else 1)
        if _place()[1] == 1:
            raise
        traceback.print_exc()
        _exit("stopped by the error above", 1)
    except KeyboardInterrupt:
        _exit("interrupted; the same command goes on from what was saved", 128 + signal.SIGINT)


# What a user can put right about a file or folder that the system names.
_OF_FILES = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST),
}


def _of_the_machine(error: Exception) -> str | None:
    """One line for what is no fault of the program: memory, and files that it was told of."""
    if is_out_of_memory(error):
        reason = " ".join(str(error).split())[:200]
        return (
            f"out of memory ({reason}): lower what is computed at once, e.g. "
            "--config.eval.batch_size, --batch_size, --max_tokens or a number of rows or examples"
        )
    if isinstance(error, OSError) and error.filename and error.errno in _OF_FILES:
        return f"{str(error.filename)[:200]}: {error.strerror}"
    return None


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


_BEFORE_A_BAD_END: list[Callable[[str], None]] = []


def before_a_bad_end(call: Callable[[str], None]) -> None:
    """``call`` gets the message with which one of several processes ends, before it does."""
    _BEFORE_A_BAD_END.append(call)


def end_at_once(message: str) -> None:
    """Ends this process with an error, from any thread: nothing is tidied up or written."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    if _place()[1] > 1:
        for call in _BEFORE_A_BAD_END:
            call(message)
    os._exit(1)


def _exit(message: str, code: int, orderly: bool = False) -> None:
    process, processes = _place()
    # One line, whatever is quoted in it.
    message = " ".join(message.splitlines())
    message = re.sub(r"\S{400,}", lambda found: f"{found[0][:80]}…{found[0][-80:]}", message)
    # What the user can put right is the same in every process; a fault is one's own.
    if processes > 1 and code == 1:
        print(f"process {process}: {message}", file=sys.stderr)
    elif process == 0:
        print(message, file=sys.stderr)
    if processes > 1 and code and not orderly:
        # An orderly end would wait for the others, who wait for this one.
        sys.stderr.flush()
        for call in _BEFORE_A_BAD_END:
            call(message)
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
