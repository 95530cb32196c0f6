"""What a downstream task is: where its examples come from and how they are asked.

A task is one `DownstreamTask`: its source, its prompt in one or more styles, its shots and the name
of its metric. To add one, write one (docs/tasks.md) and list it in __init__.py.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from looped_jax.data.files import identity
from looped_jax.data.tasks.downstream.example import Example
from looped_jax.data.tasks.downstream.local_files import Reader, read_released, read_simple
from looped_jax.data.tasks.downstream.prompts import Style
from looped_jax.errors import UserError, from_extra

GROUPS = ("closed_book_qa", "open_book_qa", "math_word_problems", "reasoning_primitives")

# Builder, {split: TFDS split}, features -> Example (None: left out).
TfdsSource = tuple[str, Mapping[str, str], Callable[[Any], Example | None]]


@dataclasses.dataclass(frozen=True)
class DownstreamTask:
    """A task. ``released``: for each split the file names that its own release has; ``reader``
    reads one. ``tfds``: where its builder carries all that the metric needs. ``where``: how to
    get the data. ``generate``: examples made rather than read, from (split, count)."""

    name: str
    group: str
    metric: str
    styles: Mapping[str, Style]
    shots: int = 5
    where: str = ""
    released: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    reader: Reader | None = None
    tfds: TfdsSource | None = None
    generate: Callable[[str, int], list[Example]] | None = None
    # A prediction from the generated text, cut at the first stop.
    extract: Callable[[str], Any] = str.strip
    max_new_tokens: int = 32

    def style(self, name: str) -> Style:
        """A style by name; a task that has no such style of its own uses its default."""
        return self.styles.get(name, self.styles["default"])

    def examples(self, split: str, data_dir: str = "", count: int = 0) -> list[Example]:
        """The examples of a split (train for exemplars, validation for evaluation).

        From ``data_dir`` (or its subfolder of the task's name): `<task>.jsonl` in the simple form
        (docs/evaluate.md) or the released files; without it from TFDS. UserError says how to get
        what is missing.
        """
        if self.generate is not None:
            return self.generate(split, count or 1000)
        examples = self._local(split, data_dir) if data_dir else self._from_tfds(split)
        return examples[:count] if count else examples

    def sources(self, splits: Sequence[str], data_dir: str = "") -> dict[str, dict[str, Any]]:
        """What ``examples`` reads of each split, for records: a file with its SHA-256, or TFDS's
        builder; nothing where they are generated. UserError as there."""
        if self.generate is not None:
            return {}
        if data_dir:
            paths = {split: self._file(split, data_dir) for split in splits}
            files = {path: identity(path) for path in set(paths.values())}
            return {split: files[path] for split, path in paths.items()}
        builder, tfds_splits, _ = self._tfds()
        return {split: {"tfds": builder, "split": tfds_splits[split]} for split in splits}

    def _local(self, split: str, data_dir: str) -> list[Example]:
        path = self._file(split, data_dir)
        if self.reader is None or path.name == f"{self.name}.jsonl":
            return read_simple(path, split)
        return read_released(self.reader, path)

    def _file(self, split: str, data_dir: str) -> epath.Path:
        folder = epath.Path(data_dir)
        if not folder.is_dir():
            raise UserError(f"config.eval.data_dir={folder} is not a folder")
        names = (f"{self.name}.jsonl", *self.released.get(split, ()))
        for place in (folder, folder / self.name):
            for name in names:
                if (place / name).is_file():
                    return place / name
        raise UserError(
            f"task {self.name}: no {', '.join(names)} in config.eval.data_dir={folder}; "
            f"{self.where}"
        )

    def _from_tfds(self, split: str) -> list[Example]:
        builder, splits, to_example = self._tfds()
        what = f"task {self.name} without --config.eval.data_dir ({self.where})"
        with from_extra("data", what):
            from looped_jax.data.tasks.downstream.tfds_source import load

        return load(self.name, builder, splits[split], to_example, self.where)

    def _tfds(self) -> TfdsSource:
        if self.tfds is None:
            raise UserError(
                f"task {self.name}: its files are needed: set --config.eval.data_dir (--data_dir "
                f"of looped_jax.tasks); {self.where}"
            )
        return self.tfds
