import pytest
from hypothesis import given
from hypothesis import strategies as st

from looped_jax.errors import UserError
from looped_jax.models.loop_plan import LoopPlan, Segment

segments = st.lists(
    st.builds(Segment, st.integers(1, 99), st.integers(1, 99)), min_size=1, max_size=5
)


@given(segments)
def test_a_plan_reads_back_what_it_prints(parts: list[Segment]) -> None:
    plan = LoopPlan(tuple(parts))
    assert LoopPlan.parse(str(plan)) == plan


@given(segments)
def test_effective_depth_counts_every_pass_and_distinct_layers_every_weight(
    parts: list[Segment],
) -> None:
    plan = LoopPlan(tuple(parts))
    passes = [layer for s in parts for _ in range(s.loops) for layer in range(s.layers)]
    assert plan.effective_depth == len(passes)
    assert plan.distinct_layers == sum(s.layers for s in parts)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty"),
        ("12", "'12' is not LAYERSxLOOPS"),
        ("4x1,4*4,4x1", "segment 2: '4*4'"),
        ("4x1,", "segment 2: ''"),
        ("0x2", "at least one layer and one loop"),
        ("2x0", "at least one layer and one loop"),
        ("1x1,1x1000001", "segment 2: '1x1000001' has more than 1,000,000 loops"),
        ("-1x2", "'-1x2'"),
        ("1.5x2", "'1.5x2'"),
    ],
)
def test_a_plan_that_does_not_parse_names_the_fault(text: str, fault: str) -> None:
    with pytest.raises(UserError, match="plan") as error:
        LoopPlan.parse(text)
    assert fault in str(error.value)


def test_loops_can_be_changed_only_where_something_loops() -> None:
    plan = LoopPlan.parse("4x1,4x4,4x1")
    assert str(plan.with_loops(7)) == "4x1,4x7,4x1"
    assert plan.with_loops(None) == plan
    with pytest.raises(UserError, match="no looped segment"):
        LoopPlan.parse("24x1").with_loops(2)
    with pytest.raises(UserError, match="at least 1"):
        plan.with_loops(0)
    for many in (1_000_001, 3_000_000_000, 100_000_000_000):
        with pytest.raises(UserError, match=f"loops={many} is more than 1,000,000; say fewer"):
            plan.with_loops(many)
    assert str(plan.with_loops(1_000_000)) == "4x1,4x1000000,4x1"
