"""A run as a model of EleutherAI's lm-evaluation-harness, so that its tasks work unchanged.

    import lm_eval
    from looped_jax.interop.lm_eval_model import LoopedJax

    lm_eval.simple_evaluate(model=LoopedJax("runs/pile_12x2"), tasks=["lambada_openai"])

From here on the harness knows it by the name `looped_jax`, too; looped_jax.lm_eval is the
harness's own command line with it. Needs the extra `lm-eval`.
"""

import functools
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from looped_jax.errors import UserError, from_extra, nearest

with from_extra("lm-eval", "looped_jax.interop.lm_eval_model"):
    import lm_eval.models  # noqa: F401  (Its own models are looked for only before any is known.)
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import (
        get_rolling_token_windows,
        make_disjoint_window,
        simple_parse_args_string,
    )

import jax

from looped_jax.inference.generator import Generator
from looped_jax.inference.policy import EXACT, Policy
from looped_jax.inference.sampling import Sampling
from looped_jax.inference.text import cut, fit_pair, fit_prompt, pair_ids, prompt_ids, text_ids
from looped_jax.training.run import open_run

NAME = "looped_jax"
DEFAULT_NEW_TOKENS = 256
DEFAULT_ROWS = 16
# What the harness passes for --device where nobody said any.
_ITS_DEVICE = "cuda:0"
_NO_CHAT = "a run has no chat template: leave out --apply_chat_template"


@register_model(NAME)
class LoopedJax(LM):
    """loglikelihood, loglikelihood_rolling and generate_until of one checkpoint.

    Texts start with BOS. What is longer than the model reads loses its beginning, as is usual in
    the harness (inference/text.py). ``cache``, ``exit`` and ``draft`` as looped_jax.generate
    takes them; with a draft, requests that sample are refused. ``config``: keys of the run's config
    to override. ``batch_size``, ``max_batch_size`` and ``device`` as the harness's command line
    passes them: 'auto', or 'auto:N', is 16 rows, or ``max_batch_size`` if that is fewer; the
    devices are those of JAX. UserError for any other argument, and for what the run cannot do.
    """

    def __init__(
        self,
        workdir: str = "",
        step: int | None = None,
        loops: int | None = None,
        batch_size: int | str = DEFAULT_ROWS,
        cache: str = "per_loop",
        exit: str = "none",
        draft: str = "none",
        config: Mapping[str, str] | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **others: Any,
    ):
        super().__init__()
        others.pop("trust_remote_code", None)  # Of data sets; a run has no code of its own.
        if others:
            name, known = next(iter(others)), ("workdir", "step", "loops", "cache", "exit", "draft")
            raise UserError(
                f"model argument {name!r} is unknown{nearest(name, known)}; there are "
                f"{', '.join(known)}, batch_size"
            )
        if not workdir:
            raise UserError("say which run: --model_args workdir=DIR")
        _check_device(device)
        step, loops = _whole("step", step, 0), _whole("loops", loops, 1)
        rows = _rows(batch_size, max_batch_size)
        policy = Policy.parse(str(cache), str(exit), str(draft))
        run = open_run(str(workdir), step, config)
        if run.job.config.data.task != "text":
            raise UserError(f"{workdir} is not a language model: its task is synthetic")
        job = run.job
        self.vocabulary = job.data.vocabulary
        self.generator = Generator(
            *(job.model, run.parameters(), job.mesh, job.rules, loops, rows, policy),
            eos=self.vocabulary.eos,
        )
        segments = job.model.config.plan.with_loops(loops).segments
        self._evaluated = {
            "checkpoint": str(run.checkpoint),
            "step": run.step,
            "plan": str(job.model.config.plan),
            "loops": max(segment.loops for segment in segments),
            "cache": str(policy.cache),
            "exit": str(policy.exit or "none"),
            "draft": str(policy.draft or "none"),
            "overridden": run.changed_model,
            "identity": run.identity(loops, "" if policy == EXACT else str(policy)),
            "rows_at_a_time": self.generator.batch_size,
        }

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "LoopedJax":
        """From model_args; what they say goes before what the harness has options for."""
        options = {k: v for k, v in (additional_config or {}).items() if v is not None}
        return cls(**{**options, **arg_dict})

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "LoopedJax":
        """As create_from_arg_obj, from `workdir=DIR,loops=2`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results: what was evaluated and how, and the mean loops
        that tokens took."""
        return {"model": NAME, **self._evaluated, "loops_used": self.generator.usage.loops}

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if chat_template:
            raise UserError(_NO_CHAT)
        return None

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        raise UserError(_NO_CHAT)

    @property
    def tokenizer_name(self) -> str:
        raise UserError(_NO_CHAT)

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
                token_list=text_ids(self.vocabulary, text),
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
            kept = len(self.vocabulary.before)
            prompts = [
                fit_prompt(prompt_ids(self.vocabulary, requests[i].args[0]), count, length, kept)
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


def _check_device(device: str | None) -> None:
    here = jax.default_backend()
    known = (None, _ITS_DEVICE, here, *(("cuda",) if here == "gpu" else ()))
    if device not in known:
        raise UserError(
            f"device={device}: a run computes on all devices of JAX, here {here}; choose by the "
            "environment, JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES=0"
        )


def _whole(name: str, value: Any, least: int) -> int | None:
    """A count from model_args."""
    if value is None or (type(value) is int and value >= least):
        return value
    raise UserError(f"{name}={value} is not a whole number from {least} on")


def _rows(batch_size: int | str, most: int | None) -> int:
    text = str(batch_size)
    if text == "auto" or text.startswith("auto:"):
        return min(DEFAULT_ROWS, most or DEFAULT_ROWS)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"batch_size={text} is none of auto, auto:N and a number of rows")
    return int(text)
