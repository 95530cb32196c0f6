"""Generation and scoring for lists of prompts of any lengths, compiled once per shape.

Prompts are sorted by length and batched; batches are padded to a few fixed shapes (a row count and
a length that are powers of two), so that a handful of compilations serve every request.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from looped_jax.data.rows import EOS, PAD
from looped_jax.errors import UserError
from looped_jax.inference.cache import cache_bytes, prefill
from looped_jax.inference.forced import read_at_once
from looped_jax.inference.policy import EXACT, Policy
from looped_jax.inference.sampling import Sampling
from looped_jax.inference.speculative import speculate
from looped_jax.inference.steps import decode_chunk, scored_tokens
from looped_jax.models.transformer import LoopedTransformer, check_loops
from looped_jax.parallel.mesh import BATCH_AXES, mesh_context, replicated

GREEDY = Sampling()
_SMALLEST = 16


def bucket(size: int, smallest: int = _SMALLEST) -> int:
    """The next power of two, at least ``smallest``."""
    return max(smallest, 1 << (size - 1).bit_length())


def check_prompts(prompts: Sequence[Sequence[int]], max_length: int) -> None:
    """UserError for a prompt that is empty, or longer than a model reads."""
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= max_length:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens; this model reads 1 to {max_length}"
            )


@dataclasses.dataclass(frozen=True)
class Generated:
    """What followed a prompt: token ids without EOS, whether it ended by itself (EOS or the
    caller's ``stop``) rather than by its length, and the loops that each token took."""

    tokens: list[int]
    ended: bool
    depths: list[int]


@dataclasses.dataclass(frozen=True)
class Scored:
    """A continuation's log-likelihood in nats, token by token, whether greedy decoding would have
    given exactly it, and the loops that each token took."""

    log_p: np.ndarray
    greedy: bool
    depths: list[int]

    @property
    def total(self) -> float:
        return float(self.log_p.sum())


@dataclasses.dataclass
class Usage:
    """Tokens of prompts asked for and computed: the difference is padding. ``depths``: how many
    tokens were said, or scored, after so many loops; ``cache_bytes``: of the largest cache. With a
    draft, passes of a row with all loops, tokens drafted for them, tokens said (EOS too)."""

    asked: int = 0
    computed: int = 0
    depths: Counter[int] = dataclasses.field(default_factory=Counter)
    cache_bytes: int = 0
    passes: int = 0
    drafted: int = 0
    said: int = 0

    @property
    def padding(self) -> float:
        """Share of computed prompt tokens that were padding."""
        return 1 - self.asked / self.computed if self.computed else 0.0

    @property
    def loops(self) -> float:
        """Mean loops of a token; 0 where there was none."""
        total = sum(self.depths.values())
        return sum(n * count for n, count in self.depths.items()) / total if total else 0.0

    @property
    def of_draft(self) -> dict[str, float]:
        """The share of drafted tokens that were said, and tokens said per pass with all loops, of
        which one is not drafted; empty where nothing was drafted."""
        if not self.drafted:
            return {}
        accepted = (self.said - self.passes) / self.drafted
        return {"accepted": accepted, "tokens_per_pass": self.said / self.passes}


class Generator:
    """Generates with one model, laid out over a mesh like in training. ``params`` may be changed
    between calls: nothing is compiled anew. Several processes all ask the same and all get it.

    ``eos``: the id that ends what is said, of the vocabulary that the prompts are in."""

    def __init__(
        self,
        model: LoopedTransformer,
        params: Any,
        mesh: Mesh,
        rules: Any,
        loops: int | None = None,
        batch_size: int = 16,
        policy: Policy = EXACT,
        eos: int = EOS,
    ):
        check_loops(model, loops)
        policy.check(model.config, loops)
        # Prompts come in lengths that the kernels for training rows do not take.
        model = LoopedTransformer(dataclasses.replace(model.config, attention="xla"))
        self.params = params
        # Prompts are of any length, tokens of length 1: neither is split over devices.
        whole = tuple((n, None if n == "length" else where) for n, where in rules)
        self._context = functools.partial(mesh_context, mesh, whole, model.config.dtype)
        self._shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
        self.max_length = model.config.max_length
        self.batch_size = bucket(max(batch_size, self._shards), self._shards)
        self.usage = Usage()
        self._loops = max(s.loops for s in model.config.plan.with_loops(loops).segments)
        self._cache_bytes = functools.partial(cache_bytes, model.config, loops=loops, policy=policy)
        self._prefill = jax.jit(
            lambda params, tokens, length, capacity: prefill(
                model, params, tokens, length, capacity, loops, policy
            ),
            static_argnums=3,
        )
        # One token is little work: in rolled scans XLA takes a layer's part of the cache by a plain
        # copy, in code laid out straight by a slow loop (docs/performance.md).
        rolled = LoopedTransformer(dataclasses.replace(model.config, unroll="none"))
        self._decode = jax.jit(
            functools.partial(decode_chunk, rolled, loops, policy, eos),
            static_argnums=(0, 1),
            donate_argnums=3,
            out_shardings=(replicated(mesh), replicated(mesh), None, None),
        )
        self._policy, self._draft = policy, policy.draft
        self._eos = eos
        if policy.draft is not None:
            self._speculate = jax.jit(
                functools.partial(speculate, rolled, loops, policy.draft, eos),
                static_argnums=0,
                donate_argnums=2,
                out_shardings=(replicated(mesh), None, None),
            )
        self._score = jax.jit(
            functools.partial(scored_tokens, model, loops, policy), out_shardings=replicated(mesh)
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        first_number: int = 0,
        stop: Callable[[list[int]], bool] | None = None,
        on_tokens: Callable[[int, list[int]], None] | None = None,
        chunk: int = 16,
    ) -> list[Generated]:
        """Continues each prompt (token ids, BOS included) by at most ``max_new_tokens``.

        A sample follows from ``seed`` and the prompt's number, counted from ``first_number``, not
        from the prompts beside it.

        ``stop`` is asked about the new tokens of a row every ``chunk`` tokens, ``on_tokens`` is
        told of them (prompt number, tokens since the last time). A row ends, too, when the model's
        length is full: what is read has at most max_length tokens. UserError for an empty prompt
        or one that is longer, and for a temperature with a draft.
        """
        if self._draft is not None:
            self._draft.check_greedy(sampling.temperature)
        check_prompts(prompts, self.max_length)
        results: dict[int, Generated] = {}
        for batch in self._batches([len(prompt) for prompt in prompts]):
            rows = [prompts[i] for i in batch]
            numbers = [first_number + i for i in batch]
            told = None if on_tokens is None else functools.partial(_tell, on_tokens, batch)
            with self._context():
                made = self._generate_batch(
                    rows, max_new_tokens, sampling, seed, numbers, stop, told, chunk
                )
            results |= dict(zip(batch, made, strict=True))
        return [results[i] for i in range(len(prompts))]

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scored]:
        """Log-likelihoods of continuations given their contexts, pairs of token ids, by the cache
        of the policy: where its loops share keys and values, token by token.

        A context is not empty (BOS at least), nor is a continuation: nothing would be the likeliest
        of all. UserError if one is, or if a pair is longer than the model reads.
        """
        rows = [[*context, *continuation] for context, continuation in pairs]
        for number, (context, continuation) in enumerate(pairs):
            if not continuation:
                raise UserError(f"pair {number} has no continuation to score")
            if not context or len(rows[number]) > self.max_length + 1:
                raise UserError(
                    f"pair {number} has {len(context)} tokens of context and {len(rows[number])} "
                    f"in all; at least 1 and at most {self.max_length + 1} can be scored"
                )
        results: dict[int, Scored] = {}
        # The last token is predicted, never read.
        for batch in self._batches([len(row) - 1 for row in rows]):
            length = min(bucket(max(len(rows[i]) - 1 for i in batch)), self.max_length)
            tokens = self._padded([rows[i] for i in batch], length + 1)
            length_B, context_B = (np.ones(len(tokens), np.int32) for _ in range(2))
            length_B[: len(batch)] = [len(rows[i]) - 1 for i in batch]
            context_B[: len(batch)] = [len(pairs[i][0]) for i in batch]
            given = (tokens[:, :-1], tokens[:, 1:], length_B, context_B)
            with self._context():
                log_p, greedy, depth = jax.device_get(self._score(self.params, *given))
            if not read_at_once(self._policy):
                size = self._cache_bytes(len(tokens), length)
                self.usage.cache_bytes = max(self.usage.cache_bytes, size)
            for row, i in enumerate(batch):
                here = slice(len(pairs[i][0]) - 1, len(rows[i]) - 1)
                depths = self._depths(depth, row, here)
                results[i] = Scored(log_p[row, here], bool(greedy[row, here].all()), depths)
        return [results[i] for i in range(len(pairs))]

    def _depths(self, depth: np.ndarray | None, row: int, here: slice) -> list[int]:
        """Loops of some tokens of a row, also counted; without an exit all take the plan's."""
        length = here.stop - here.start
        found = [self._loops] * length if depth is None else depth[row, here].tolist()
        self.usage.depths.update(found)
        return found

    def _batches(self, lengths: list[int]) -> list[list[int]]:
        """Indices of the rows of each batch: neighbours in length."""
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
        size = self.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        for batch in batches:
            length = min(bucket(max(lengths[i] for i in batch)), self.max_length)
            self.usage.asked += sum(lengths[i] for i in batch)
            self.usage.computed += length * self._rows(len(batch))
        return batches

    def _rows(self, count: int) -> int:
        return min(self.batch_size, bucket(count, self._shards))

    def _padded(self, rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
        tokens = np.full((self._rows(len(rows)), length), PAD, np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        return tokens

    def _generate_batch(
        self,
        prompts: list[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling,
        seed: int,
        numbers: list[int],
        stop: Callable[[list[int]], bool] | None,
        told: Callable[[int, list[int]], None] | None,
        chunk: int,
    ) -> list[Generated]:
        longest = max(map(len, prompts))
        tokens = self._padded(prompts, min(bucket(longest), self.max_length))
        length_B = np.ones(len(tokens), np.int32)
        length_B[: len(prompts)] = [len(prompt) for prompt in prompts]
        # A row can be given as many tokens as fit, and one that is not read.
        room_B = np.minimum(max_new_tokens, self.max_length - length_B + 1)
        # The last token said is not read; one place is never seen (inference/cache.py). Drafted
        # tokens that are not accepted have places, too.
        most = max(1, int(room_B[: len(prompts)].max()))
        capacity = tokens.shape[1] + bucket(most) + (self._draft.tokens if self._draft else 0)
        size = self._cache_bytes(len(tokens), capacity)
        self.usage.cache_bytes = max(self.usage.cache_bytes, size)
        logits, cache = self._prefill(self.params, tokens, length_B, capacity)
        new: list[list[int]] = [[] for _ in prompts]
        depths: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        done_B = np.ones(len(tokens), bool)
        done_B[: len(prompts)] = room_B[: len(prompts)] <= 0
        number_B = np.zeros(len(tokens), np.int32)
        number_B[: len(prompts)] = numbers
        key_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), number_B)
        step, left_B = 0, room_B
        while not done_B.all():
            if self._draft is not None:
                found, logits, cache = self._speculate(
                    chunk, self.params, cache, logits, done_B, left_B
                )
                said = jax.device_get(found)
                out, depth, count_B = said.token_BC, None, said.count_B
                self.usage.passes += (passes := int(said.passes_B.sum()))
                self.usage.drafted += passes * self._draft.tokens
                self.usage.said += int(count_B.sum())
            else:
                out, depth, logits, cache = self._decode(
                    chunk, sampling, self.params, cache, logits, done_B, step, key_B
                )
                out, depth = jax.device_get((out, depth))
                count_B = np.minimum(chunk, left_B)
            left_B = left_B - count_B
            for i in np.flatnonzero(~done_B):
                row = out[i, : count_B[i]].tolist()
                ended[i] = self._eos in row
                row = row[: row.index(self._eos)] if ended[i] else row
                new[i] += row
                depths[i] += self._depths(depth, int(i), slice(0, len(row)))
                if told:
                    told(int(i), row)
                ended[i] = ended[i] or (stop is not None and stop(new[i]))
                done_B[i] = ended[i] or left_B[i] <= 0
            step += chunk
        return [Generated(*made) for made in zip(new, ended, depths, strict=True)]


def _tell(
    on_tokens: Callable[[int, list[int]], None], batch: list[int], row: int, tokens: list[int]
) -> None:
    on_tokens(batch[row], tokens)
