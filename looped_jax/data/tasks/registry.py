"""Task names -> tasks. Families with parameters in the name accept any values of them."""

import functools
import re
from collections.abc import Callable

from looped_jax.data.tasks.addition import MIXTURE, Addition
from looped_jax.data.tasks.base import SyntheticTask
from looped_jax.data.tasks.group import GroupComposition
from looped_jax.data.tasks.igsm import SymbolicIGSM
from looped_jax.data.tasks.phop import PHop
from looped_jax.data.tasks.varassign import VariableAssignment
from looped_jax.errors import UserError, nearest

# Pattern of the whole name -> the task of that name and its matched parameters.
FAMILIES: dict[str, Callable[..., SyntheticTask]] = {
    r"addition": lambda name: Addition(name, MIXTURE),
    r"addition_n(\d+)": lambda name, n: Addition(name, (int(n),)),
    r"phop_p(\d+)_n(\d+)": lambda name, p, n: PHop(name, int(p), int(n)),
    r"igsm": lambda name: SymbolicIGSM(name, chain_of_thought=False),
    r"igsm_p(\d+)": lambda name, most: SymbolicIGSM(name, False, int(most)),
    r"igsm_cot": lambda name: SymbolicIGSM(name, chain_of_thought=True),
    r"varassign_depth([01])_(math|code)": lambda name, depth, form: VariableAssignment(
        name, int(depth), form
    ),
    r"group_([saz]\d+)_n(\d+)": lambda name, group, n: GroupComposition(name, group, int(n)),
}

# The members that the paper evaluates, and a few more, for listing.
LISTED = (
    "addition",
    *(f"addition_n{n}" for n in (2, 4, 8, 16, 24, 32)),
    "phop_p16_n256",
    "phop_p32_n256",
    "igsm",
    "igsm_p4",
    "igsm_cot",
    *(f"varassign_depth{depth}_{form}" for depth in (0, 1) for form in ("math", "code")),
    *(f"group_{group}_n{n}" for group in ("s3", "s5", "a5", "z7") for n in (8, 32)),
)


def task_names() -> tuple[str, ...]:
    """Names to list; the families accept more (any phop_p<P>_n<N>, say)."""
    return LISTED


@functools.lru_cache
def get_task(name: str) -> SyntheticTask:
    """The task of this name; UserError with the nearest name if there is none."""
    for pattern, make in FAMILIES.items():
        match = re.fullmatch(pattern, name)
        if match:
            return make(name, *match.groups())
    hint = nearest(name, LISTED)
    raise UserError(f"no task {name!r}{hint} (python -m looped_jax.tasks --list)")
