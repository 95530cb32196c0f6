"""What ends a command without a traceback, and how a message names what may have been meant."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Something the user can put right. Entry points print it as one line and exit 2."""


class RunError(Exception):
    """A run that cannot go on (a fault). Entry points print it as one line and exit 1."""


class Preempted(Exception):
    """A run that was asked to stop and has saved itself: the same command goes on. Entry points
    print it and exit 0, or as config/cli.py's EXIT_STOPPED says."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this is what a device, or the machine, says that has no memory left."""
    while error is not None:
        # XLA has one class for all that goes wrong; jaxlib is not imported to tell it.
        of_xla = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
        if isinstance(error, MemoryError) or (of_xla and "RESOURCE_EXHAUSTED" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def nearest(name: str, known: Iterable[object]) -> str:
    """`; did you mean 'x'?` for messages, or nothing if no known name is near."""
    names = [str(k) for k in known]
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not matches:  # A right leaf under a wrong section is the other common slip.
        leaf = name.rsplit(".", 1)[-1]
        matches = [k for k in names if k.rsplit(".", 1)[-1] == leaf][:1]
    return f"; did you mean {matches[0]!r}?" if matches else ""


@contextlib.contextmanager
def from_extra(extra: str, what: str) -> Iterator[None]:
    """Where packages of an optional extra of setup.py are imported: UserError, which says that
    ``what`` needs it, if they are not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "looped_jax"):
            raise
        raise UserError(
            f"{what} needs the package {package}: pip install -e '.[{extra}]'"
        ) from error
