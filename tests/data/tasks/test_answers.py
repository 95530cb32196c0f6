"""The answers are right: every task is solved again from its text, by another way."""

import re

import numpy as np
import pytest

from looped_jax.data.tasks import get_task
from looped_jax.data.tasks.igsm import MODULUS
from looped_jax.data.tasks.phop import hop
from looped_jax.errors import UserError

COUNT = np.arange(400)


def texts(name: str) -> list[dict[str, str]]:
    return get_task(name).texts(0, "train", COUNT)


@pytest.mark.parametrize("name", ["addition", "addition_n2", "addition_n24"])
def test_addition_is_the_sum(name: str) -> None:
    sizes = set()
    for example in texts(name):
        assert re.fullmatch(r"\d{3}( \+ \d{3})* =", example["inputs"])
        operands = example["inputs"].removesuffix(" =").split(" + ")
        sizes.add(len(operands))
        assert example["targets"] == str(sum(map(int, operands)))
    # The paper's mixture, section 2.1.
    assert sizes == ({2, 4, 8, 16, 32} if name == "addition" else {int(name.split("_n")[1])})


@pytest.mark.parametrize("name", ["phop_p16_n256", "phop_p32_n256", "phop_p2_n5", "phop_p1_n4"])
def test_p_hop_is_what_its_definition_says_and_always_there(name: str) -> None:
    hops = int(name.split("_")[1][1:])
    for example in texts(name)[:100]:
        assert hop(example["inputs"], hops) == example["targets"]


def test_p_hop_answers_are_balanced() -> None:
    counts = np.unique([e["targets"] for e in texts("phop_p16_n256")], return_counts=True)[1]
    # 400 uniform draws from 4: a standard deviation of 8.7 around 100.
    assert counts.min() > 60 and counts.max() < 140


@pytest.mark.parametrize("name", ["group_s3_n8", "group_s5_n8", "group_a5_n8", "group_a4_n3"])
def test_permutations_compose_as_functions(name: str) -> None:
    for example in texts(name)[:100]:
        factors = example["inputs"].split()
        points = []
        for x in range(1, len(factors[0]) + 1):
            for g in reversed(factors):
                x = int(g[x - 1])
            points.append(str(x))
        assert "".join(points) == example["targets"]


def test_cyclic_groups_add() -> None:
    for example in texts("group_z7_n8"):
        assert int(example["targets"]) == sum(map(int, example["inputs"].split())) % 7


def test_running_targets_are_the_products_so_far() -> None:
    examples = get_task("group_z7_n8").examples(0, "train", COUNT)
    np.testing.assert_array_equal(
        examples.running_NS - 3, np.cumsum(examples.inputs_NS - 3, axis=1) % 7
    )


@pytest.mark.parametrize("form", ["math", "code"])
@pytest.mark.parametrize("depth", [0, 1])
def test_variables_have_the_values_that_were_assigned(depth: int, form: str) -> None:
    for example in texts(f"varassign_depth{depth}_{form}"):
        equations = re.findall(r"^([a-z]) ?= ?(\w+)$", example["inputs"], re.MULTILINE)
        values = dict(equations)
        assert len(values) == len(equations) == 5 * (1 + depth)
        asked = re.search(r"value of ([a-z])\?", example["inputs"])[1]
        value = values[asked]
        if depth:
            assert value in values  # An alias, resolved in one step more.
            value = values[value]
        assert value == example["targets"]
        assert 1 <= int(value) <= 25


STATEMENT = re.compile(r"(\w#\w) (?::=) (.*?)\. ")


def evaluate(expression: str, values: dict[str, int]) -> int:
    coefficient = re.match(r"(\d) \* ", expression)
    rest = expression[coefficient.end() :] if coefficient else expression
    total = 0
    for sign, term in re.findall(r"(^|\+ |- )(\w#\w|\d)", rest):
        value = int(term) if term.isdigit() else values[term]
        total += -value if sign.startswith("-") else value
    return int(coefficient[1] if coefficient else 1) * total % MODULUS


def solve(inputs: str) -> int:
    """Evaluates statements in whatever order they can be."""
    statements, values = dict(STATEMENT.findall(inputs)), {}
    question = re.search(r"(\w#\w)\?$", inputs)[1]
    while question not in values:
        before = len(values)
        for name, expression in statements.items():
            needed = re.findall(r"\w#\w", expression)
            if all(n in values for n in needed):
                values[name] = evaluate(expression, values)
        assert len(values) > before, "the statements are circular"
    return values[question]


def test_igsm_answers_follow_from_the_shuffled_statements() -> None:
    orders = []
    for example in texts("igsm"):
        assert solve(example["inputs"]) == int(example["targets"])
        statements = STATEMENT.findall(example["inputs"])
        assert 8 <= len(statements) == len({name for name, _ in statements}) <= 16
        orders.append([name for name, _ in statements].index(example["inputs"][-4:-1]))
    assert len(set(orders)) > 8  # The asked parameter stands anywhere.


def test_small_igsm_problems_have_two_to_m_parameters_and_right_answers() -> None:
    counts = set()
    for example in texts("igsm_p4"):
        assert solve(example["inputs"]) == int(example["targets"])
        counts.add(len(STATEMENT.findall(example["inputs"])))
    assert counts == {2, 3, 4}
    for name in ("igsm_p1", "igsm_p8"):
        with pytest.raises(UserError, match="parameters must be 2 to 7"):
            get_task(name)


def test_igsm_parameters_join_neighbouring_levels() -> None:
    levels = ("ABCD", "EFGH", "IJKL", "MNOP")
    for example in texts("igsm"):
        for name in re.findall(r"\w#\w", example["inputs"]):
            above = next(i for i, level in enumerate(levels) if name[0] in level)
            assert name[2] in levels[above + 1]


def test_igsm_uses_every_form_of_statement() -> None:
    inputs = " ".join(e["inputs"] for e in texts("igsm"))
    for pattern in (r":= \d\. ", r":= [2-6] \* \w#\w", r"\w#\w - \w#\w", r"\w#\w \+ \d\. "):
        assert re.search(pattern, inputs), pattern


def test_the_chain_of_thought_derives_the_answer_step_by_step() -> None:
    for plain, worked in zip(texts("igsm_cot"), texts("igsm_cot"), strict=True):
        statements = dict(STATEMENT.findall(plain["inputs"]))
        steps = re.findall(r"(\w#\w) = (.*?)\. => (\w#\w) = (\d)\. ", worked["targets"])
        values: dict[str, int] = {}
        for name, expression, again, value in steps:
            assert name == again and statements[name] == expression
            values[name] = evaluate(expression, values)  # KeyError if out of order.
            assert values[name] == int(value)
        asked = re.search(r"(\w#\w)\?$", plain["inputs"])[1]
        assert steps[-1][0] == asked
        assert worked["targets"][-1] == str(values[asked])
        needed = {asked}
        for name, expression, _, _ in reversed(steps):
            assert name in needed  # Nothing that the question does not need.
            needed |= set(re.findall(r"\w#\w", expression))


def test_igsm_depth_and_operations_are_counted_as_their_docstrings_say() -> None:
    from looped_jax.data.tasks.igsm import Problems

    # a := 3; b := a; c := 2 * a - b; the question is c: depth 3; one multiplication and one
    # subtraction; d is not needed.
    problem = Problems(
        name_NP=np.array([[0, 1, 5, 2]]),
        count_N=np.array([4]),
        operand_NP3=np.array([[[-1] * 3, [0, -1, -1], [1, -1, -1], [0, 1, -1]]]),
        minus_NP3=np.array([[[False] * 3, [False] * 3, [False] * 3, [False, True, False]]]),
        constant_NP=np.array([[3, -1, 4, -1]]),
        coefficient_NP=np.array([[1, 1, 1, 2]]),
        value_NP=np.zeros((1, 4), int),
    )
    assert problem.depth_N().tolist() == [3]
    assert problem.needed_NP().tolist() == [[True, True, False, True]]
    assert problem.operations_N().tolist() == [2]
