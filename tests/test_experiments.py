"""Every experiment builds: its config is valid and its model has the shapes that it should."""

import pathlib
from typing import Any

import jax
import pytest
from conftest import ROOT

from experiments import pile
from looped_jax.analysis import published
from looped_jax.config import load_experiment, variant_config
from looped_jax.errors import UserError
from looped_jax.training.job import make_job
from looped_jax.training.sweep import load_sweep

FILES = sorted(p for p in (ROOT / "experiments").glob("*.py") if p.name != "__init__.py")

# The rows of the paper's tables 1 and 2: plans and what they are evaluated on.
ADDITION = ("12x1", "1x1", "1x12", "2x1", "2x6", "3x1", "3x4")
PHOP = ("6x1", "1x1", "1x6", "2x1", "2x3", "3x1", "3x2")
IGSM = ("8x1", "1x1", "1x2", "1x4", "1x8", "2x1", "2x2", "2x4", "4x1", "4x2")
# Section 3: the family of table 3, middle looping, and scaling with depth.
PILE = (
    *("24x1", "4x1", "6x1", "8x1", "12x1", "4x6", "6x4", "8x3", "12x2", "4x1,4x4,4x1"),
    *("4x2", "4x3", "4x9", "4x12", "36x1", "48x1"),
)
# Published recipes of other papers, and their parameters in millions (docs/recipes.md).
RECIPES = {
    "huginn": 3565,
    "ouro": 1435,
    "parcae": 145,
    "hyperloop": 136,
    "loopformer": 278,
    "hrm_text": 1183,
    "dory": 3975,
    "mor": 165,
}
SPECS = [
    *(f"addition.py:{plan}" for plan in ADDITION),
    *(f"phop.py:{plan},{hops}" for plan in PHOP for hops in ("p16", "p32")),
    *(f"igsm.py:{plan}" for plan in IGSM),
    *(f"igsm.py:{plan},cot" for plan in ("8x1", "1x8")),
    *(f"pile.py:{plan}" for plan in PILE),
    "pile.py:12x2_small",
    "assignment.py",
    "pile_12x2.py",
    "pile_12x2.py:small",
    "pile_24x1.py:small",
    "pile_24x1.py",
    "pile_loops.py",
    "pile_mini.py",
    "pile_mixed.py",
    "group.py",
    "quickstart.py",
    *(f"{name}.py{size}" for name in RECIPES for size in ("", ":small")),
    *("ouro.py:gate", "ouro.py:gate_small", "mor.py:token", "mor.py:token_small"),
]


@pytest.fixture
def pile_dir(tmp_path: pathlib.Path) -> str:
    for name in ("train-00000.jsonl.zst", "val.jsonl.zst"):
        (tmp_path / name).write_text(name)
    return str(tmp_path)


def one_source(pile_dir: str, source: str) -> str:
    """A folder of shards, of each source others."""
    folder = pathlib.Path(pile_dir) / source
    folder.mkdir()
    for name in ("train-00000.jsonl.zst", "val.jsonl.zst"):
        (folder / name).write_text(f"{source} {name}")
    return str(folder)


def layers(params: Any) -> int:
    return sum(
        leaf.size
        for key, tree in params.items()
        if "segment" in key
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize("spec", SPECS)
def test_an_experiment_builds_and_validates(spec: str, pile_dir: str) -> None:
    config = load_experiment(str(ROOT / "experiments" / spec))
    variants = [variant_config(config, *v) for v in config.variants] or [config]
    for variant in variants:
        variant.unlock()
        if variant.data.sources:
            names = [name for name, _ in variant.data.sources]
            variant.data.sources = tuple((name, one_source(pile_dir, name)) for name in names)
        else:
            variant.data.path = pile_dir
        variant.mesh.update(data=1, fsdp=1)
        if variant.loop_loss.kind == "gate":  # Of a trained model, which its reader names.
            variant.train.start_from = "run/checkpoints/1"
        make_job(variant)


def test_every_experiment_file_is_built_by_these_tests() -> None:
    # What goes on from a run is built where there is one: tests/interop/test_retrofit.py.
    built = {spec.partition(":")[0] for spec in SPECS} | {"retrofit.py"}
    assert {path.name for path in FILES} == built


def test_the_paper_hyperparameters_of_the_synthetic_experiments() -> None:
    # Sections 2.1 to 2.3 of the paper.
    expected = {
        "addition.py": (256, 8, 1024, 1024, 0.005, 200_000),
        "phop.py": (128, 8, 512, 256, 0.001, 200_000),
        "igsm.py": (128, 8, 512, 256, 0.001, 200_000),
    }
    for name, numbers in expected.items():
        config = load_experiment(str(ROOT / "experiments" / name))
        model, train = config.model, config.train
        found = (model.d_model, model.num_heads, model.d_ff, train.batch_size)
        assert (*found, config.optimizer.learning_rate, train.steps) == numbers
        assert config.optimizer.name == "adafactor"


def test_the_pile_model_has_the_papers_layers(pile_dir: str) -> None:
    config = load_experiment(str(ROOT / "experiments" / "pile.py:24x1"))
    config.unlock()
    config.data.path = pile_dir
    config.mesh.update(data=1, fsdp=1)
    params = make_job(config).layout.abstract.params
    # 24 x (4 D D + 3 D F + 2 norms of D), D = 2048, F = 5120.
    assert layers(params) == 24 * (4 * 2048**2 + 3 * 2048 * 5120 + 2 * 2048)


def test_the_pile_family_is_complete_and_at_the_papers_hyperparameters() -> None:
    assert set(pile.PLANS) == set(PILE)
    small, sizes = pile.get_config("12x2_small"), set()
    for plan in pile.PLANS:
        config = pile.get_config(plan)
        train, optimizer = config.train, config.optimizer
        assert (train.batch_size, config.data.length, train.steps) == (512, 1280, 400_000)
        assert (optimizer.name, optimizer.learning_rate) == ("adafactor", 0.01)
        assert (config.model.d_model, config.model.d_ff, config.model.num_heads) == (2048, 5120, 32)
        sizes.add(config.train.steps * config.train.batch_size * config.data.length)
        # Presets differ from their plan's by the same keys.
        other = pile.get_config(f"{plan}_small")
        assert other.model.plan == plan
        other.model.plan = small.model.plan
        assert other.to_dict() == small.to_dict()
    assert sizes == {262_144_000_000}  # 400,000 x 512 x 1280: the paper's 250 billion.


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_parameters_that_it_says(name: str) -> None:
    path = ROOT / "experiments" / f"{name}.py"
    config = load_experiment(str(path))
    config.mesh.update(data=1, fsdp=1)
    params = make_job(config, needs_data=False).layout.abstract.params
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert round(count / 1e6) == RECIPES[name]
    assert f"{count:,}" in path.read_text()


def test_the_gate_of_ouros_second_stage_is_all_that_is_trained() -> None:
    config = load_experiment(str(ROOT / "experiments" / "ouro.py:gate"))
    config.mesh.update(data=1, fsdp=1)
    frozen = jax.tree_util.tree_leaves_with_path(make_job(config, needs_data=False).frozen)
    trained = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, no in frozen if not no
    ]
    assert trained == ["segment_0/gate/bias", "segment_0/gate/weight"]


def test_a_foreign_argument_is_refused() -> None:
    with pytest.raises(UserError, match="'smal' is not small"):
        load_experiment(str(ROOT / "experiments" / "huginn.py:smal"))
    with pytest.raises(UserError, match="'p64' is not p16 or p32"):
        load_experiment(str(ROOT / "experiments" / "phop.py:1x6,p64"))
    with pytest.raises(UserError, match="'cut' is not cot"):
        load_experiment(str(ROOT / "experiments" / "igsm.py:1x8,cut"))


SWEEPS = sorted(p for p in (ROOT / "experiments/sweeps").glob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.name)
def test_the_runs_of_every_sweep_are_valid(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # Their experiments are named from there.
    runs = load_sweep(str(path), {})
    assert len(runs) > 4
    if path.stem in published.SYNTHETIC:  # The whole table, at its size.
        plans = {config.model.plan for config in runs.values()}
        assert plans == set(published.table(path.stem))
