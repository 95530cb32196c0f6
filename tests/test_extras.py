"""Where a package of an optional extra is missing, one line says which."""

import importlib
import pathlib
import sys
from collections.abc import Callable

import pytest
from etils import epath
from helpers import small_config

from looped_jax.data.cluster import Cluster, Setting
from looped_jax.data.preparation import prepare
from looped_jax.data.tasks.downstream import TASKS
from looped_jax.data.vocabulary import HuggingFace
from looped_jax.errors import UserError
from looped_jax.interop.hf_folder import HfFolder
from looped_jax.training.job import make_job
from looped_jax.training.trainer import train

NO_SETTING = Setting(epath.Path("none"), "", "bytes", "", (), ())


def open_hf_folder(folder: pathlib.Path) -> HfFolder:
    (folder / "config.json").write_text("{}")
    return HfFolder.open(str(folder))


def log_to(name: str) -> Callable[[pathlib.Path], object]:
    config = small_config(train__log_to=(name,))
    return lambda folder: train(make_job(config), epath.Path(folder / "out"))


def prepare_a_table(folder: pathlib.Path) -> object:
    (folder / "a.parquet").write_bytes(b"PAR1")
    config = small_config(
        data__task="text", data__length=8, data__path=str(folder), data__train_files="*.parquet"
    )
    return prepare(config, epath.Path(folder / "out"))


USES: dict[str, tuple[str, str, Callable[[pathlib.Path], object]]] = {
    "tensorflow_datasets": (
        "data",
        "looped_jax.data.tasks.downstream.tfds_source",
        lambda _: TASKS["triviaqa"].examples("validation"),
    ),
    "seqio": (
        "data",
        "looped_jax.data.seqio_text",
        lambda folder: prepare(
            small_config(data__task="text", data__length=8, data__path="seqio:pile"),
            epath.Path(folder / "out"),
        ),
    ),
    "distributed": ("dask", "", lambda _: Cluster("tcp://localhost:8786", NO_SETTING)),
    "pyarrow": ("parquet", "", prepare_a_table),
    "datasets": (
        "datasets",
        "looped_jax.data.hub_text",
        lambda folder: prepare(
            small_config(data__task="text", data__length=8, data__path="hf:org/name"),
            epath.Path(folder / "out"),
        ),
    ),
    "tokenizers": ("tokenizers", "", lambda _: HuggingFace("some.json", b"{}")),
    "torch": ("judges", "", open_hf_folder),
    "lm_eval": (
        "lm-eval",
        "looped_jax.interop.lm_eval_model",
        lambda _: importlib.import_module("looped_jax.interop.lm_eval_model"),
    ),
    "wandb": ("wandb", "looped_jax.training.trackers.weights_and_biases", log_to("wandb")),
    "mlflow": ("mlflow", "looped_jax.training.trackers.ml_flow", log_to("mlflow")),
    "sqlalchemy": ("mlflow", "looped_jax.training.trackers.ml_flow", log_to("mlflow")),
}


@pytest.mark.parametrize("package", USES)
def test_a_missing_extra_is_named_with_what_needs_it(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    extra, importer, use = USES[package]
    if package == "sqlalchemy":
        pytest.importorskip("mlflow", reason="of mlflow and its database the first is named")
    # As if it were not installed, and nothing had asked for it yet.
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, importer, raising=False)
    with pytest.raises(UserError, match=rf"needs the package {package}: pip .*\[{extra}\]"):
        use(tmp_path)
    assert not (tmp_path / "out").exists()
