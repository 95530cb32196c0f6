"""Jobs that are too large: refused before anything is allocated or written, with what would fit."""

import pathlib
import re
from typing import Any

import jax
import pytest
from etils import epath
from helpers import small_config

from looped_jax.config import cli
from looped_jax.errors import UserError, is_out_of_memory
from looped_jax.training import memory, trainer
from looped_jax.training.job import make_job
from looped_jax.training.metrics_file import read_metrics

XLA_SAYS = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 21300000000 bytes."


def exhausted(*_: Any) -> Any:
    raise jax.errors.JaxRuntimeError(XLA_SAYS)


# Rows of which each part of a batch has several on each of eight devices.
ROWS = dict(train__batch_size=64, eval__batch_size=16)


def test_a_step_larger_than_the_device_names_what_fits_and_how_much_that_needs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(small_config(**ROWS, data__length=256))
    needed = memory.peak(memory.compiled_step(job))
    monkeypatch.setattr(memory, "device_memory", lambda _: 0.8 * needed)
    workdir = epath.Path(tmp_path / "run")
    with pytest.raises(UserError, match="out of memory: the training step needs") as error:
        trainer.train(job, workdir)
    said = re.search(
        r"--config.train.grad_accumulation=(\d+) needs ([\d.]+ [kM]B)", str(error.value)
    )
    assert said is not None and "a device has" in str(error.value)
    assert not workdir.exists()
    # What it names is what that needs, and trains there.
    smaller = small_config(
        **ROWS, data__length=256, train__grad_accumulation=int(said[1]), train__steps=2
    )
    assert said[2] == memory.shown(memory.peak(memory.compiled_step(make_job(smaller))))
    trainer.train(make_job(smaller), workdir)
    assert read_metrics(workdir)[-1]["step"] == 2


def test_memory_that_ends_while_compiling_leaves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_compiled", exhausted)
    workdir = epath.Path(tmp_path / "run")
    with pytest.raises(UserError, match=r"lower config.train.batch_size, config.train.grad_accum"):
        trainer.train(make_job(small_config()), workdir)
    assert not workdir.exists()


def test_memory_that_ends_in_a_step_does_not_refuse_the_corrected_command(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = epath.Path(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "compiled_step", lambda _: exhausted)
        with pytest.raises(UserError, match=r"out of memory.*grad_accumulation=2 needs [\d.]+ kB"):
            trainer.train(make_job(small_config(**ROWS)), workdir)
    trainer.train(make_job(small_config(**ROWS, train__grad_accumulation=2)), workdir)
    assert read_metrics(workdir)[-1]["step"] == 12


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("model__d_model", 2**22, "d_model"),
        ("model__d_ff", 10**9, "d_ff"),
        ("model__vocab_size", 10**9, "vocab_size"),
        ("model__plan", "999999x1,999999x2", "plan"),
        ("train__batch_size", 2**29, "config.train.batch_size=536870912"),
        ("eval__batch_size", 2**29, "config.eval.batch_size=536870912"),
        ("eval__examples", 10**9, "config.eval.examples=1000000000"),
        ("data__length", 10**9, "config.data.length=1000000000"),
    ],
)
def test_what_no_machine_has_is_refused_before_it_is_compiled(
    key: str, value: Any, named: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_compiled", exhausted)
    with pytest.raises(UserError, match=f"{named}.* a device has [0-9.]+ [GMT]B of memory"):
        trainer.train(make_job(small_config(**{key: value})), epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_memory_that_ends_anywhere_else_is_one_line() -> None:
    def wrapped() -> None:
        try:
            exhausted()
        except jax.errors.JaxRuntimeError as error:
            raise ValueError("the evaluation failed") from error

    with pytest.raises(ValueError) as error:
        wrapped()
    assert is_out_of_memory(error.value) and not is_out_of_memory(ValueError("x"))
    said = cli._of_the_machine(MemoryError("Unable to allocate 59.6 GiB"))
    assert said is not None and "59.6 GiB" in said and "--config.eval.batch_size" in said
    assert cli._of_the_machine(OSError("no file of the user's")) is None
