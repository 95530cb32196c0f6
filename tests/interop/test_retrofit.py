"""Pretrained models as runs: the source's function where a start keeps it, which layers are chosen,
what is refused, and that nothing is half-written."""

import dataclasses
import json
import pathlib
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from conftest import ROOT
from etils import epath
from exported_models import exported
from helpers import random_params, small_model, token_logits, write_pile
from safetensors.numpy import load_file, save_file
from tokenizers_of_text import trained_byte_level, write_own

from looped_jax.config import load_experiment
from looped_jax.errors import RunError, UserError
from looped_jax.interop import llama, ouro
from looped_jax.interop.exported import export
from looped_jax.interop.layer_choice import chosen
from looped_jax.interop.retrofitted import retrofit
from looped_jax.interop.starts import thin
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.training.job import make_job
from looped_jax.training.run import open_run

USED, DEPTH = 308, 6  # The tokenizer has 308 ids.
TOKENS = np.random.default_rng(0).integers(0, USED, size=(2, 9)).astype(np.int32)
MODEL = small_model(
    f"{DEPTH}x1",
    vocab_size=312,
    ids_in_use=USED,
    d_model=24,
    num_heads=4,
    num_kv_heads=2,
    mlp="swiglu",
    norm_eps=1e-5,
    rope_theta=500.0,
)
QUIET = {"data.length": "12", "mesh.data": "1"}  # One device: orbax slices arrays for eight.


def write_source(
    folder: pathlib.Path, model: Any = MODEL, form: Any = llama, **changes: Any
) -> pathlib.Path:
    """A model as its authors would have put it on a hub."""
    params = random_params(model)
    tensors = form.tensors(model.config, params)
    described = {
        **form.describe(model.config),
        "vocab_size": USED,
        "max_position_embeddings": 64,
        "tie_word_embeddings": model.config.tied_output,
        **changes,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(described))
    save_file(tensors, folder / "model.safetensors")
    write_own(folder, trained_byte_level(), eos_token="<|endoftext|>")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_source(tmp_path_factory.mktemp("hub") / "small")


def made(source: pathlib.Path, out: pathlib.Path, plan: str = "", **given: Any) -> Any:
    """The run, opened."""
    overrides = QUIET | given.pop("overrides", {})
    retrofit(epath.Path(source), plan, epath.Path(out), overrides=overrides, **given)
    return open_run(str(out))


def logits_of(run: Any, loops: int | None = None) -> np.ndarray:
    params = jax.device_get(run.parameters())
    found = jax.jit(lambda p: token_logits(run.job.model, p, TOKENS, loops))(params)
    return np.asarray(found)[..., :USED]


EXPECTED = np.asarray(token_logits(MODEL, random_params(MODEL), TOKENS))[..., :USED]


def test_with_its_own_depth_as_plan_a_run_is_the_source(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = made(source, tmp_path / "run")
    np.testing.assert_allclose(logits_of(run), EXPECTED, atol=1e-5, rtol=0)
    config = run.job.model.config
    same = ("norm_eps", "rope_theta", "num_kv_heads", "head_dim", "mlp", "bias", "tied_output")
    for field in same:
        assert getattr(config, field) == getattr(MODEL.config, field), field
    record = json.loads((tmp_path / "run" / "retrofit.json").read_text())
    assert record["layers"] == [[number] for number in range(DEPTH)]
    assert [file["file"] for file in record["files"]] == ["model.safetensors"]
    assert run.job.data.vocabulary.spec == f"own:{tmp_path / 'run' / 'tokenizer'}"


@pytest.mark.parametrize(
    ("plan", "loop", "atol", "rule"),
    [
        ("2x1,2x3,2x1", {"loop.per_loop": "step"}, 1e-5, "stepwise"),
        ("3x2", {"loop.per_loop": "lora", "loop.lora_rank": "24"}, 1e-4, "average"),
        ("1x1,2x2,1x1", {"loop.per_loop": "lora", "loop.lora_rank": "24"}, 1e-4, "stepwise"),
    ],
    ids=["steps of size 0 after the first loop", "LoRA of full rank", "the same in the middle"],
)
def test_a_start_that_can_keeps_the_function_of_the_source(
    plan: str,
    loop: dict[str, str],
    atol: float,
    rule: str,
    source: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    run = made(source, tmp_path / "run", plan, rule=rule, overrides=loop)
    np.testing.assert_allclose(logits_of(run), EXPECTED, atol=atol, rtol=0)


def test_one_loop_with_an_adapter_begins_as_the_source(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = made(source, tmp_path / "run", "2x1,2x2,2x1", overrides={"loop.injection": "concat"})
    np.testing.assert_allclose(logits_of(run, 1), EXPECTED, atol=1e-5, rtol=0)
    assert np.max(np.abs(logits_of(run, 2) - EXPECTED)) > 0.1


def test_lora_of_a_rank_is_the_nearest_of_that_rank() -> None:
    difference = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    for path, inputs in (("mlp/up/kernel", 1), ("attention/output/kernel", 2)):
        flat = difference.reshape(int(np.prod(difference.shape[:inputs])), -1)
        singular = np.linalg.svd(flat, compute_uv=False)
        for rank in (1, 2, 9):
            a, b = thin(difference, rank, path)
            left = np.linalg.norm(np.tensordot(a, b, axes=1) - difference)
            assert left == pytest.approx(np.linalg.norm(singular[rank:]), abs=1e-5)


@pytest.mark.parametrize(
    ("plan", "rule", "layers"),
    [
        ("4x3", "stepwise", [0, 4, 7, 11]),
        ("4x3", "first", [0, 1, 2, 3]),
        ("4x3", "middle", [4, 5, 6, 7]),
        ("4x3", "last", [8, 9, 10, 11]),
        ("2x1,4x2,2x1", "last", [0, 1, 6, 7, 8, 9, 10, 11]),
        ("2x1,4x2,2x1", "influence", [0, 1, 2, 4, 6, 8, 10, 11]),
        ("2x1,2x2,1x2,2x1", "stepwise", [0, 1, 2, 6, 9, 10, 11]),
        ("2x1,2x2,2x1", "0-1,5,7,10-11", [0, 1, 5, 7, 10, 11]),
    ],
)
def test_layers_are_chosen_by_the_rule(plan: str, rule: str, layers: list[int]) -> None:
    influence = [float(number % 2 == 0) for number in range(12)]
    found = chosen(LoopPlan.parse(plan), 12, rule, lambda: influence)
    assert found == tuple((layer,) for layer in layers)


def test_the_average_takes_layers_that_are_in_the_same_place_of_a_loop() -> None:
    found = chosen(LoopPlan.parse("1x1,2x3,1x1"), 8, "average", lambda: [])
    assert found == ((0,), (1, 3, 5), (2, 4, 6), (7,))


def test_a_layer_that_does_nothing_has_no_influence_and_goes_first(tmp_path: pathlib.Path) -> None:
    folder = write_source(tmp_path / "small")
    tensors = load_file(folder / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.2.{name}.weight"][:] = 0.0
    save_file(tensors, folder / "model.safetensors")
    write_pile(tmp_path / "pile")
    given = {"data.path": str(tmp_path / "pile"), "data.length": "24"}
    run = made(folder, tmp_path / "run", "1x1,3x2,1x1", rule="influence", overrides=given)
    record = json.loads((run.workdir / "retrofit.json").read_text())
    assert record["influence"][2] == pytest.approx(0.0, abs=1e-5)
    assert min(record["influence"][:2] + record["influence"][3:]) > 1e-3
    assert record["layers"] == [[0], [1], [3], [4], [5]]


def test_biases_of_some_projections_are_0_elsewhere(tmp_path: pathlib.Path) -> None:
    model = small_model(**{**fields_of(MODEL), "bias": True, "plan": "2x1"})
    folder = write_source(tmp_path / "qwen2", model, model_type="qwen2")
    tensors = load_file(folder / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if not n.endswith("bias") or ".q_proj" in n}
    save_file(kept, folder / "model.safetensors")
    params = made(folder, tmp_path / "run").parameters()
    attention = params["segment_0"]["layers"]["layer"]["attention"]
    assert np.any(attention["query"]["bias"]) and not np.any(attention["output"]["bias"])


def fields_of(model: Any) -> dict[str, Any]:
    config = dataclasses.asdict(model.config)
    names = ("vocab_size", "ids_in_use", "d_model", "num_heads", "num_kv_heads", "mlp")
    return {name: config[name] for name in names}


def test_the_recipe_goes_on_from_the_run(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    made(source, tmp_path / "run", "2x1,2x3,2x1", overrides={"loop.per_loop": "step"})
    spec = str(ROOT / "experiments" / f"retrofit.py:{tmp_path / 'run'}")
    config = load_experiment(spec)
    # The table is the source's over sqrt(D): so are the steps of its optimizer.
    assert config.optimizer.group_rates == (("embed", MODEL.config.d_model**-0.5),)
    config.unlock()
    config.mesh.data = 1
    job = make_job(config, needs_data=False)
    assert job.model.config.plan == LoopPlan.parse("2x1,2x3,2x1")
    assert dict(job.model.config.loop) == {"per_loop": "step"}
    with pytest.raises(UserError, match=r"retrofit.py:RUN needs a run"):
        load_experiment(str(ROOT / "experiments" / f"retrofit.py:{tmp_path / 'none'}"))


OURO = small_model(
    "4x3",
    **{**fields_of(MODEL), "norms": "branch", "tied_output": False, "rope_theta": 500.0},
    loop=(("last_norm", "every_loop"), ("gate", "linear")),
)


@pytest.mark.parametrize("plan", ["4x3", "1x1,2x3,1x1", "1x1,2x3", "1x2,2x3"])
def test_the_norm_and_the_gate_of_ouro_are_those_of_each_looped_segment(
    plan: str, tmp_path: pathlib.Path
) -> None:
    folder = write_source(tmp_path / "ouro", OURO, ouro, tie_word_embeddings=False)
    run = made(folder, tmp_path / "run", plan)
    theirs, params = random_params(OURO)["segment_0"], run.parameters()
    for index in LoopPlan.parse(plan).looped:
        for part in ("last_norm", "gate"):
            jax.tree.map(
                np.testing.assert_array_equal, params[f"segment_{index}"][part], theirs[part]
            )
    if plan.endswith("x1"):  # Behind layers that follow the loop stands the model's last norm, too.
        scale = theirs["last_norm"]["norm"]["scale"]
        np.testing.assert_array_equal(params["final_norm"]["scale"], scale)
    if plan == "4x3":
        expected = np.asarray(token_logits(OURO, random_params(OURO), TOKENS))[..., :USED]
        np.testing.assert_allclose(logits_of(run), expected, atol=1e-5, rtol=0)


def test_influence_is_measured_of_the_layers_of_ouro_too(tmp_path: pathlib.Path) -> None:
    folder = write_source(tmp_path / "ouro", OURO, ouro, tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    for name in ("input_layernorm_2", "post_attention_layernorm_2"):
        tensors[f"model.layers.1.{name}.weight"][:] = 0.0  # What this layer adds is 0.
    save_file(tensors, folder / "model.safetensors")
    write_pile(tmp_path / "pile")
    given = {"data.path": str(tmp_path / "pile"), "data.length": "24"}
    run = made(folder, tmp_path / "run", "3x2", rule="influence", overrides=given)
    record = json.loads((run.workdir / "retrofit.json").read_text())
    assert record["influence"][1] == pytest.approx(0.0, abs=1e-5)
    assert record["layers"] == [[0], [2], [3]]


@pytest.mark.parametrize(
    ("plan", "loop", "message"),
    [
        ("4x1", {}, "has the tensor model.early_exit_gate.bias and 1 more, for which"),
        ("2x2", {"loop.gate": "none"}, "has segment_0/gate/bias, for which plan 2x2"),
        ("2x2", {"loop.last_norm": "once"}, "has segment_0/last_norm/norm/scale, for which"),
        ("2x2", {"loop.norms": "pre"}, "layers.0.input_layernorm_2.weight and 7 more"),
    ],
)
def test_what_a_source_has_and_the_run_has_no_place_for_is_not_dropped(
    plan: str, loop: dict[str, str], message: str, tmp_path: pathlib.Path
) -> None:
    folder = write_source(tmp_path / "ouro", OURO, ouro, tie_word_embeddings=False)
    with pytest.raises(UserError, match=message) as raised:
        made(folder, tmp_path / "run", plan, overrides=loop)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_source_with_more_ids_than_its_tokenizer_goes_out_and_comes_back_bit_for_bit(
    tied: bool, tmp_path: pathlib.Path
) -> None:
    """Qwen's files have rows behind the tokenizer's ids."""
    fields = {**fields_of(MODEL), "ids_in_use": 0, "vocab_size": 331, "tied_output": tied}
    folder = write_source(tmp_path / "qwen", small_model("2x1", **fields), vocab_size=331)
    run = made(folder, tmp_path / "run")
    export(run, epath.Path(tmp_path / "out"), "unrolled")
    again = made(tmp_path / "out", tmp_path / "again")
    assert again.job.model.config.vocab_size == run.job.model.config.vocab_size == 336
    jax.tree.map(np.testing.assert_array_equal, run.parameters(), again.parameters())
    with pytest.raises(UserError, match=r"config.model.vocab_size=400, where the run .* has 336"):
        made(tmp_path / "out", tmp_path / "third", overrides={"model.vocab_size": "400"})


def without(folder: pathlib.Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def reshaped(folder: pathlib.Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name][:-1]
    save_file(tensors, folder / "model.safetensors")


def added(folder: pathlib.Path, name: str, tensor: Any = (1.0, 2.0)) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: np.asarray(tensor, np.float32)}, folder / "model.safetensors")


def converted(folder: pathlib.Path, name: str, kind: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].astype(kind)
    save_file(tensors, folder / "model.safetensors")


def of_8_bits(folder: pathlib.Path) -> None:
    """All tensors, as the head of the file has it, of a kind that numpy lacks."""
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t.astype(np.uint8) for n, t in tensors.items()}, folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    head = content[8 : 8 + size].replace(b'"U8"', b'"F8_E4M3"')
    whole = len(head).to_bytes(8, "little") + head + content[8 + size :]
    (folder / "model.safetensors").write_bytes(whole)


def described(folder: pathlib.Path, **changes: Any) -> None:
    there = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(there | changes))


def damaged(folder: pathlib.Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:100])


K_PROJ = "model.layers.3.self_attn.k_proj.weight"
SCALED = {"rope_type": "llama3", "rope_theta": 1e4}
BAD = {
    "a tensor is missing": (lambda f: without(f, K_PROJ), f"has no tensor {K_PROJ}"),
    "a tensor has another shape": (
        lambda f: reshaped(f, K_PROJ),
        rf"tensor {K_PROJ} is \[11, 24\], where its config.json asks for \[12, 24\]",
    ),
    "an unknown architecture": (
        lambda f: described(f, model_type="mamba"),
        "architecture 'mamba'; those that are read are llama,",
    ),
    "scaled RoPE": (
        lambda f: described(f, rope_parameters=SCALED),
        "nothing for rope_type='llama3'",
    ),
    "windows": (lambda f: described(f, sliding_window=8), "nothing for sliding windows"),
    "a gated GELU": (lambda f: described(f, hidden_act="gelu"), "an MLP with a gate and gelu"),
    "weights cut off": (damaged, "its weights cannot be read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "is no model: a folder with config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "--tokenizer=DIR says where"),
    "a tensor that nothing reads": (
        lambda f: added(f, "model.layers.2.self_attn.sinks"),
        "has the tensor model.layers.2.self_attn.sinks, for which config.model has nothing",
    ),
    "layers behind the last one": (
        lambda f: described(f, num_hidden_layers=4),
        r"tensor model.layers.4.input_layernorm.weight and 17 more, for which",
    ),
    "a bias of some other projection": (
        lambda f: added(f, "model.layers.2.mlp.down_proj.bias"),
        "has the tensor model.layers.2.mlp.down_proj.bias, for which config.model has nothing",
    ),
    "weights of whole numbers": (
        lambda f: converted(f, K_PROJ, np.int8),
        f"tensor {K_PROJ} is of the kind I8; weights are read that are one of F64, F32, F16, BF16",
    ),
    "weights of 8 bits": (of_8_bits, "is of the kind F8_E4M3"),
    "quantised weights": (
        lambda f: described(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "nothing for quantization_config",
    ),
    "RoPE of a part": (
        lambda f: described(f, rope_parameters={"rope_theta": 1.0, "partial_rotary_factor": 0.5}),
        "nothing for partial_rotary_factor",
    ),
    "a larger tokenizer": (lambda f: described(f, vocab_size=20), "it is not this model's"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_source_that_cannot_be_read_is_one_line_and_leaves_nothing(
    what: str, tmp_path: pathlib.Path
) -> None:
    spoil, message = BAD[what]
    folder = write_source(tmp_path / "small")
    spoil(folder)
    with pytest.raises(UserError, match=message) as raised:
        made(folder, tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_tensors_that_change_nothing_are_let_through(tmp_path: pathlib.Path) -> None:
    folder = write_source(tmp_path / "small")
    added(folder, "model.layers.0.self_attn.rotary_emb.inv_freq")
    added(folder, "model.layers.1.mlp.down_proj.bias", np.zeros(24))
    added(folder, "lm_head.weight", np.ones((USED, 24)))  # The source is tied: nobody reads it.
    assert MODEL.config.tied_output
    np.testing.assert_allclose(logits_of(made(folder, tmp_path / "run")), EXPECTED, atol=1e-5)


def test_keys_of_a_gguf_file_that_change_nothing_are_let_through(tmp_path: pathlib.Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plain = {"rope__scaling__type": "none", "rope__scaling__factor": 1.0}
        with_keys(**plain, tensor_data_layout="Meta AI original pth")(patch)
        run = exported(tmp_path / "out", "gguf")
    again = made(tmp_path / "out" / "model.gguf", tmp_path / "run")
    np.testing.assert_allclose(
        again.parameters()["final_norm"]["scale"],
        run.parameters()["final_norm"]["scale"],
        rtol=1e-6,
    )


def test_layers_that_a_plan_leaves_out_are_not_missed(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    made(source, tmp_path / "run", "1x2", rule="4")


def test_an_mlp_without_a_gate_comes_in_only_where_the_gate_is_1(tmp_path: pathlib.Path) -> None:
    model = small_model("2x1", **{**fields_of(MODEL), "mlp": "gelu"})
    folder = write_source(tmp_path / "gelu", model)
    expected = np.asarray(token_logits(model, random_params(model), TOKENS))[..., :USED]
    run = made(folder, tmp_path / "run")
    np.testing.assert_allclose(logits_of(run), expected, atol=1e-5, rtol=0)
    added(folder, "model.layers.1.mlp.up_proj.bias", np.full(32, 2.0))
    with pytest.raises(UserError, match=r"model.layers.1.mlp.up_proj has to be 0 with a bias of 1"):
        made(folder, tmp_path / "other")


def with_keys(**said: Any) -> Any:
    """What makes writers say these, too, keys as `rope__scale_linear`."""

    def spoil(patch: pytest.MonkeyPatch) -> None:
        add = gguf.GGUFWriter.add_context_length

        def added(writer: gguf.GGUFWriter, length: int) -> None:
            add(writer, length)
            for key, value in said.items():
                name = f"llama.{key.replace('__', '.')}"
                (writer.add_string if isinstance(value, str) else writer.add_float32)(name, value)

        patch.setattr(gguf.GGUFWriter, "add_context_length", added)

    return spoil


def with_factors(patch: pytest.MonkeyPatch) -> None:
    """As llama.cpp's converter writes Llama 3.1: RoPE's scale is a tensor, and no key says so."""
    header = gguf.GGUFWriter.write_header_to_file

    def written(writer: gguf.GGUFWriter, *given: Any) -> None:
        writer.add_tensor("rope_freqs.weight", np.array([1.0, 8.0], np.float32))
        header(writer, *given)

    patch.setattr(gguf.GGUFWriter, "write_header_to_file", written)


def half_rotated(patch: pytest.MonkeyPatch) -> None:
    add = gguf.GGUFWriter.add_rope_dimension_count
    patch.setattr(
        gguf.GGUFWriter, "add_rope_dimension_count", lambda writer, count: add(writer, count // 2)
    )


def whole_numbers(patch: pytest.MonkeyPatch) -> None:
    add = gguf.GGUFWriter.add_tensor

    def added(writer: gguf.GGUFWriter, name: str, tensor: np.ndarray) -> None:
        add(writer, name, tensor.astype(np.int8) if name == "blk.1.ffn_up.weight" else tensor)

    patch.setattr(gguf.GGUFWriter, "add_tensor", added)


BAD_GGUF = {
    "scaled RoPE": (
        with_factors,
        "has the tensor rope_freqs.weight, for which config.model has nothing",
    ),
    "scaled RoPE by its key": (
        with_keys(rope__scaling__type="linear", rope__scaling__factor=4.0),
        "says llama.rope.scaling.factor=4.0, for which config.model has nothing",
    ),
    "scaled RoPE by the key of old files": (
        with_keys(rope__scale_linear=0.25),
        "says llama.rope.scale_linear=0.25, for which config.model has nothing",
    ),
    "a key that nothing reads": (with_keys(logit_scale=0.5), "says llama.logit_scale=0.5, for"),
    "RoPE of a part": (half_rotated, "llama.rope.dimension_count=2 where heads are 4 wide"),
    "weights of whole numbers": (whole_numbers, "blk.1.ffn_up.weight is of the kind I8"),
}


@pytest.mark.parametrize("what", BAD_GGUF)
def test_a_gguf_file_that_says_more_than_is_read_is_refused_in_a_line(
    what: str, tmp_path: pathlib.Path
) -> None:
    spoil, message = BAD_GGUF[what]
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch)
        exported(tmp_path / "out", "gguf")
    with pytest.raises(UserError, match=message) as raised:
        made(tmp_path / "out" / "model.gguf", tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("plan", "given", "message"),
    [
        ("9x1", {}, "plan 9x1 has 9 distinct layers, the source only 6"),
        ("4x2", {"rule": "average"}, "4 layers do not divide the 6"),
        ("2x2", {"rule": "often"}, "--layers=often is none of stepwise,"),
        ("2x2", {"rule": "0,9"}, "the source has 6 layers, none is 9"),
        ("2x2", {"rule": "0-3"}, "names 4 layers; plan 2x2 has 2"),
        ("2x2", {"rule": "influence"}, "--config.data.path=DIR says which"),
        ("2x2", {"tokenizer": "nowhere"}, "nowhere has no tokenizer.json"),
    ],
)
def test_a_plan_that_the_source_cannot_fill_is_refused(
    plan: str, given: dict[str, Any], message: str, source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=message):
        made(source, tmp_path / "run", plan, **given)
    assert not list(tmp_path.iterdir())


def test_a_place_in_use_is_left_alone(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        made(source, tmp_path / "run")
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine"


def test_a_run_made_at_a_relative_path_opens_from_elsewhere(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    retrofit(epath.Path(source), "1x1", epath.Path("run"), overrides=QUIET)
    monkeypatch.chdir("/")
    assert open_run(str(tmp_path / "run")).job.data.vocabulary.size == USED


def test_a_disk_that_fills_up_leaves_nothing(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("looped_jax.interop.retrofitted.Checkpointer.save", full)
    with pytest.raises(RunError, match="No space left on device"):
        made(source, tmp_path / "run")
    assert not list(tmp_path.iterdir())
