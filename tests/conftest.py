"""Eight CPU devices to lay meshes over; quick compilation, and a cache of it for all tests."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
CACHE = str(ROOT / ".jax_cache")

# Before JAX is imported; subprocesses that tests start inherit the cache but not the devices.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Small models take longer to compile than to run: LLVM's expensive passes are left out, here and in
# commands that tests start. XLA's own are not, so that golden costs are a user's.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax

jax.config.update("jax_num_cpu_devices", 8)

import subprocess
import sys
from collections.abc import Callable, Iterator

import hypothesis
import object_stores
import pytest

# Machines are of all speeds, and the first example of a test may compile.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


# XLA's older way to make code of fused operations, in one piece: the same HLO, a third of the time
# to compile. Its last bits are others, and two programs whose bits are equal for a user need not be
# here.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
EXACT = "exact_bits"


def compiles_as_a_user(config: pytest.Config) -> bool:
    """Whether it is the run of the tests that say so (`-m exact_bits`), by itself."""
    return EXACT in config.getoption("markexpr")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{EXACT}: of two programs; compiled as a user's are")
    if not compiles_as_a_user(config):  # Before JAX starts its CPU devices.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not compiles_as_a_user(config):
        why = f"of equal bits: compiled as a user's programs in a run of its own, -m {EXACT}"
        for item in items:
            if item.get_closest_marker(EXACT):
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def run_module() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m MODULE ARGUMENTS…` from the project root as a user would."""

    def run(module: str, *arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=600, **kwargs
        )

    return run


@pytest.fixture
def fails_in_one_line(
    run_module: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., str]:
    """Runs a module that must fail as a user error; returns its one line on stderr."""

    def run(module: str, *arguments: str, code: int = 2, **kwargs: object) -> str:
        done = run_module(module, *arguments, **kwargs)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == code, (done.returncode, done.stderr)
        assert "Traceback" not in done.stderr
        assert len(lines) == 1, done.stderr
        assert done.stdout == ""
        return lines[0]

    return run


VARIANTS = """
from looped_jax.config import default_config

def get_config():
    config = default_config()
    config.data.task = "group_z7_n4"
    config.model.update(d_model=16, num_heads=4, d_ff=32)
    config.optimizer.update(name="adamw", learning_rate=1e-2, warmup_steps=4)
    config.train.update(steps=12, batch_size=16, log_every=4)
    config.checkpoint.update(every=4, keep=2)
    config.eval.update(every=4, examples=32)
    plans = (("base", "1x1"), ("looped", "1x2"), ("iso_flop", "2x1"))
    config.variants = tuple((name, (("model.plan", plan),)) for name, plan in plans)
    roles = {name: name for name, _ in plans}
    config.comparison.update(metric="eval/group_z7_n4/accuracy", **roles)
    return config
"""


@pytest.fixture(scope="session")
def variants_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of three short runs made by one command; its stdout lies beside it."""
    folder = tmp_path_factory.mktemp("variants")
    (folder / "variants.py").write_text(VARIANTS)
    arguments = (f"--config={folder / 'variants.py'}", f"--workdir={folder / 'run'}")
    done = subprocess.run(
        [sys.executable, "-m", "looped_jax.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder / "run"


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[object_stores.Store]:
    """A bucket of each kind, by a server of its own."""
    with object_stores.served(request.param, tmp_path_factory.mktemp("cache")) as store:
        yield store
        store.network.fault = lambda method, path: None
