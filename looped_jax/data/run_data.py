"""The data of a run, resolved once from its config and handed on."""

from typing import Any, Protocol

from ml_collections import ConfigDict

from looped_jax.data.mixture import MixtureData
from looped_jax.data.rows import RowSource
from looped_jax.data.synthetic import SyntheticData
from looped_jax.data.tasks import downstream
from looped_jax.data.text import TextData
from looped_jax.errors import UserError


class RunData(Protocol):
    """What the model must know of its data, and its rows: SyntheticData, TextData or
    MixtureData."""

    @property
    def length(self) -> int:
        """T, tokens of a row."""
        ...

    @property
    def packed(self) -> bool:
        """True if a row may hold several documents; otherwise each holds one, from its start."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, ids in use."""
        ...

    @property
    def vocabulary(self) -> Any:
        """What ids mean: has encode(text), decode(ids), and the ids bos and eos."""
        ...

    @property
    def vocabulary_fingerprint(self) -> str:
        """Equal for vocabularies in which equal ids mean the same, whatever they are called."""
        ...

    def check(self) -> None:
        """UserError if what is read is not there or not as asked; before anything is compiled or
        written."""
        ...

    def source(self, split: str, task: str = "") -> RowSource:
        """The rows of a split; ``task`` is one of a synthetic run's config.eval.tasks."""
        ...


def downstream_names(config: ConfigDict) -> tuple[str, ...]:
    """The downstream tasks that config.eval.tasks asks of a language model; none of a synthetic
    run. UserError as downstream.expand."""
    if config.data.task != "text":
        return ()
    return downstream.expand(tuple(name for name in config.eval.tasks if name != "text"))


def resolve(config: ConfigDict) -> RunData:
    """The data that config.data, config.eval.tasks and config.prepare.weights describe. The files
    need not be there. UserError as SyntheticData.resolve, TextData.resolve, MixtureData.resolve and
    downstream.expand, and for sources or rates that nothing reads.
    """
    if config.data.rates and not config.data.sources:
        raise UserError("config.data.rates are of config.data.sources, which names none")
    if config.data.task != "text":
        if config.data.sources:
            raise UserError(
                f"config.data.sources are of config.data.task='text'; it is {config.data.task!r}"
            )
        return SyntheticData.resolve(config)
    downstream_names(config)
    if config.data.sources:
        return MixtureData.resolve(config)
    return TextData.resolve(config)
