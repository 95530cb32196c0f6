"""A causal model of the package transformers, from a folder, as our evaluations ask a model: what
text becomes, how long it may be, and what follows it, greedily.

Needs the extra `judges` (torch and transformers).
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from looped_jax.data.files import sha256
from looped_jax.errors import UserError, from_extra
from looped_jax.inference.generator import GREEDY, Generated, Usage
from looped_jax.inference.sampling import Sampling

EXTRA = "judges"
# What of a folder makes the model and its tokenizer; the rest (a README, say) changes no answer.
_CONTENT = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py")


class HfVocabulary:
    """A tokenizer of transformers where ours are asked: text <-> ids of its own.

    Text stays text: one that spells a special token does not become it. ``before``: ids that the
    tokenizer itself puts before a text, such as BOS; none where it puts none.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        plain, whole = list(self.encode("a")), list(tokenizer("a").input_ids)
        self.before = tuple(whole[: whole.index(plain[0])]) if plain and plain[0] in whole else ()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ones. UnicodeEncodeError for lone surrogates."""
        text.encode("utf-8")
        # `verbose`: that a text is longer than the model reads is ours to see.
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return [int(i) for i in ids]

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a text as its model expects one."""
        return [*self.before, *self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special ones."""
        said: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return said


@dataclasses.dataclass(frozen=True)
class HfFolder:
    """A model's folder, its config and tokenizer read, its weights not yet."""

    path: epath.Path
    config: Any
    vocabulary: HfVocabulary
    max_length: int  # Tokens that it reads at most.
    trust_remote_code: bool

    @classmethod
    def open(
        cls, folder: str, max_length: int | None = None, trust_remote_code: bool = False
    ) -> "HfFolder":
        """Reads config.json and the tokenizer, from the folder alone.

        ``max_length``: fewer tokens than the config's max_position_embeddings. UserError if there
        is no model in the folder, if it has no tokenizer, if its class is code in the folder that
        is not trusted, or if its length is not known.
        """
        path = epath.Path(folder)
        if not (path / "config.json").is_file():
            raise UserError(f"{path} holds no model of transformers: there is no config.json in it")
        with from_extra(EXTRA, "a model of transformers (--hf)"):
            import torch  # noqa: F401  (Without it transformers has no models.)
            import transformers
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        config = _read(
            path, "its config", transformers.AutoConfig.from_pretrained, str(path), **options
        )
        tokenizer = _read(
            path,
            "its tokenizer",
            functools.partial(transformers.AutoTokenizer.from_pretrained, str(path)),
            split_special_tokens=True,
            **options,
        )
        stated: Any = getattr(config.get_text_config(), "max_position_embeddings", None)
        if max_length is None and stated is None:
            raise UserError(
                f"{path}/config.json has no max_position_embeddings: say --max_length=TOKENS"
            )
        if max_length is not None and stated is not None and max_length > stated:
            raise UserError(
                f"--max_length={max_length}: {path} reads {stated} tokens at most "
                "(max_position_embeddings)"
            )
        length = stated if max_length is None else max_length
        return cls(path, config, HfVocabulary(tokenizer), length, trust_remote_code)

    @functools.cached_property
    def identity(self) -> str:
        """Equal for equal answers: of all files of the model and of how much it may read."""
        files = {
            str(file.relative_to(self.path)): sha256(file)
            for file in sorted(self.path.glob("*"))
            if file.suffix in _CONTENT and file.is_file()
        }
        known = json.dumps([files, self.max_length], sort_keys=True)
        return hashlib.sha256(known.encode()).hexdigest()

    def load(self, batch_size: int = 16) -> "HfModel":
        """Reads the weights, in the type that they are stored in; on a GPU if torch sees one.
        UserError if they are not there or not of the model."""
        import torch
        import transformers

        model, said = _read(
            self.path,
            "its weights",
            functools.partial(transformers.AutoModelForCausalLM.from_pretrained, str(self.path)),
            config=self.config,
            dtype="auto",
            local_files_only=True,
            trust_remote_code=self.trust_remote_code,
            output_loading_info=True,
        )
        if missing := sorted(said["missing_keys"]):
            raise UserError(
                f"{self.path}: {len(missing)} weights of the model are not in its files, the first "
                f"{missing[0]}"
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return HfModel(model.to(device).eval(), self, batch_size)


def _read(
    path: epath.Path, what: str, read: Callable[..., Any], *names: Any, **options: Any
) -> Any:
    """What transformers makes of a folder; UserError says what it cannot read, and why."""
    try:
        return read(*names, **options)
    except ImportError:
        raise
    except Exception as error:  # It raises of all kinds, and so do the libraries below it.
        first = str(error).strip().split("\n")[0] or type(error).__name__
        hint = ""
        if "trust_remote_code" in str(error):
            first, hint = "it is code in the folder", "; --trust_remote_code runs it"
        raise UserError(f"{path}: cannot read {what}: {first}{hint}") from error


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
        for number, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= self.max_length:
                raise UserError(
                    f"prompt {number} has {len(prompt)} tokens; this model reads 1 to "
                    f"{self.max_length}"
                )
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
