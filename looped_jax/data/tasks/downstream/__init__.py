"""The downstream tasks by name: add a file with TASKS and list it here."""

from looped_jax.data.tasks.downstream import closed_book, dialogue, math, open_book, primitives
from looped_jax.data.tasks.downstream.base import GROUPS, DownstreamTask
from looped_jax.errors import UserError, nearest

_FILES = (closed_book, open_book, dialogue, math, primitives)
TASKS: dict[str, DownstreamTask] = {task.name: task for file in _FILES for task in file.TASKS}


def group_members(group: str) -> tuple[str, ...]:
    """The tasks of a group."""
    return tuple(name for name, task in TASKS.items() if task.group == group)


def expand(names: tuple[str, ...]) -> tuple[str, ...]:
    """Task names from names of tasks and groups, and `paper` for all 19; each once.

    UserError names the nearest for one that is neither a downstream task nor a group.
    """
    found: list[str] = []
    for name in names:
        if name == "paper":
            found += [task for group in GROUPS for task in group_members(group)]
        elif name in GROUPS:
            found += group_members(name)
        elif name in TASKS:
            found.append(name)
        else:
            known = [*TASKS, *GROUPS, "paper"]
            raise UserError(f"no downstream task {name!r}{nearest(name, known)}")
    return tuple(dict.fromkeys(found))
