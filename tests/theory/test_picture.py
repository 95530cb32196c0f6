"""The pictures of the constructions: what they say of their rows, words and colours."""

from collections.abc import Iterator

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from looped_jax.theory import picture, verify


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    found: list[Figure] = []

    def kept(figure: Figure) -> bytes:
        figure.canvas.draw()
        found.append(figure)
        return b"a picture"

    monkeypatch.setattr(picture, "png", kept)
    yield found
    plt.close("all")


def test_a_picture_says_what_its_words_and_colours_are(drawn: list[Figure]) -> None:
    found = verify.verify_p_hop(2, 8, 3, 4, 0, "float32")
    after = ["input", *(f"loop {i}" for i in range(1, len(found.trace)))]
    picture.picture(found, after)
    (axes,) = drawn[0].axes
    assert "the position that it points to" in axes.get_title(loc="left")
    assert axes.get_xlabel() == "position"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(i) for i in range(1, 9)]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == after
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "as the last loop leaves it",
        "not yet",
    ]


def test_the_names_of_what_is_read_off_a_state_are_no_input(drawn: list[Figure]) -> None:
    found = verify.verify_simulate_depth("2x2", 2, 0, "float32")
    picture.picture(found, ["input", "loop 1", "loop 2", "loop 3", "loop 4"])
    (axes,) = drawn[0].axes
    names = ["next layer", "|x| at 0", "|x| at 12", "|x| at 24"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == names
    assert [row[0] for row in found.trace] == ["0", "1", "0", "1", "0"]
    # Layers take turns: that a number is the last one's again says nothing, and is not coloured.
    assert not axes.images[0].get_array().any()
    assert not drawn[0].legends
