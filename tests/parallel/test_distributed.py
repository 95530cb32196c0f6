"""What the first process does for all, and what the others hear of it."""

from collections.abc import Callable

import numpy as np
import pytest

from looped_jax.errors import RunError, UserError
from looped_jax.parallel import distributed


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[int]]:
    """Makes this process the first, or another, of two; what is sent is in the list."""
    sent: list[int] = []

    def become(first: bool) -> list[int]:
        def broadcast(value: np.ndarray) -> np.ndarray:
            if first:
                sent.append(int(value))
            return np.asarray(sent[-1])

        monkeypatch.setattr(distributed, "several", lambda: True)
        monkeypatch.setattr(distributed, "is_first", lambda: first)
        monkeypatch.setattr(distributed.multihost_utils, "broadcast_one_to_all", broadcast)
        return sent

    return become


@pytest.mark.parametrize(
    ("raised", "heard"),
    [(None, None), (UserError("no"), UserError), (RunError("no"), RunError), (OSError(), RunError)],
    ids=["nothing", "a user's error", "a run's", "any other"],
)
def test_no_process_waits_for_a_first_one_that_failed(
    processes: Callable[[bool], list[int]], raised: Exception | None, heard: type | None
) -> None:
    done = []

    def action() -> None:
        done.append(1)
        if raised is not None:
            raise raised

    processes(True)
    if raised is None:
        distributed.first_does(action)
    else:
        with pytest.raises(type(raised)):
            distributed.first_does(action)
    processes(False)
    if heard is None:
        distributed.first_does(action)
    else:
        with pytest.raises(heard, match="the first process could not go on"):
            distributed.first_does(action)
    assert done == [1]  # The others do nothing themselves.


def test_processes_that_do_not_find_each_other_may_be_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody(**_: object) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED:\n  barrier timed out")

    monkeypatch.setattr(distributed.jax.distributed, "initialize", nobody)
    for name, value in zip(distributed._COORDINATOR, ("host:1", "2", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"did not find each other .*: barrier timed out"):
        distributed.join()
