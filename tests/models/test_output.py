"""What trains, evaluates, scores and generates has one output projection; padding is no id."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import batch_logits, init, random_rows, small_config, small_model

from looped_jax.data.rows import BOS
from looped_jax.inference.generator import Generator
from looped_jax.inference.sampling import Sampling
from looped_jax.models.loss import loss_sums, token_scores
from looped_jax.models.transformer import batch_forward
from looped_jax.parallel.mesh import make_mesh

LENGTH, IDS = 16, 250


def model_and_params(**fields: Any) -> tuple[Any, Any]:
    model = small_model("1x2", vocab_size=256, ids_in_use=IDS, max_length=LENGTH, **fields)
    # Large logits, whose differences bfloat16 cannot tell.
    return model, jax.tree.map(lambda leaf: 6 * leaf, init(model, seed=1))


def generator(model: Any, params: Any, batch_size: int = 4) -> Generator:
    config = small_config(mesh__data=1)
    return Generator(model, params, make_mesh(config), config.mesh.rules, batch_size=batch_size)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_in_bfloat16_scores_and_greedy_tokens_are_those_of_the_evaluation(tied: bool) -> None:
    model, params = model_and_params(dtype=jnp.bfloat16, tied_output=tied)
    rows = random_rows(rows=4, length=LENGTH + 1, vocab=IDS)["tokens"]
    rows[:, 0] = BOS

    @jax.jit
    def evaluated(params: Any, tokens: Any) -> Any:
        batch = {"tokens": tokens[:, :-1], "segment_ids": None, "positions": None}
        output = batch_forward(model, params, batch)
        return token_scores(model.config, output.x_BTD, output.kernel_VD, tokens[:, 1:])

    xent_BT, likeliest_BT = map(np.asarray, evaluated(params, rows))
    own = generator(model, params)
    scored = own.score([([BOS], row[1:].tolist()) for row in rows])
    np.testing.assert_allclose([s.log_p for s in scored], -xent_BT, rtol=1e-5, atol=1e-5)
    greedy = [(rows[0, : t + 1].tolist(), [int(likeliest_BT[0, t])]) for t in range(LENGTH)]
    assert all(s.greedy for s in own.score(greedy))
    said = [row.tokens for row in own.generate([context for context, _ in greedy], 1)]
    assert said == [token for _, token in greedy]


def test_what_pads_the_vocabulary_takes_no_probability_and_no_gradient() -> None:
    model, params = model_and_params()
    rows = random_rows(rows=2, length=LENGTH, vocab=IDS)

    def loss(params: Any) -> Any:
        output = batch_forward(model, params, rows)
        return loss_sums(
            model.config, output.x_BTD, output.kernel_VD, rows["targets"], rows["loss_weights"]
        )[1]

    logits = batch_logits(model, params, rows)
    p_BTV = jax.nn.softmax(logits)
    assert p_BTV[..., IDS:].max() == 0
    # The padding's rows may hold anything.
    table = params["embed"]["embedding"]
    other = {**params, "embed": {"embedding": table.at[IDS:].set(100.0)}}
    assert loss(params) == loss(other)


def test_what_pads_the_vocabulary_is_never_generated_however_hot() -> None:
    model, params = model_and_params()
    hot = Sampling(temperature=1e6)
    made = generator(model, params, 16).generate([[BOS]] * 16, LENGTH, sampling=hot)
    tokens = np.concatenate([row.tokens for row in made])
    assert len(tokens) > 100 and len(set(tokens.tolist())) > 50
    assert tokens.max() < IDS


def test_a_sample_follows_from_its_number_and_not_from_its_batch() -> None:
    model, params = model_and_params()
    prompts = [[BOS, *range(3, 3 + n)] for n in (1, 4, 2, 7)]
    hot = Sampling(temperature=2.0)
    together = generator(model, params, 4).generate(prompts, 8, sampling=hot)
    alone = generator(model, params, 1).generate(prompts, 8, sampling=hot)
    assert together == alone
    third = generator(model, params, 1).generate([prompts[2]], 8, sampling=hot, first_number=2)
    assert third == [together[2]]
    again = generator(model, params, 1).generate([prompts[2]] * 2, 8, sampling=hot)
    assert again[0] != again[1]


def test_scoring_takes_no_more_memory_than_the_loss_at_256000_ids() -> None:
    rows, length = 16, 1280
    model = small_model(
        "1x1", vocab_size=256_000, max_length=length, d_model=64, num_heads=1, num_kv_heads=1,
        dtype=jnp.bfloat16,
    )  # fmt: skip
    params = jax.eval_shape(lambda: init(model))
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    batch = {"tokens": tokens, "segment_ids": None, "positions": None}

    def loss(params: Any, batch: Any, targets: Any) -> Any:
        output = batch_forward(model, params, batch)
        weights = jnp.ones(targets.shape)
        return loss_sums(model.config, output.x_BTD, output.kernel_VD, targets, weights)[0]

    of_loss = jax.jit(jax.value_and_grad(loss)).lower(params, batch, tokens).compile()
    own = generator(model, None)
    count_B = jax.ShapeDtypeStruct((rows,), jnp.int32)
    of_score = own._score.lower(params, tokens, tokens, count_B, count_B).compile()
    needed, given = (p.memory_analysis().temp_size_in_bytes for p in (of_score, of_loss))
    assert needed < 1.3 * given
    assert needed < rows * length * 256_000 * 4 / 4  # A quarter of all logits.
