import json
import pathlib

import pytest
from etils import epath
from helpers import small_config
from hypothesis import given
from hypothesis import strategies as st

from looped_jax import config as config_lib
from looped_jax.config import default_config, load_experiment, reference, set_key, validate
from looped_jax.errors import UserError

BAD_VALUES = {
    "model.num_heads": (5, "config.model.num_heads=5 does not divide config.model.d_model=16"),
    "model.num_kv_heads": (3, "does not divide config.model.num_heads=4"),
    "model.mlp": ("swigl", "is not one of gelu, swiglu, relu; did you mean 'swiglu'?"),
    "model.d_ff": (0, "config.model.d_ff=0 must be positive"),
    "optimizer.clip_norm": (-1.0, "config.optimizer.clip_norm=-1.0 must be at least 0"),
    "train.grad_accumulation": (3, "does not divide config.train.batch_size=16"),
    "model.saved_names": (("quary",), "did you mean 'query'"),
    "model.offloaded_names": (("query",), "is used by config.model.remat='names' only"),
    "data.text_column": ("", "config.data.text_column is empty"),
    "data.prompt_column": ("text", "config.data.prompt_column='text' is config.data.text_column"),
    "data.component_column": ("meta..name", "is not a name, or names joined by dots"),
    "data.document_separator": ("\n\n", "must be one line"),
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


HEAD = "from looped_jax.config import default_config\ndef get_config():\n    c = default_config()\n"
BAD_FILES = {
    HEAD + "    c.train.stepz = 1\n    return c\n": "py:4: config has no key 'stepz' "
    "there; did you mean 'steps'?",
    HEAD + "    c.optimizer.update(learning_rat=1.0)\n    return c\n": "mean 'learning_rate'?",
    HEAD + "    c['model']['d_modle'] = 3\n    return c\n": "did you mean 'd_model'?",
    HEAD + "    c.train.steps = 'many'\n    return c\n": "py:4: TypeError",
    HEAD + "    c.model = {'plan': '1x2'}\n    return c\n": "has no key 'model.attention'",
    HEAD + "    raise ValueError('boom')\n": "experiment.py:4: ValueError: boom",
    HEAD + "    raise SystemExit(0)\n": "experiment.py:4: SystemExit: 0",
    HEAD + "    return undefined\n": "experiment.py:4: NameError: name 'undefined' is not defined",
    HEAD + "    pass\n": "get_config() returned nothing",
    HEAD + "    return {'train': 1}\n": "get_config() returned a dict",
    HEAD + "    return 'text'\n": "get_config() returned a str",
    "raise KeyError('at import')\n": "experiment.py:1: KeyError: 'at import'",
    "get_config = 3\n": "defines no get_config()",
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
    assert "experiment.py" in str(error.value)
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


NUMBERS = [
    key
    for key, value in config_lib.flatten(default_config())
    if isinstance(value, (int, float)) and not isinstance(value, bool)
]
TUPLES = [key for key, value in config_lib.flatten(default_config()) if isinstance(value, tuple)]


def test_every_number_has_a_range() -> None:
    having = {name for name, known in config_lib.KEYS.items() if known.range}
    assert having == set(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", ["-5", "1" + "0" * 30, "nan", "inf", "1e400"])
def test_numbers_out_of_their_range_are_refused_in_one_line(key: str, value: str) -> None:
    config = default_config()
    with pytest.raises(UserError) as error:
        config_lib.apply_overrides(config, {key: value})
        validate(config)
    assert key in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.b1", 1.5),
        ("optimizer.b2", 1.0),
        ("optimizer.eps", 0.0),
        ("optimizer.final_fraction", 2.0),
        ("model.rope_theta", 0.0),
        ("eval.shots", -7),
    ],
)
def test_numbers_that_would_be_computed_with_but_make_no_sense_are_refused(
    key: str, value: float
) -> None:
    with pytest.raises(UserError, match=rf"config.{key}={value} must be "):
        validate(small_config(**{key.replace(".", "__"): value}))


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3)
    | st.sampled_from(["model.plan", "1x2", "embed", "fsdp"]),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.lists(inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.sampled_from(TUPLES), LITERALS)
def test_any_literal_for_a_tuple_is_taken_or_refused_in_one_line(key: str, value: object) -> None:
    config = small_config()
    try:
        config_lib.apply_overrides(config, {key: repr(value)})
        validate(config)
    except UserError as error:
        assert "\n" not in str(error)


def test_an_old_runs_config_stays_readable_when_operational_keys_change(
    capsys: pytest.CaptureFixture, tmp_path: pathlib.Path
) -> None:
    content = json.loads(config_lib.to_json(small_config()))
    content["prepare"]["block_mb"] = 16
    content["mesh"]["pipeline"] = 4
    content["checkpoint"]["kind"] = "old"
    read = config_lib.from_json(json.dumps(content))
    assert config_lib.differences(read, small_config()) == []
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "prepare.block_mb" in said and "mesh.pipeline" in said
    content["model"]["foo"] = 3
    path = epath.Path(tmp_path / "config.json")
    for text, message in (
        (json.dumps(content), "model.foo=3, which this version does not know"),
        ("", "not JSON"),
        ("[1]", "a list, not the keys of a config"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            config_lib.read_config(path)
        assert str(path) in str(error.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        config_lib.read_config(path)


def test_a_colon_in_a_folder_is_no_argument(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    text = HEAD.replace("get_config()", "get_config(plan='1x1')") + "    c.model.plan = plan\n"
    (folder / "one.py").write_text(text + "    return c\n")
    assert load_experiment(str(folder / "one.py")).model.plan == "1x1"
    config = load_experiment(f"{folder / 'one.py'}:2x3")
    assert (config.model.plan, config.name) == ("2x3", "one_2x3")


def test_the_page_of_keys_is_what_the_keys_say() -> None:
    page = (config_lib.PROJECT_ROOT / "docs" / "config.md").read_text()
    assert page == reference.markdown(), "make generated"


def test_every_key_says_what_it_means_and_help_lists_it() -> None:
    listed = reference.plain()
    for name, known in config_lib.KEYS.items():
        assert known.meaning, name
        assert f"--config.{name}=" in listed
