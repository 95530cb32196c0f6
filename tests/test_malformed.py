"""A sample of benchmarks/malformed.py: inputs with something wrong are answered in one line."""

import pathlib

from benchmarks.malformed import Outcome, Worker, complaint
from benchmarks.malformed_inputs import KINDS, Case, cases


def test_malformed_inputs_are_answered_in_one_line_that_names_what_is_wrong(
    tmp_path: pathlib.Path,
) -> None:
    with Worker(tmp_path) as worker:
        tried = cases(3 * len(KINDS), 7, tmp_path)
        said = {str(case): complaint(case, worker.answer(case)) for case in tried}
    assert len(said) >= 2.5 * len(KINDS)
    assert not {case: wrong for case, wrong in said.items() if wrong}


def test_the_judge_finds_what_is_wrong_with_an_answer() -> None:
    case = Case("k", "main", ("--x",), ("x",))
    assert not complaint(case, Outcome(2, "", "error: no x\n", (), 1.0))
    for outcome in (
        Outcome(None, "", "", (), 60.0),
        Outcome(1, "", "error: no x\n", (), 1.0),
        Outcome(0, "", "", (), 1.0),
        Outcome(2, "", "Traceback (most recent call last):\nerror: no x\n", (), 1.0),
        Outcome(2, "", "W0000 note\nerror: no x\n", (), 1.0),
        Outcome(2, "", "error: something is wrong\n", (), 1.0),
        Outcome(2, "", "error: no x " + "9" * 5000, (), 1.0),
        Outcome(2, "", "error: no x\n", ("w/config.json",), 1.0),
    ):
        assert complaint(case, outcome), outcome
