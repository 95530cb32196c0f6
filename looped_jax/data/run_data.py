"""The data of a run, resolved once from its config and handed on."""

from typing import Any, Protocol

from ml_collections import ConfigDict

from looped_jax.data.rows import RowSource
from looped_jax.data.synthetic import SyntheticData
from looped_jax.data.tasks import downstream
from looped_jax.data.text import TextData


class RunData(Protocol):
    """What the model must know of its data, and its rows: SyntheticData or TextData."""

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
    need not be there. UserError as SyntheticData.resolve, TextData.resolve and downstream.expand.
    """
    if config.data.task != "text":
        return SyntheticData.resolve(config)
    downstream_names(config)
    return TextData.resolve(config)
