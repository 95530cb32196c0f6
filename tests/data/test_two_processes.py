"""Two real processes on one mesh see, together, what one process sees."""

import json
import pathlib
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from etils import epath
from helpers import small_config, write_pile

from looped_jax.data import pipeline, preparation
from looped_jax.data.run_data import resolve

STEPS = (0, 1, 100)
# Each process: its batches, as arrays of the whole mesh, gathered; and its position after them.
PROGRAM = """
import json, sys
import jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
address, process, config_file, out = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(process))
from jax.experimental import multihost_utils
from looped_jax import config as config_lib
from looped_jax.data import pipeline
from looped_jax.data.run_data import resolve
from looped_jax.parallel.mesh import local_rows, make_mesh, put_batch

config = config_lib.from_json(open(config_file).read())
mesh = make_mesh(config)
size = config.train.batch_size
batches = pipeline.train_batches(resolve(config), config, local_rows(mesh, size))
gathered = {}
for step in range(101):
    batch = put_batch(next(batches), mesh, size)
    if step in (0, 1, 100):
        for key, array in batch.items():
            whole = multihost_utils.process_allgather(array, tiled=True)
            gathered[f"{step}/{key}"] = np.asarray(whole)
np.savez(f"{out}/{process}.npz", **gathered)
json.dump(batches.state(), open(f"{out}/{process}.json", "w"))
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module", params=["text", "mixture", "group_z7_n4"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "group_z7_n4":
        return small_config(data__task=request.param, mesh__data=2)
    folder = tmp_path_factory.mktemp("pile")
    write_pile(folder)
    text = dict(data__task="text", data__length=32, mesh__data=2, train__batch_size=8)
    if request.param == "mixture":
        write_pile(folder / "other", seed=1)
        sources = (("a", str(folder)), ("b", str(folder / "other")))
        rates = ((0, (("a", 0.9), ("b", 0.1))), (50, (("a", 0.3), ("b", 0.7))))
        return small_config(**text, data__sources=sources, data__rates=rates)
    preparation.prepare(
        small_config(**text, data__path=str(folder)), epath.Path(folder / "prepared")
    )
    return small_config(**text, data__path=str(folder / "prepared"))


def test_two_processes_see_the_batches_of_one(config: Any, tmp_path: pathlib.Path) -> None:
    from looped_jax import config as config_lib

    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    address = f"localhost:{free_port()}"
    arguments = [str(tmp_path / "config.json"), str(tmp_path)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(i), *arguments],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors

    source = resolve(config).source("train")
    one = pipeline.train_batches(resolve(config), config, source=source)
    expected = [next(one) for _ in range(102)]
    for i in range(2):
        gathered = np.load(tmp_path / f"{i}.npz")
        for step in STEPS:
            for key in expected[step]:
                np.testing.assert_array_equal(gathered[f"{step}/{key}"], expected[step][key])

    # One process goes on where the two were.
    resumed = pipeline.train_batches(resolve(config), config, source=source)
    resumed.set_state(json.loads((tmp_path / "1.json").read_text()))
    batch = next(resumed)
    for key in batch:
        np.testing.assert_array_equal(batch[key], expected[101][key])
