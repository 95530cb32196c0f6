"""A run as a model of EleutherAI's lm-evaluation-harness, so that its tasks work unchanged.

    import lm_eval
    from looped_jax.interop.lm_eval_model import LoopedJax

    lm_eval.simple_evaluate(model=LoopedJax("runs/pile_12x2"), tasks=["lambada_openai"])

Needs the extra `lm-eval`.
"""

import functools
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from looped_jax.errors import UserError, from_extra

with from_extra("lm-eval", "looped_jax.interop.lm_eval_model"):
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from looped_jax.inference.generator import Generator
from looped_jax.inference.policy import Policy
from looped_jax.inference.sampling import Sampling
from looped_jax.inference.text import cut, fit_pair, fit_prompt, pair_ids, prompt_ids
from looped_jax.training.run import open_run

DEFAULT_NEW_TOKENS = 256


class LoopedJax(LM):
    """loglikelihood, loglikelihood_rolling and generate_until of one checkpoint.

    Texts start with BOS. What is longer than the model reads loses its beginning, as is usual in
    the harness (inference/text.py). ``cache``, ``exit`` and ``draft`` as looped_jax.generate
    takes them; with a draft, requests that sample are refused.
    """

    def __init__(
        self,
        workdir: str,
        step: int | None = None,
        loops: int | None = None,
        batch_size: int = 16,
        cache: str = "per_loop",
        exit: str = "none",
        draft: str = "none",
    ):
        super().__init__()
        policy = Policy.parse(cache, exit, draft)
        run = open_run(workdir, step)
        if run.job.config.data.task != "text":
            raise UserError(f"{workdir} is not a language model: its task is synthetic")
        job = run.job
        self.vocabulary = job.data.vocabulary
        self.generator = Generator(
            *(job.model, run.parameters(), job.mesh, job.rules, loops, batch_size, policy),
            eos=self.vocabulary.eos,
        )

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Per (context, continuation): the continuation's log-likelihood, and whether greedy
        decoding would give it."""
        length = self.generator.max_length
        whole = [pair_ids(self.vocabulary, *request.args) for request in requests]
        pairs = [fit_pair(*pair, length) for pair in whole]
        if cut_off := sum(len(continuation) > length for _, continuation in whole):
            print(
                f"{cut_off} continuations are longer than the {length} tokens that the model reads:"
                " of these the end is scored",
                file=sys.stderr,
            )
        return [(scored.total, scored.greedy) for scored in self.generator.score(pairs)]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Log-likelihood of whole texts; long ones in the harness's windows, each token once."""
        totals = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=prompt_ids(self.vocabulary, text)[1:],
                prefix_token=self.vocabulary.bos,
                max_seq_len=self.generator.max_length,
                context_len=1,
            )
            scored = self.generator.score([make_disjoint_window(window) for window in windows])
            totals.append(sum(window.total for window in scored))
        return totals

    def _says(self, stops: tuple[str, ...], new: list[int]) -> bool:
        text = self.vocabulary.decode(new)
        return any(stop in text for stop in stops)

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Texts up to one of the request's `until` strings, greedy unless it samples."""
        by_settings: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            by_settings[_settings(request.args[1])].append(i)
        texts: dict[int, str] = {}
        for (stops, count, temperature), which in by_settings.items():
            length = self.generator.max_length
            prompts = [
                fit_prompt(prompt_ids(self.vocabulary, requests[i].args[0]), count, length)
                for i in which
            ]
            made = self.generator.generate(
                prompts,
                count,
                sampling=Sampling(temperature),
                stop=functools.partial(self._says, stops),
            )
            for i, row in zip(which, made, strict=True):
                texts[i] = cut(self.vocabulary.decode(row.tokens), stops)
        return [texts[i] for i in range(len(requests))]


def _settings(generation: dict[str, Any]) -> tuple[Any, ...]:
    until = generation.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    sampled = generation.get("do_sample", False)
    temperature = float(generation.get("temperature") or 1.0) if sampled else 0.0
    count = int(generation.get("max_gen_toks") or DEFAULT_NEW_TOKENS)
    return stops, count, temperature
