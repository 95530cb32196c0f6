"""Rows: the one form in which synthetic tasks and text reach the model.

A row source answers `rows(indices)` with a dictionary of arrays of shape [N, T]:
  tokens        int32  what the model reads
  targets       int32  what it should predict at each position
  loss_weights  float32  1 where the prediction is trained on, else 0
  answer        bool   the positions that must all be right for an exact match
  segment_ids   int32  document number within the row from 1; 0 is padding
  positions     int32  position within the document
and, where it is text, for evaluation:
  group         int32  index of the component (of the Pile, say) that a token belongs to
  target_bytes  int32  bytes of text behind the target
  document      int64  which document of the source a token belongs to, whatever row it is in; -1 is
                       padding (an evaluation has int32 indices among its own, data/pipeline.py)
"""

from typing import Protocol

import numpy as np

Rows = dict[str, np.ndarray]

# What a training step needs; exact match, components and bytes are for evaluation.
TRAIN_KEYS = ("tokens", "targets", "loss_weights", "segment_ids", "positions")

PAD, BOS, EOS = 0, 1, 2
FIRST_FREE_ID = 3


class RowSource(Protocol):
    """Random access to rows."""

    @property
    def num_rows(self) -> int | None:
        """Number of rows; None where the source never ends."""
        ...

    @property
    def length(self) -> int:
        """T, tokens per row."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, ids in use."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells apart sources whose rows differ although their configs agree."""
        ...

    def rows(self, indices: np.ndarray) -> Rows:
        """Returns the rows with these indices: a pure function of the source and them."""
        ...


def answer_rows(
    inputs_NS: np.ndarray, answers_NA: np.ndarray, length: int, running_NS: np.ndarray | None = None
) -> Rows:
    """Lays `BOS inputs answer` out as next-token prediction, one example a row.

    Args:
      inputs_NS: int token ids, padded with PAD on the right.
      answers_NA: int token ids, padded with PAD on the right; not empty.
      length: T; rows are padded to it.
      running_NS: targets for the input positions themselves, PAD where there are none; the
        loss then covers them too, the exact match still the answer only.
    """
    count, width = inputs_NS.shape
    joined = np.concatenate(
        [np.full((count, 1), BOS), inputs_NS, answers_NA, np.full((count, 1), PAD)], axis=1
    )
    is_answer = np.zeros(joined.shape, dtype=bool)
    is_answer[:, 1 + width : -1] = answers_NA != PAD
    # Left-align what is not padding; a stable sort keeps the order.
    order = np.argsort(joined == PAD, axis=1, kind="stable")
    joined = np.take_along_axis(joined, order, axis=1)
    is_answer = np.take_along_axis(is_answer, order, axis=1)

    tokens, targets, answer = joined[:, :-1], joined[:, 1:], is_answer[:, 1:]
    loss_weights = answer.astype(np.float32)
    if running_NS is not None:
        targets = targets.copy()
        running = np.pad(running_NS, ((0, 0), (1, targets.shape[1] - width - 1)))
        use = (running != PAD) & ~answer
        targets[use] = running[use]
        loss_weights[use] = 1.0
    # The last answer token is predicted, never read.
    used = int(np.max((answer * np.arange(1, answer.shape[1] + 1)).max(axis=1)))
    if used > length:
        raise ValueError(f"an example has {used} tokens, the row only {length}")
    last = answer.shape[1] - 1 - np.argmax(answer[:, ::-1], axis=1)
    real = np.arange(answer.shape[1]) <= last[:, None]

    def fit(array: np.ndarray, dtype: type) -> np.ndarray:
        array = (array * real).astype(dtype)[:, :length]
        return np.pad(array, ((0, 0), (0, length - array.shape[1])))

    return {
        "tokens": fit(tokens, np.int32),
        "targets": fit(targets, np.int32),
        "loss_weights": fit(loss_weights, np.float32),
        "answer": fit(answer, bool),
        "segment_ids": fit(np.ones_like(tokens), np.int32),
        "positions": fit(np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape), np.int32),
    }
