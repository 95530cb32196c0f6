"""A causal model of the package transformers where our evaluations ask a model: what follows a
prompt, greedily.

Needs the extra `judges` (torch and transformers).
"""

import functools
import importlib.metadata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from looped_jax.errors import UserError
from looped_jax.inference.generator import GREEDY, Generated, Usage, check_prompts
from looped_jax.inference.sampling import Sampling
from looped_jax.interop.hf_folder import HfFolder, read


def load(folder: HfFolder, batch_size: int = 16) -> "HfModel":
    """Reads the weights, in the type that they are stored in; on a GPU if torch sees one.
    UserError if they are not there or not of the model."""
    import torch
    import transformers

    model, said = read(
        folder.path,
        "its weights",
        functools.partial(transformers.AutoModelForCausalLM.from_pretrained, str(folder.path)),
        config=folder.config,
        dtype="auto",
        local_files_only=True,
        trust_remote_code=folder.trust_remote_code,
        output_loading_info=True,
    )
    if missing := sorted(said["missing_keys"]):
        raise UserError(
            f"{folder.path}: {len(missing)} weights of the model are not in its files, the first "
            f"{missing[0]}"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return HfModel(model.to(device).eval(), folder, batch_size)


class HfModel:
    """Continues prompts, as inference/generator.py's Generator does."""

    def __init__(self, model: Any, folder: HfFolder, batch_size: int):
        self.max_length, self.batch_size = folder.max_length, batch_size
        self.usage = Usage()
        self._model = model
        generation, config = model.generation_config, folder.config.get_text_config()
        ends = (
            generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
        )
        self._ends = {int(i) for i in np.atleast_1d([] if ends is None else ends)}
        # Beams, penalties and the like of the model's own are no plain greedy decoding.
        model.generation_config = type(generation)(
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=min(self._ends, default=0),
        )

    @property
    def described(self) -> dict[str, Any]:
        """What runs, for records."""
        packages = ("torch", "transformers")
        return {
            "class": type(self._model).__name__,
            "parameters": self._model.num_parameters(),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": str(self._model.device),
            **{package: importlib.metadata.version(package) for package in packages},
        }

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
        chunk: int = 1,
    ) -> list[Generated]:
        """Continues each prompt (token ids) greedily by at most ``max_new_tokens``.

        ``stop`` is asked about the new tokens of a row after each of them, ``on_tokens`` is told of
        them at the end. A row ends, too, when the model's length is full. UserError for a prompt
        that is empty or longer, and for sampling.
        """
        del seed, first_number, chunk  # Of draws, and of a compiled loop.
        if sampling != GREEDY:
            raise UserError("a model of transformers is asked greedily only: leave out sampling")
        by_room: dict[int, list[int]] = defaultdict(list)
        check_prompts(prompts, self.max_length)
        for number, prompt in enumerate(prompts):
            # The last token said is not read. Rows of a batch go on for equally long.
            room = min(max_new_tokens, self.max_length - len(prompt) + 1)
            by_room[room].append(number)
        results: dict[int, Generated] = {}
        for room, numbers in by_room.items():
            order = sorted(numbers, key=lambda i: len(prompts[i]))
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                made = self._generate_batch([prompts[i] for i in batch], room, stop)
                results |= dict(zip(batch, made, strict=True))
        if on_tokens is not None:
            for i in range(len(prompts)):
                on_tokens(i, results[i].tokens)
        return [results[i] for i in range(len(prompts))]

    def _generate_batch(
        self,
        prompts: list[Sequence[int]],
        room: int,
        stop: Callable[[list[int]], bool] | None,
    ) -> list[Generated]:
        import torch
        from transformers import StoppingCriteriaList

        longest = max(map(len, prompts))
        self.usage.asked += sum(map(len, prompts))
        self.usage.computed += longest * len(prompts)
        # Prompts end together, so padding stands on the left; nothing attends to it, and positions
        # are counted from where a row begins.
        tokens = torch.full((len(prompts), longest), min(self._ends, default=0))
        seen = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(list(prompt))
            seen[row, longest - len(prompt) :] = 1
        rows = _Rows(longest, self._ends, stop, len(prompts))
        with torch.inference_mode():
            output = self._model.generate(
                tokens.to(self._model.device),
                attention_mask=seen.to(self._model.device),
                max_new_tokens=room,
                stopping_criteria=StoppingCriteriaList([rows]),
                return_dict_in_generate=True,
            )
        size = _cache_bytes(output.past_key_values)
        self.usage.cache_bytes = max(self.usage.cache_bytes, size)
        made = []
        for row, said in enumerate(output.sequences[:, longest:].tolist()):
            end = rows.ended_after.get(row)
            new = said[:end]
            ended = end is not None
            if new and new[-1] in self._ends:
                new = new[:-1]
            # Once through the layers of its class, whatever these do.
            self.usage.depths += Counter({1: len(new)})
            made.append(Generated(new, ended, [1] * len(new)))
        return made


class _Rows:
    """Which rows of a batch have ended, and after how many new tokens (the EOS counted)."""

    def __init__(
        self,
        prompt_length: int,
        ends: set[int],
        stop: Callable[[list[int]], bool] | None,
        count: int,
    ):
        self._from, self._ends, self._stop, self._count = prompt_length, ends, stop, count
        self.ended_after: dict[int, int] = {}

    def __call__(self, tokens_BT: Any, _: Any, **__: Any) -> Any:
        import torch

        for row, new in enumerate(tokens_BT[:, self._from :].tolist()):
            if row in self.ended_after:
                continue
            if new[-1] in self._ends or (self._stop is not None and self._stop(new)):
                self.ended_after[row] = len(new)
        done = [row in self.ended_after for row in range(self._count)]
        return torch.tensor(done, device=tokens_BT.device)


def _cache_bytes(cache: Any) -> int:
    """Bytes of keys and values; 0 for a model that keeps something else."""
    layers = getattr(cache, "layers", None) or []
    kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(x.nelement() * x.element_size() for x in kept if x is not None)
