"""A trained model in Python: what it says, its states and attention, generation, scores.

    import looped_jax

    model = looped_jax.load("runs/quickstart/looped")
    model.states("a b c")[-1]  # The stream after the last loop, [B, T, D].

No command line is needed, and none of the commands' modules is imported.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from looped_jax.data.rows import PAD
from looped_jax.errors import UserError
from looped_jax.evaluation.held_out import Evaluator
from looped_jax.inference.generator import Generator, Scored, bucket, check_prompts
from looped_jax.inference.policy import Policy
from looped_jax.inference.sampling import Sampling
from looped_jax.inference.text import complete, pair_ids, prompt_ids
from looped_jax.inside.interventions import (
    Change,
    Patch,
    check,
    intervention,
    loops_of,
    parse,
)
from looped_jax.inside.lens import Lens, jitted_lens
from looped_jax.inside.passes import Seen, check_shown, is_looped, jitted_look, watched_segment
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.models.transformer import LoopedTransformer, check_loops
from looped_jax.parallel.mesh import BATCH_AXES
from looped_jax.training.evaluations import held_out_sets
from looped_jax.training.run import OpenRun, open_run

# A text, texts, the ids of one row, or of several.
Given = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model with the parameters of one checkpoint. ``loops``: in place of the plan's.

    Arrays that come out are NumPy's, float32, [B, T, …] with T the tokens of the longest row;
    places behind a shorter row's end mean nothing. What goes in is a text, a list of texts, the ids
    of a row, or a list of rows of ids; UserError for one that is empty or longer than the model
    reads, or not in its vocabulary.
    """

    run: OpenRun
    params: Any
    loops: int | None = None
    changes: tuple[Change, ...] = ()
    patches: tuple[Patch, ...] = ()

    @property
    def model(self) -> LoopedTransformer:
        return self.run.job.model

    @property
    def plan(self) -> LoopPlan:
        return self.model.config.plan

    @property
    def step(self) -> int:
        return self.run.step

    @property
    def vocabulary(self) -> Any:
        return self.run.job.data.vocabulary

    def with_loops(self, loops: int | None) -> "Opened":
        """The same model at another loop count. UserError for one that it cannot have."""
        check_loops(self.model, loops)
        if self.changes:
            check(self.model.config, self.changes, loops)
        return dataclasses.replace(self, loops=loops)

    def intervened(self, text: str) -> "Opened":
        """The same model with changes inside its loops, in the form that inside/interventions.py
        says; they hold for logits, states, attention and `evaluate`. UserError for one that this
        model cannot have."""
        changes = (*self.changes, *parse(text))
        check(self.model.config, changes, self.loops)
        check_loops(self.model, loops_of(changes, self.loops))
        return dataclasses.replace(self, changes=changes)

    def patched(self, given: Given, loop: int, places: Sequence[int]) -> "Opened":
        """The same model, in which after loop ``loop`` (counted from 1) the streams at these places
        (from 0) are those that ``given``, as many rows as will be asked or one, has there."""
        check(self.model.config, [Change("skip", (loop - 1,))], self.loops)
        states_BTD = self.states(given)[loop - 1]
        if beyond := [place for place in places if not 0 <= place < states_BTD.shape[1]]:
            raise UserError(f"place {beyond[0]}: the rows have {states_BTD.shape[1]} tokens")
        streams_BPD = states_BTD[:, list(places)]
        patch = Patch(streams_BPD, loop - 1, tuple(places))
        return dataclasses.replace(self, patches=(*self.patches, patch))

    def evaluate(self, split: str = "validation") -> dict[str, float]:
        """What looped_jax.evaluate says of held-out rows of the run's tasks; with a patch, whose
        states have to be those of one row, of each of them with it."""
        job = self.run.job
        if any(len(patch.streams_BPD) > 1 for patch in self.patches):
            raise UserError("evaluate patches all rows alike: patch with one row")
        evaluator = Evaluator(
            *(job.model, job.mesh, job.rules, loops_of(self.changes, self.loops)),
            intervention=intervention(self.changes, self.patches),
        )
        found: dict[str, float] = {}
        for held_out in held_out_sets(job, split):
            found |= evaluator(self.params, held_out) or {}
        return found

    def tokens(self, given: Given) -> list[list[int]]:
        """The ids of each row, of a text with what its vocabulary puts in front."""
        if isinstance(given, str):
            given = [given]
        rows: Any = given
        if not len(rows):
            raise UserError("there are no rows: give a text, a list of texts, or ids")
        if isinstance(rows[0], (int, np.integer)):
            rows = [rows]
        ids = [
            prompt_ids(self.vocabulary, row) if isinstance(row, str) else [int(i) for i in row]
            for row in rows
        ]
        check_prompts(ids, self.model.config.max_length)
        return ids

    def logits(self, given: Given) -> np.ndarray:
        """[B, T, V]: of each token, what comes next; V are the ids in use."""
        return self._seen(given, None, says=True).logits_BTV

    def states(
        self, given: Given, *, layers: bool = False, segment: int | None = None
    ) -> np.ndarray:
        """[L, B, T, D]: the stream after every loop of the looped segment (or ``segment``, counted
        from 0); with ``layers`` [L, k, B, T, D], after every layer of every loop."""
        seen = self._seen(given, segment, states=not layers, layers=layers)
        return seen.layers_LkBTD if layers else seen.states_LBTD

    def attention(self, given: Given, *, segment: int | None = None) -> np.ndarray:
        """[L, k, B, H, T, T]: what each token (second to last axis) takes of each."""
        return self._seen(given, segment, weights=True).weights_LkBHTS

    def lens(
        self,
        given: Given,
        targets: Sequence[Sequence[int]] | None = None,
        *,
        top: int = 5,
        segment: int | None = None,
    ) -> Lens:
        """What the model would say at each token had it stopped after each loop (inside/lens.py).
        ``targets``: of each row the right next token of each place; without, the row's own."""
        config, job = self.model.config, self.run.job
        rows, number = self.tokens(given), watched_segment(config, segment)
        if not is_looped(config, number):
            check_shown(config, number)
        if "nest" in dict(config.loop):
            raise UserError("config.loop.nest: most of its loops end a state that is not read out")
        if self.patches:
            raise UserError("patches are for logits, states, attention and evaluate")
        tokens_BT, ids_BT = self._padded(rows)
        right = [[*row[1:], 0] for row in rows] if targets is None else targets
        targets_BT = np.zeros_like(tokens_BT)
        for place, row in enumerate(right):
            targets_BT[place, : len(row)] = row
        what: dict[str, Any] = {"segment": number, "loops": self.loops, "changes": self.changes}
        what["top"] = min(top, config.ids_in_use or config.vocab_size)
        with job.context():
            seen = jitted_lens(self.model, self.params, tokens_BT, ids_BT, targets_BT, **what)
            seen = jax.device_get(seen)
        longest = max(map(len, rows))
        return jax.tree.map(lambda array: array[:, : len(rows), :longest], seen)

    def generate(
        self,
        prompts: str | Sequence[str],
        max_tokens: int = 32,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stops: Sequence[str] = (),
        exit: str = "none",
        cache: str = "per_loop",
    ) -> list[str]:
        """What follows each prompt, up to a stop text or the end of the document. ``exit``,
        ``cache``: as --exit and --cache of looped_jax.generate."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        sampling = Sampling(temperature, top_k, top_p)
        generator = self._generator(min(16, len(prompts)), exit, cache)
        given: dict[str, Any] = {"stops": stops, "sampling": sampling, "seed": seed}
        return complete(generator, self.vocabulary, prompts, max_tokens, **given)

    def score(
        self, pairs: Sequence[tuple[str, str]], *, exit: str = "none", cache: str = "per_loop"
    ) -> list[Scored]:
        """Log-likelihoods of continuations after their contexts, token by token."""
        ids = [pair_ids(self.vocabulary, *pair) for pair in pairs]
        return self._generator(min(16, len(ids)), exit, cache).score(ids)

    def _generator(self, rows: int, exit: str, cache: str) -> Generator:
        job = self.run.job
        if self.changes or self.patches:
            raise UserError("interventions are for logits, states, attention and evaluate")
        policy = Policy.parse(cache, exit, "none")
        policy.check(self.model.config, self.loops)
        return Generator(
            *(job.model, self.params, job.mesh, job.rules, self.loops),
            batch_size=max(1, rows),
            policy=policy,
            eos=self.vocabulary.eos,
        )

    def _seen(self, given: Given, segment: int | None, **asked: bool) -> Any:
        """A pass of these rows, cut to their length."""
        config, job = self.model.config, self.run.job
        rows = self.tokens(given)
        number = watched_segment(config, segment)
        if asked.get("layers") or asked.get("weights"):
            check_shown(config, number)
        tokens_BT, ids_BT = self._padded(rows)
        longest = max(map(len, rows))
        with job.context():
            what: dict[str, Any] = {"segment": number, "loops": self.loops, **asked}
            what |= {"changes": self.changes, "patches": self._patches(len(tokens_BT), longest)}
            seen = jitted_look(self.model, self.params, tokens_BT, ids_BT, **what)
            seen = jax.device_get(seen)
        count = len(rows)
        cut = {
            "logits_BTV": lambda x: x[:count, :longest],
            "states_LBTD": lambda x: x[:, :count, :longest],
            "layers_LkBTD": lambda x: x[:, :, :count, :longest],
            "weights_LkBHTS": lambda x: x[:, :, :count, :, :longest, :longest],
        }
        there = {name: getattr(seen, name) for name in cut}
        return Seen(**{n: None if x is None else cut[n](x) for n, x in there.items()})

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """tokens_BT and segment_ids_BT, rows and length such that they fit the mesh and few
        programs are compiled."""
        length = min(bucket(max(map(len, rows))), self.model.config.max_length)
        tokens_BT = np.full((self.shards * -(-len(rows) // self.shards), length), PAD, np.int32)
        ids_BT = np.zeros_like(tokens_BT)
        for place, row in enumerate(rows):
            tokens_BT[place, : len(row)] = row
            ids_BT[place, : len(row)] = 1
        return tokens_BT, ids_BT

    def _patches(self, rows: int, longest: int) -> tuple[Patch, ...]:
        """For so many rows; those behind the patch's own take its last one's. UserError for places
        that no row has."""
        found = []
        for patch in self.patches:
            if max(patch.places) >= longest:
                raise UserError(f"place {max(patch.places)} is patched; the rows have {longest}")
            own = np.minimum(np.arange(rows), len(patch.streams_BPD) - 1)
            found.append(patch.replace(streams_BPD=patch.streams_BPD[own]))
        return tuple(found)

    @functools.cached_property
    def shards(self) -> int:
        """Over how many parts of the mesh rows are split."""
        return int(np.prod([self.run.job.mesh.shape[axis] for axis in BATCH_AXES]))


def load(
    workdir: Any,
    step: int | None = None,
    loops: int | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Opened:
    """The model of a run: at its newest checkpoint, or that of ``step``; at ``loops`` in place of
    the plan's. ``overrides``: keys of its config, as on the command line.

    UserError if there is no such run or checkpoint, or the model cannot have so many loops.
    """
    run = open_run(str(workdir), step, overrides)
    check_loops(run.job.model, loops)
    return Opened(run, run.parameters(), loops)
