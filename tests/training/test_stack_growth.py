"""Growing a stack by its middle block."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.training.stacking import duplicated_middle


@pytest.mark.parametrize(
    ("layers", "block", "grown"),
    [
        (1, 1, [0, 0]),
        (2, 1, [0, 0, 1]),
        (3, 1, [0, 1, 1, 2]),
        (4, 1, [0, 1, 1, 2, 3]),
        (2, 2, [0, 1, 0, 1]),
        (6, 2, [0, 1, 2, 3, 2, 3, 4, 5]),
    ],
)
def test_the_middle_block_is_there_twice(layers: int, block: int, grown: list[int]) -> None:
    assert duplicated_middle(layers, block).tolist() == grown


@given(st.integers(1, 6), st.integers(1, 4))
def test_growth_keeps_every_layer_in_order_and_adds_one_block(blocks: int, block: int) -> None:
    index = duplicated_middle(blocks * block, block)
    assert len(index) == (blocks + 1) * block
    assert set(index) == set(range(blocks * block))
    # Without either copy it is the old stack.
    middle = (blocks + 1) // 2 * block
    assert [*index[:middle], *index[middle + block :]] == list(range(blocks * block))


def test_blocks_that_do_not_divide_the_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        duplicated_middle(5, 2)
