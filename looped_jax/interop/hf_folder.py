"""A folder with a causal model that the package transformers opens: what text becomes in its
tokenizer, how long it may be, what its files are. The model itself: hf_model.py.

Needs the extra `judges` (torch and transformers).
"""

import dataclasses
import functools
import hashlib
import json
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from looped_jax.data.files import sha256
from looped_jax.data.pieces import ids_before
from looped_jax.errors import UserError, from_extra

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
        self.before = ids_before(self.encode("a"), list(tokenizer("a").input_ids))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ones. UnicodeEncodeError for lone surrogates."""
        text.encode("utf-8")
        # `verbose`: that a text is longer than the model reads is ours to see.
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return [int(i) for i in ids]

    @property
    def bos(self) -> int:
        """What an empty text is for the model: BOS, or EOS where there is no other."""
        found = self._tokenizer.bos_token_id
        return int(self._tokenizer.eos_token_id if found is None else found)

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
        config = read(
            path, "its config", transformers.AutoConfig.from_pretrained, str(path), **options
        )
        tokenizer = read(
            path,
            "its tokenizer (tokenizer.json, tokenizer_config.json)",
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


def read(path: epath.Path, what: str, read: Callable[..., Any], *names: Any, **options: Any) -> Any:
    """What transformers makes of a folder; UserError says what it cannot read, and why."""
    try:
        return read(*names, **options)
    except Exception as error:  # It raises of all kinds, and so do the libraries below it.
        reason = textwrap.shorten(str(error), 200, placeholder=" …") or type(error).__name__
        if "trust_remote_code" in str(error):
            reason = "it is code in the folder; --trust_remote_code runs it"
        raise UserError(f"{path}: cannot read {what}: {reason}") from error
