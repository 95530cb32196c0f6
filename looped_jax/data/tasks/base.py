"""What a synthetic task is: a pure function from (seed, split, index) to an example.

Examples are generated in blocks: block b of a split comes from one random stream seeded by
(task, seed, split, b), so any index is reached without the ones before it, and a block is
vectorised numpy. Splits never share an example, whatever the seed: a hash of the inputs says
which split an example belongs to (train 3/4, validation 1/8, test 1/8), and a split keeps only
its own.
"""

import abc
import dataclasses
import functools
import re
import zlib

import numpy as np

from looped_jax.data.rows import BOS, EOS, FIRST_FREE_ID, PAD
from looped_jax.errors import UserError

SPLITS = ("train", "validation", "test")
BLOCK = 512
# Eighths of the hash space: [start, stop).
_SPLIT_EIGHTHS = {"train": (0, 6), "validation": (6, 7), "test": (7, 8)}
_MAX_DRAWS_WITHOUT_A_NEW_EXAMPLE = 64


@dataclasses.dataclass(frozen=True)
class Examples:
    """N examples as padded token ids; `running_NS` as in data/rows.py."""

    inputs_NS: np.ndarray
    answers_NA: np.ndarray
    running_NS: np.ndarray | None = None

    def take(self, which: np.ndarray) -> "Examples":
        """The examples chosen by an index or boolean array."""
        running = None if self.running_NS is None else self.running_NS[which]
        return Examples(self.inputs_NS[which], self.answers_NA[which], running)

    @staticmethod
    def concatenate(parts: "list[Examples]") -> "Examples":
        """Joins parts of one task."""
        running = None
        if all(part.running_NS is not None for part in parts):
            running = np.concatenate([p.running_NS for p in parts if p.running_NS is not None])
        return Examples(
            np.concatenate([part.inputs_NS for part in parts]),
            np.concatenate([part.answers_NA for part in parts]),
            running,
        )


class Vocabulary:
    """Token strings; ids start after PAD, BOS and EOS. Text is the tokens joined."""

    bos, eos, before = BOS, EOS, (BOS,)

    def __init__(self, tokens: tuple[str, ...]):
        self.tokens = tokens
        self.size = FIRST_FREE_ID + len(tokens)
        self._ids = {token: FIRST_FREE_ID + i for i, token in enumerate(tokens)}
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def id(self, token: str) -> int:
        """The id of one token."""
        return self._ids[token]

    def ids(self, tokens: list[str] | tuple[str, ...]) -> np.ndarray:
        """The ids of several tokens."""
        return np.array([self._ids[token] for token in tokens])

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, longest token first; UserError at the first foreign text."""
        ids, at = [], 0
        while at < len(text):
            match = self._pattern.match(text, at)
            if match is None:
                raise UserError(f"{text[at : at + 12]!r} is not in this task's vocabulary")
            ids.append(self._ids[match[0]])
            at = match.end()
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """Text of token ids; PAD, BOS and EOS have none."""
        return "".join(self.tokens[i - FIRST_FREE_ID] for i in ids if i >= FIRST_FREE_ID)


class SyntheticTask(abc.ABC):
    """A task; subclasses define the vocabulary, widths and how a batch is drawn."""

    name: str
    vocabulary: Vocabulary
    max_inputs: int  # Tokens of the longest inputs.
    max_answer: int  # Tokens of the longest answer, its EOS included where it has one.
    has_running_targets = False
    # Exact match of one who guesses among the possible answers; None: not known.
    chance: float | None = None

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> Examples:
        """Draws ``count`` examples, of any split."""

    @property
    def row_length(self) -> int:
        """T that holds every example: BOS and inputs, and all of the answer but its last token."""
        return self.max_inputs + self.max_answer

    def examples(self, seed: int, split: str, indices: np.ndarray) -> Examples:
        """The examples with these indices (int array [N]); the same ones for ever."""
        if split not in SPLITS:
            raise UserError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        blocks, offsets = np.divmod(np.asarray(indices), BLOCK)
        parts, order = [], []
        for block in np.unique(blocks):
            where = np.flatnonzero(blocks == block)
            parts.append(_block(self, seed, split, int(block)).take(offsets[where]))
            order.append(where)
        joined = Examples.concatenate(parts)
        return joined.take(np.argsort(np.concatenate(order), kind="stable"))

    def texts(self, seed: int, split: str, indices: np.ndarray) -> list[dict[str, str]]:
        """The same examples as text fields ``inputs`` and ``targets``."""
        examples = self.examples(seed, split, indices)
        decode = self.vocabulary.decode
        return [
            {"inputs": decode(inputs), "targets": decode(answer)}
            for inputs, answer in zip(examples.inputs_NS, examples.answers_NA, strict=True)
        ]


# Neighbouring steps read the same block; threads that prefetch read a few.
@functools.lru_cache(maxsize=64)
def _block(task: SyntheticTask, seed: int, split: str, block: int) -> Examples:
    key = (zlib.crc32(task.name.encode()), seed, SPLITS.index(split), block)
    rng = np.random.default_rng(np.random.SeedSequence([abs(k) for k in key]))
    start, stop = _SPLIT_EIGHTHS[split]
    kept: list[Examples] = []
    count = barren = 0
    while count < BLOCK:
        drawn = task.draw(rng, 2 * BLOCK)
        eighth = content_hash(drawn.inputs_NS) >> np.uint64(61)
        mine = np.flatnonzero((eighth >= start) & (eighth < stop))
        barren = 0 if len(mine) else barren + 1
        if barren > _MAX_DRAWS_WITHOUT_A_NEW_EXAMPLE:
            raise UserError(f"task {task.name} has too few distinct examples to fill {split}")
        kept.append(drawn.take(mine))
        count += len(mine)
    return Examples.concatenate(kept).take(np.arange(BLOCK))


def content_hash(inputs_NS: np.ndarray) -> np.ndarray:
    """uint64 hash of each row's tokens, the same however far the row is padded.

    Polynomial over the tokens, then the finaliser of splitmix64 to spread it over all bits.
    """
    with np.errstate(over="ignore"):
        value = np.zeros(len(inputs_NS), dtype=np.uint64)
        for column in inputs_NS.T.astype(np.uint64):
            step = value * np.uint64(0x9E3779B97F4A7C15) + column
            value = np.where(column == PAD, value, step ^ (step >> np.uint64(29)))
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def left_align(tokens_NS: np.ndarray) -> np.ndarray:
    """Moves PAD behind everything else, keeping the order, and cuts columns of PAD only."""
    is_pad = tokens_NS == PAD
    order = np.argsort(is_pad, axis=1, kind="stable")
    width = int((~is_pad).sum(axis=1).max(initial=1))
    return np.take_along_axis(tokens_NS, order, axis=1)[:, :width]
