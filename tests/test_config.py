import pathlib

import pytest
from helpers import small_config
from hypothesis import given
from hypothesis import strategies as st

from looped_jax import config as config_lib
from looped_jax.config import UserError, default_config, load_experiment, set_key, validate

BAD_VALUES = {
    "model.num_heads": (5, "config.model.num_heads=5 does not divide config.model.d_model=16"),
    "model.num_kv_heads": (3, "does not divide config.model.num_heads=4"),
    "model.mlp": ("swigl", "is not one of gelu, swiglu, relu; did you mean 'swiglu'?"),
    "model.d_ff": (0, "config.model.d_ff=0 must be positive"),
    "optimizer.clip_norm": (-1.0, "config.optimizer.clip_norm=-1.0 must not be negative"),
    "train.grad_accumulation": (3, "does not divide config.train.batch_size=16"),
    "model.saved_names": (("quary",), "did you mean 'query'"),
    "model.offloaded_names": (("query",), "is used by config.model.remat='names' only"),
}


@pytest.mark.parametrize("key", BAD_VALUES)
def test_an_impossible_value_is_named(key: str) -> None:
    value, message = BAD_VALUES[key]
    with pytest.raises(UserError) as error:
        validate(small_config(**{key.replace(".", "__"): value}))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rope_needs_an_even_head_size() -> None:
    config = small_config(model__d_model=12)
    with pytest.raises(UserError, match="even head size"):
        validate(config)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("train.step", "train.steps"),
        ("model.n_heads", "model.num_heads"),
        ("model.learning_rate", "optimizer.learning_rate"),
    ],
)
def test_an_unknown_key_names_its_nearest_neighbour(key: str, near: str) -> None:
    with pytest.raises(UserError, match=f"no key {key!r}; did you mean {near!r}"):
        config_lib.apply_overrides(default_config(), {key: "1"})


@pytest.mark.parametrize(
    ("key", "text", "type_name"),
    [
        ("train.steps", "many", "int"),
        ("train.steps", "1.5", "int"),
        ("model.bias", "1", "bool"),
        ("optimizer.learning_rate", "high", "float"),
    ],
)
def test_a_wrong_type_is_named(key: str, text: str, type_name: str) -> None:
    with pytest.raises(UserError, match=f"config.{key}=.*it must be {type_name}"):
        config_lib.apply_overrides(default_config(), {key: text})


@given(st.integers(1, 10**9), st.floats(0, 1e6), st.booleans(), st.lists(st.sampled_from("abc")))
def test_overrides_read_back_what_was_written(
    steps: int, rate: float, bias: bool, tasks: list[str]
) -> None:
    config = default_config()
    overrides = {
        "train.steps": str(steps),
        "optimizer.learning_rate": repr(rate),
        "model.bias": str(bias),
        "eval.tasks": ",".join(tasks),
        "model.plan": "4x1,4x4,4x1",
    }
    config_lib.apply_overrides(config, overrides)
    assert (config.train.steps, config.optimizer.learning_rate) == (steps, rate)
    assert (config.model.bias, config.eval.tasks) == (bias, tuple(tasks))
    assert config.model.plan == "4x1,4x4,4x1"


def test_an_integer_is_taken_where_a_float_is_wanted() -> None:
    config = default_config()
    config_lib.apply_overrides(config, {"optimizer.learning_rate": "1"})
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)


def test_a_config_survives_json() -> None:
    config = small_config(eval__tasks=("group_z7_n4",))
    again = config_lib.from_json(config_lib.to_json(config))
    assert dict(config_lib.flatten(again)) == dict(config_lib.flatten(config))
    assert config_lib.differences(config, again) == []


def test_differences_name_what_changes_the_numbers_and_nothing_else() -> None:
    config, other = small_config(), small_config(train__log_every=7, mesh__fsdp=2)
    assert config_lib.differences(config, other) == []
    other = small_config(model__d_ff=64)
    assert config_lib.differences(config, other) == ["model.d_ff: 32 now, 64 there"]


def test_variants_must_be_named_once_compared_by_a_metric_and_valid() -> None:
    def with_variants(variants: tuple, **comparison: str) -> None:
        config = default_config()
        config.variants = variants
        config.comparison.update(comparison)
        validate(config)

    one = ("a", (("model.plan", "1x1"),))
    with_variants((one,), metric="eval/addition/accuracy", base="a")
    with pytest.raises(UserError, match="same name"):
        with_variants((one, one), metric="m")
    with pytest.raises(UserError, match=r"needs config\.comparison\.metric"):
        with_variants((one,))
    with pytest.raises(UserError, match="'b' is not a variant: a"):
        with_variants((one,), metric="m", base="b")
    with pytest.raises(UserError, match=r"did you mean 'model\.d_ff'"):
        with_variants((("a", (("model.dff", 4),)),), metric="m")


BAD_FILES = {
    "def get_config(:\n": "experiment.py:1: ",
    "import no_such_module\n": "No module named 'no_such_module'",
    "x = 1\n": "defines no get_config()",
    "from looped_jax.config import default_config\n"
    "def get_config():\n"
    "    config = default_config().lock()\n"
    "    config.train.stepz = 1\n"
    "    return config\n": "stepz",
}


@pytest.mark.parametrize("text", BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_bad_experiment_file_is_explained_in_one_line(text: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "experiment.py"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_experiment(str(path))
    assert BAD_FILES[text] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_experiment_names_its_nearest_neighbour() -> None:
    with pytest.raises(UserError, match=r"did you mean '.*experiments/quickstart.py'"):
        load_experiment(str(config_lib.PROJECT_ROOT / "experiments" / "quick_start.py"))


def test_a_key_can_only_be_set_to_its_own_type() -> None:
    config = default_config()
    set_key(config, "mesh.rules", [["batch", ["data"]]])
    assert config.mesh.rules == (("batch", ("data",)),)
    with pytest.raises(UserError, match="has type int; it must be str"):
        set_key(config, "model.plan", 3)
