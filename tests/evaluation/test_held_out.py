import math
from typing import Any

import jax
import numpy as np
import pytest
from helpers import batch_logits, init, share, small_config, small_model, token_logits

from looped_jax.data.documents import Document, Turn
from looped_jax.data.rows import answer_rows
from looped_jax.data.run_data import resolve
from looped_jax.data.text import pack_in_memory
from looped_jax.data.vocabulary import Bytes
from looped_jax.evaluation.held_out import Evaluator, HeldOut
from looped_jax.models.transformer import LoopedTransformer
from looped_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def setup() -> tuple:
    config = small_config(mesh__data=2, train__batch_size=4)
    model = small_model("1x2", vocab_size=264, max_length=12)
    return config, make_mesh(config), model, init(model)


class FixedRows:
    """A row source over rows made beforehand."""

    def __init__(self, rows: dict):
        self._rows = rows
        self.num_rows, self.length = rows["tokens"].shape
        self.vocab_size = 264
        self.fingerprint = ""

    def rows(self, indices: np.ndarray) -> dict:
        return {key: value[indices] for key, value in self._rows.items()}


def greedy(model: LoopedTransformer, params: Any, inputs: list[int], count: int) -> list[int]:
    """Generates token by token, as a user of the model would."""
    tokens = list(inputs)
    forward = jax.jit(lambda t: token_logits(model, params, t))
    for _ in range(count):
        padded = np.zeros((1, 12), np.int32)
        padded[0, : len(tokens)] = tokens
        tokens.append(int(forward(padded)[0, len(tokens) - 1].argmax()))
    return tokens[len(inputs) :]


def test_exact_match_is_that_of_greedy_generation(setup: tuple) -> None:
    config, mesh, model, params = setup
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, 264, size=(10, 5))
    answers = rng.integers(3, 264, size=(10, 3))
    for i in range(0, 10, 2):  # Half of the answers are what the model itself would say.
        while min(own := greedy(model, params, [1, *inputs[i]], 3)) < 3:
            inputs[i] = rng.integers(3, 264, size=5)  # PAD cannot be part of an answer.
        answers[i] = own
    right = [greedy(model, params, [1, *inputs[i]], 3) == answers[i].tolist() for i in range(10)]
    assert 5 <= sum(right) < 10
    source = FixedRows(answer_rows(inputs, answers, 12))
    held_out = HeldOut.from_source("task", source, 10, 4)
    metrics = Evaluator(model, mesh, config.mesh.rules)(params, held_out)
    assert metrics["eval/task/accuracy"] == pytest.approx(sum(right) / 10)


def test_text_metrics_are_those_of_their_definitions(setup: tuple) -> None:
    config, mesh, model, params = setup
    texts = {"en": "The quick brown fox.", "de": "Ja, öfter."}
    documents = (Document((Turn("", text),), component) for component, text in texts.items())
    source = pack_in_memory(documents, Bytes(), length=12)
    held_out = HeldOut.from_source("text", source, 100, 4)
    metrics = Evaluator(model, mesh, config.mesh.rules)(params, held_out)
    rows = source.rows(np.arange(source.num_rows))
    logits = np.asarray(batch_logits(model, params, rows), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_p, rows["targets"][..., None], -1)[..., 0]
    total = (nats * rows["loss_weights"]).sum()
    size = len(b"The quick brown fox.") + len("Ja, öfter.".encode())
    tokens = size + 2  # Each document's EOS is predicted too, and is no byte.
    assert metrics["eval/text/loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert metrics["eval/text/perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert metrics["eval/text/bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    assert "eval/text/accuracy" not in metrics
    weights = rows["loss_weights"]
    for i, component in enumerate(("de", "en")):
        own = (rows["group"] == i) * weights
        expected = (nats * own).sum()
        size = len(texts[component].encode())
        found = metrics[f"eval/text/{component}/loss"]
        assert found == pytest.approx(expected / (size + 1), rel=1e-5)
        found = metrics[f"eval/text/{component}/bits_per_byte"]
        assert found == pytest.approx(expected / math.log(2) / size, rel=1e-5)


def test_batches_are_shared_between_processes(setup: tuple) -> None:
    source = resolve(setup[0]).source("validation")
    whole = HeldOut.from_source("x", source, 10, 4)
    parts = [HeldOut.from_source("x", source, 10, 4, share(i, 2, 4)) for i in range(2)]
    for i, batch in enumerate(whole.batches):
        joined = np.concatenate([part.batches[i]["tokens"] for part in parts])
        np.testing.assert_array_equal(batch["tokens"], joined)
