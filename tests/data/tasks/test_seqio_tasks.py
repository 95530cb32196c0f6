"""The tasks as seqio sees them. TensorFlow is imported here, and only here."""

from types import ModuleType

import numpy as np
import pytest
from helpers import NEEDS_TENSORFLOW

from looped_jax.data.tasks import get_task, task_names

seqio = pytest.importorskip("seqio", reason=NEEDS_TENSORFLOW)


@pytest.fixture(scope="module")
def seqio_tasks() -> ModuleType:
    from looped_jax.data.tasks import seqio_tasks

    return seqio_tasks


def test_every_listed_task_is_registered(seqio_tasks: ModuleType) -> None:
    assert set(task_names()) <= set(seqio.TaskRegistry.names())


@pytest.mark.parametrize("name", ["addition", "igsm_cot", "group_s5_n8", "varassign_depth1_code"])
def test_a_seqio_task_yields_the_trainers_examples(name: str, seqio_tasks: ModuleType) -> None:
    task = seqio.get_mixture_or_task(name)
    dataset = task.get_dataset(sequence_length=None, split="validation", shuffle=False)
    ours = get_task(name).texts(0, "validation", np.arange(5))
    tokens = get_task(name).examples(0, "validation", np.arange(5)).inputs_NS
    for there, here, ids in zip(dataset.take(5).as_numpy_iterator(), ours, tokens, strict=True):
        assert there["inputs_pretokenized"].decode() == here["inputs"]
        assert there["targets_pretokenized"].decode() == here["targets"]
        assert there["inputs"].tolist() == ids[ids != 0].tolist()
        features = task.output_features
        assert features["targets"].vocabulary.decode(there["targets"].tolist()) == here["targets"]


def test_any_member_of_a_family_can_be_registered(seqio_tasks: ModuleType) -> None:
    task = seqio_tasks.register("phop_p3_n24")
    example = next(task.get_dataset(None, split="test").as_numpy_iterator())
    assert len(example["inputs"]) == 24
    assert seqio_tasks.register("phop_p3_n24") is task
