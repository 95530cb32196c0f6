"""Finite groups as tables: table[g, h] = g ∘ h."""

import dataclasses
import itertools

import numpy as np

from looped_jax.data.tasks.group import group_table
from looped_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Group:
    """A finite group; elements are numbered, and ``names`` shows them."""

    name: str
    names: tuple[str, ...]
    table: np.ndarray
    identity: int

    @property
    def order(self) -> int:
        return len(self.names)

    def product(self, elements_NS: np.ndarray) -> np.ndarray:
        """g_1 ∘ … ∘ g_S of each row, from left to right: the definition."""
        total_N = np.full(len(elements_NS), self.identity)
        for column in elements_NS.T:
            total_N = self.table[total_N, column]
        return total_N


def from_table(name: str, table: np.ndarray, names: tuple[str, ...] | None = None) -> Group:
    """A group from its table; UserError says which axiom fails, and where."""
    order = len(table)
    if table.shape != (order, order) or not order:
        raise UserError(f"group {name}: the table has shape {table.shape}; it must be square")
    names = names or tuple(str(i) for i in range(order))
    outside = np.argwhere((table < 0) | (table >= order))
    if len(outside):
        g, h = outside[0]
        raise UserError(f"group {name} is not closed: {names[g]} ∘ {names[h]} = {table[g, h]}")
    elements = np.arange(order)
    is_identity = (table == elements).all(axis=1) & (elements == table.T).all(axis=1)
    if not is_identity.any():
        raise UserError(f"group {name} has no identity")
    identity = int(np.argmax(is_identity))
    for g in elements:  # (g h) k = g (h k), a plane at a time.
        wrong = np.argwhere(table[table[g]] != table[g][table])
        if len(wrong):
            h, k = wrong[0]
            a, b, c = names[g], names[h], names[k]
            raise UserError(
                f"group {name} is not associative: ({a} ∘ {b}) ∘ {c} is not {a} ∘ ({b} ∘ {c})"
            )
    without = np.flatnonzero(~((table == identity) & (identity == table.T)).any(axis=1))
    if len(without):
        raise UserError(f"group {name}: {names[without[0]]} has no inverse")
    return Group(name, names, table, identity)


def cyclic(order: int) -> Group:
    """Integers modulo ``order`` under addition."""
    numbers = np.arange(order)
    return from_table(f"z{order}", (numbers[:, None] + numbers) % order)


def dihedral(corners: int) -> Group:
    """Symmetries of a regular polygon: r^a s^b, with s r = r^-1 s."""
    pairs = list(itertools.product(range(corners), range(2)))
    table = np.array(
        [[((a + (-c if b else c)) % corners) * 2 + (b ^ d) for c, d in pairs] for a, b in pairs]
    )
    names = tuple(f"r{a}{'s' if b else ''}" for a, b in pairs)
    return from_table(f"d{corners}", table, names)


def product(first: Group, second: Group) -> Group:
    """The direct product."""
    n = second.order
    table = first.table[:, None, :, None] * n + second.table[None, :, None, :]
    order = first.order * n
    names = tuple(f"({a},{b})" for a in first.names for b in second.names)
    return from_table(f"{first.name}*{second.name}", table.reshape(order, order), names)


def named_group(name: str) -> Group:
    """z<m>, d<k>, s<k>, a<k>, and products such as z2*s3; UserError for another name."""
    if "*" in name:
        first, _, rest = name.partition("*")
        return product(named_group(first), named_group(rest))
    if name[:1] == "d" and name[1:].isdigit() and int(name[1:]) >= 1:
        return dihedral(int(name[1:]))
    names, table = group_table(name)
    return from_table(name, table, names)
