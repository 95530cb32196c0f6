"""Groups by their tables, and what is wrong with other tables."""

import numpy as np
import pytest

from looped_jax.errors import UserError
from looped_jax.theory.groups import cyclic, from_table, named_group


@pytest.mark.parametrize(
    ("name", "order", "commutes"),
    [("z6", 6, True), ("d4", 8, False), ("s3", 6, False), ("a4", 12, False), ("z2*s3", 12, False)],
)
def test_named_groups_have_their_order(name: str, order: int, commutes: bool) -> None:
    group = named_group(name)
    assert group.order == order
    assert np.array_equal(group.table, group.table.T) == commutes


def test_a_reflection_inverts_a_rotation() -> None:
    d5 = named_group("d5")
    r, s = d5.names.index("r1"), d5.names.index("r0s")
    assert d5.names[d5.table[s, r]] == "r4s"


def test_products_go_from_left_to_right() -> None:
    s3 = named_group("s3")
    g, h = s3.names.index("213"), s3.names.index("132")
    assert s3.product(np.array([[g, h]]))[0] == s3.table[g, h] != s3.table[h, g]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0, 1], [1, 2]], "not closed: 1 ∘ 1 = 2"),
        ([[1, 1], [1, 1]], "no identity"),
        ([[0, 1, 2], [1, 0, 1], [2, 2, 0]], r"not associative: \(1 ∘ 1\) ∘ 2"),
        ([[0, 1], [1, 1]], "1 has no inverse"),
        ([[0, 1]], "must be square"),
    ],
)
def test_a_table_that_is_no_group_says_which_axiom_fails_and_where(
    table: list[list[int]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        from_table("x", np.array(table))


def test_cyclic_groups_add_modulo_their_order() -> None:
    assert cyclic(5).product(np.array([[4, 4, 4]]))[0] == 2
