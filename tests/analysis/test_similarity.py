"""Block-to-block cosines."""

import numpy as np
import pytest
from helpers import init, small_model

from looped_jax.analysis.similarity import block_cosines
from looped_jax.errors import UserError
from looped_jax.training.regularizer import layer_groups, similarity_at


def test_a_block_is_like_itself_and_neighbours_are_as_the_regulariser_says() -> None:
    params = init(small_model("6x1"))
    cosines = block_cosines(params, 2)
    for name, group in layer_groups(params).items():
        cosine_NN = cosines[name]
        np.testing.assert_allclose(np.diag(cosine_NN), 1, atol=1e-6)
        np.testing.assert_allclose(cosine_NN, cosine_NN.T, atol=1e-12)
        # R_G is the mean over neighbouring blocks.
        assert np.mean([cosine_NN[0, 1], cosine_NN[1, 2]]) == pytest.approx(
            float(similarity_at(2, group)), abs=1e-5
        )


def test_parameters_that_are_zero_have_no_direction() -> None:
    params = init(small_model("2x1", bias=True))
    bias = block_cosines(params, 1)["attention/query/bias"]
    np.testing.assert_array_equal(bias, 0)


def test_blocks_must_divide_the_layers() -> None:
    with pytest.raises(UserError, match="do not divide"):
        block_cosines(init(small_model("3x1")), 2)
