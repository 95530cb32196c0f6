"""Rows of the synthetic tasks: functions of (seed, split, index), without files or end."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from looped_jax.data.rows import Rows, answer_rows
from looped_jax.data.tasks import get_task
from looped_jax.data.tasks.base import SyntheticTask, Vocabulary
from looped_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """Row source over one split of a synthetic task."""

    task: SyntheticTask
    split: str
    seed: int
    length: int
    running_targets: bool = False
    num_rows: int | None = None

    @property
    def vocab_size(self) -> int:
        return self.task.vocabulary.size

    @property
    def fingerprint(self) -> str:
        """The config says all there is to know."""
        return ""

    def rows(self, indices: np.ndarray) -> Rows:
        """See data/rows.py."""
        examples = self.task.examples(self.seed, self.split, indices)
        running = examples.running_NS if self.running_targets else None
        return answer_rows(examples.inputs_NS, examples.answers_NA, self.length, running)


@dataclasses.dataclass(frozen=True)
class SyntheticData:
    """The data of a synthetic task and those it is evaluated on; see data/run_data.py."""

    task: str
    tasks: Mapping[str, SyntheticTask]
    length: int
    seed: int
    running_targets: bool

    @classmethod
    def resolve(cls, config: ConfigDict) -> "SyntheticData":
        """UserError if an evaluation task has another vocabulary than the training task, or rows do
        not fit in config.data.length."""
        data = config.data
        task = get_task(data.task)
        if data.targets == "running" and not task.has_running_targets:
            raise UserError(
                f"config.data.targets='running': task {task.name} has no running targets"
            )
        tasks = {name: get_task(name) for name in (data.task, *config.eval.tasks)}
        for other in tasks.values():
            if other.vocabulary.tokens != task.vocabulary.tokens:
                raise UserError(
                    f"config.eval.tasks: {other.name} has another vocabulary than {task.name}"
                )
        needed = max(other.row_length for other in tasks.values())
        if data.length and data.length < needed:
            raise UserError(f"config.data.length={data.length} is less than {needed} tokens")
        length, running = data.length or needed, data.targets == "running"
        return cls(data.task, tasks, length, config.seed, running)

    @property
    def packed(self) -> bool:
        return False

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tasks[self.task].vocabulary

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def vocabulary_fingerprint(self) -> str:
        tokens = json.dumps(list(self.vocabulary.tokens))
        return hashlib.sha256(tokens.encode()).hexdigest()

    def check(self) -> None:
        """There is nothing that could be missing."""

    def source(self, split: str, task: str = "") -> TaskRows:
        """The rows of a split, of the training task or of one that is evaluated."""
        return TaskRows(
            self.tasks[task or self.task], split, self.seed, self.length, self.running_targets
        )
