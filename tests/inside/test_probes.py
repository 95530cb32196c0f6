"""Probes find what is linear in a state, and nothing else."""

import numpy as np

from looped_jax.inside.probes import accuracies, most_frequent
from looped_jax.inside.quantities import Quantity

N, WIDTH, CLASSES = 1024, 12, 5
DRAWN = np.random.default_rng(0)


def halves(states: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Accuracy by loop, and that of the most frequent class."""
    both = [Quantity("q", part, CLASSES) for part in (labels[: N // 2], labels[N // 2 :])]
    pairs = [(states[:, : N // 2], [both[0]]), (states[:, N // 2 :], [both[1]])]
    return accuracies(*pairs)[0], most_frequent(*both)


def test_a_probe_finds_what_is_linear_in_one_loop_and_not_in_the_other() -> None:
    states = DRAWN.normal(size=(2, N, WIDTH)).astype(np.float32)
    labels = np.argmax(states[1] @ DRAWN.normal(size=(WIDTH, CLASSES)), axis=-1)
    of_loops, frequent = halves(states, labels)
    assert of_loops[1] > 0.9
    assert abs(of_loops[0] - frequent) < 0.15


def test_a_probe_does_not_find_what_is_a_product_of_two_coordinates() -> None:
    states = DRAWN.choice([-1.0, 1.0], size=(1, N, WIDTH)).astype(np.float32)
    labels = (states[0, :, 0] * states[0, :, 1] > 0).astype(int)
    assert abs(halves(states, labels)[0][0] - 0.5) < 0.1
    # Until it is a coordinate itself.
    states[0, :, 2] = states[0, :, 0] * states[0, :, 1]
    assert halves(states, labels)[0][0] == 1.0


def test_scale_place_and_what_never_varies_change_nothing() -> None:
    states = DRAWN.normal(size=(1, N, WIDTH)).astype(np.float32)
    labels = np.argmax(states[0][:, :CLASSES], axis=-1)
    plain, _ = halves(states, labels)
    moved = np.concatenate([1000 * states + 7, np.ones((1, N, 3), np.float32)], axis=-1)
    assert abs(plain[0] - halves(moved, labels)[0][0]) < 0.02
