"""What looped_jax.export writes is read back as it was, is refused in one line or is not there."""

import dataclasses
import errno
import json
import os
import pathlib
import stat
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from etils import epath
from exported_models import exported, random_run
from flax.traverse_util import flatten_dict
from helpers import random_params, small_model, token_logits
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers_of_text import odd_text, trained_byte_level, write_own

from looped_jax.analysis.records import append_evaluation
from looped_jax.data.vocabulary import Bytes, Vocabulary, load_vocabulary
from looped_jax.errors import RunError, UserError
from looped_jax.interop.exported import LOST, export
from looped_jax.interop.gguf_file import halves, neighbours, open_gguf
from looped_jax.interop.gguf_tokenizer import write_gguf_tokenizer
from looped_jax.interop.imported import imported
from looped_jax.interop.layouts import layout_of
from looped_jax.interop.model_card import evaluations
from looped_jax.interop.retrofitted import exact, own_origin, retrofit
from looped_jax.interop.shared import stored_layers
from looped_jax.interop.source import in_memory, open_folder
from looped_jax.models.loop_plan import LoopPlan
from looped_jax.training.run import OpenRun, open_run

WEIGHTS = "model.safetensors"
BYTES = Bytes()
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
# Options of a model, by the name that tests give it.
UNTIED = {"model__tied_output": False}
MIDDLE = {"model__plan": "1x1,2x2,1x1", "model__bias": True}


Unrolled = tuple[pathlib.Path, OpenRun]


def assert_same_bits(ours: Any, there: Any) -> None:
    ours, there = (flatten_dict(tree, sep="/") for tree in (ours, there))
    assert set(ours) == set(there)
    for path, array in ours.items():
        a, b = (np.asarray(x, np.float32) for x in (array, there[path]))
        assert a.shape == b.shape and a.tobytes() == b.tobytes(), path


def read_back(folder: pathlib.Path, run: OpenRun, layout: str = "unrolled") -> Any:
    """Parameters of an exported folder as retrofit reads them, which makes a run of them."""
    config = run.job.model.config
    places = layout_of(layout, config).own_layers or ()
    with open_folder(epath.Path(folder)) as source:
        return exact(epath.Path(folder), imported(source, config, [(i,) for i in places]))


@pytest.fixture(scope="module")
def unrolled(tmp_path_factory: pytest.TempPathFactory) -> Unrolled:
    """A 2x3 in the form `unrolled`."""
    folder = tmp_path_factory.mktemp("unrolled") / "out"
    return folder, exported(folder, "unrolled")


def test_a_folder_has_all_that_clients_read(unrolled: Unrolled) -> None:
    folder, _ = unrolled
    files = {path.name for path in folder.iterdir()}
    assert files == {
        *("config.json", WEIGHTS, "generation_config.json", "tokenizer.json"),
        *("tokenizer_config.json", "README.md", "looped_jax.json", LOST),
    }
    described = json.loads((folder / "config.json").read_text())
    assert described["architectures"] == ["LlamaForCausalLM"]
    assert described["num_hidden_layers"] == 6
    assert described["vocab_size"] == 259  # Without the ids that pad.
    assert described["tie_word_embeddings"] is True
    ids = [described[f"{name}_token_id"] for name in ("pad", "bos", "eos")]
    assert ids == [0, 1, 2]
    # RoPE's base where transformers 5 looks, and where others do.
    assert described["rope_theta"] == described["rope_parameters"]["rope_theta"] == 10000.0
    tensors = load_file(folder / WEIGHTS)
    assert "lm_head.weight" not in tensors
    assert tensors["model.embed_tokens.weight"].shape == (259, 16)
    assert json.loads((folder / "looped_jax.json").read_text())["plan"] == "2x3"


def test_weights_can_be_read_by_whoever_reads_the_other_files(
    unrolled: Unrolled,
) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in unrolled[0].iterdir()}
    assert len(modes) == 1


def test_shared_stores_the_layers_of_a_loop_once(
    tmp_path: pathlib.Path, unrolled: Unrolled
) -> None:
    exported(tmp_path / "shared", "shared")
    once, each = (load_file(f / WEIGHTS) for f in (tmp_path / "shared", unrolled[0]))
    of_a_layer = [name for name in each if name.startswith("model.layers.0.")]
    assert len(each) - len(once) == 4 * len(of_a_layer)  # Of 6 layers 2 are left.
    size = sum(each[name].nbytes for name in of_a_layer)
    bytes_each, bytes_once = (sum(t.nbytes for t in ts.values()) for ts in (each, once))
    assert bytes_each - bytes_once == 4 * size
    for name, tensor in once.items():
        np.testing.assert_array_equal(tensor, each[name])
    described = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert described["model_type"] == "looped_llama"  # No Llama, whose layers would be made up.
    assert described["stored_layers"] == [0, 1, 0, 1, 0, 1]
    code = (tmp_path / "shared" / "modeling_looped_llama.py").read_text()
    assert "class LoopedLlamaForCausalLM" in code


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """The tokenizer of an exported GGUF file."""
    folder = tmp_path_factory.mktemp("gguf")
    exported(folder / "out", "gguf")
    with open_gguf(epath.Path(folder / "out" / "model.gguf")) as (_, reader):
        write_gguf_tokenizer(reader, epath.Path(folder / "tokenizer"))
    return load_vocabulary(f"own:{folder / 'tokenizer'}")


segments = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3)


@given(segments)
def test_stored_layers_are_each_segments_own_in_every_loop(
    counts: list[tuple[int, int]],
) -> None:
    found = stored_layers(LoopPlan.parse(",".join(f"{k}x{loops}" for k, loops in counts)))
    at = 0
    for k, loops in counts:
        assert found[at : at + k * loops] == list(range(at, at + k)) * loops
        at += k * loops
    assert at == len(found)


def test_a_run_made_of_an_export_has_its_plan_and_its_bits(
    unrolled: Unrolled, tmp_path: pathlib.Path
) -> None:
    folder, run = unrolled
    assert (folder / LOST).exists()  # The ids that pad are not among the tensors.
    made = retrofit(epath.Path(folder), "", epath.Path(tmp_path / "run"))
    assert (made["plan"], made["rule"], made["layers"]) == ("2x3", "its own export", [[0], [1]])
    again = open_run(str(tmp_path / "run"))
    assert again.job.model.config.plan == run.job.model.config.plan
    assert_same_bits(run.parameters(), again.parameters())


def test_layers_with_lora_in_them_are_not_read_back_as_those_of_a_loop(
    unrolled: Unrolled, tmp_path: pathlib.Path
) -> None:
    exported(tmp_path, "unrolled", loop__per_loop="lora")
    assert own_origin(epath.Path(tmp_path)) is None
    origin = own_origin(epath.Path(unrolled[0]))
    assert origin is not None and (origin["plan"], origin["step"]) == ("2x3", 0)


def test_prelude_coda_biases_and_odd_widths_come_back_bit_for_bit(tmp_path: pathlib.Path) -> None:
    width = {"model__d_model": 24, "model__d_ff": 40}
    run = exported(tmp_path, "unrolled", **MIDDLE, **width, **UNTIED)
    with np.load(tmp_path / LOST) as lost:
        # sqrt(24) is no power of two: of some numbers the last bit would be another one.
        assert len(lost["embed/embedding@"]) > 5 * 24
    assert_same_bits(run.parameters(), read_back(tmp_path, run))


def test_ouro_comes_back_bit_for_bit_and_without_a_gate_never_exits(tmp_path: pathlib.Path) -> None:
    norms = {"loop__norms": "branch", "loop__last_norm": "every_loop"}
    gated = exported(tmp_path / "gated", "ouro", **UNTIED, **norms, loop__gate="linear")
    assert_same_bits(gated.parameters(), read_back(tmp_path / "gated", gated, "ouro"))
    exported(tmp_path / "out", "ouro", **norms)
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (described["num_hidden_layers"], described["total_ut_steps"]) == (2, 3)
    assert described["tie_word_embeddings"] is False
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    assert not tensors["model.early_exit_gate.weight"].any()
    assert tensors["model.early_exit_gate.bias"] == [-30.0]


def test_lost_bits_of_other_weights_are_not_put_into_changed_ones(
    unrolled: Unrolled, tmp_path: pathlib.Path
) -> None:
    folder, run = unrolled
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] + 1
    safetensors.numpy.save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    table_VD = read_back(tmp_path, run)["embed"]["embedding"]
    np.testing.assert_array_equal(table_VD[:259], tensors["model.embed_tokens.weight"] / 4)
    assert not table_VD[259:].any()
    assert own_origin(epath.Path(tmp_path)) is None  # Nor are its loops taken for equal layers.
    assert read_back(folder, run)["embed"]["embedding"][259:].any()  # Of the file of lost bits.


def test_what_lora_adds_in_a_loop_is_in_that_loops_layers() -> None:
    sizes = {"vocab_size": 40, "num_kv_heads": 2, "mlp": "swiglu", "tied_output": False}
    model = small_model("2x2", loop=(("per_loop", "lora"),), lora_rank=3, **sizes)
    params = random_params(model)
    form = layout_of("unrolled", model.config)
    assert form.own_layers is None  # A matrix that was added to another is not found again.
    described, tensors = form.describe(model.config), form.tensors(model.config, params)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 2)]
    assert np.abs(tensors[names[0]] - tensors[names[1]]).max() > 0.1
    plain = small_model("4x1", **sizes)
    source = in_memory({**described, "vocab_size": 40}, tensors)
    merged = imported(source, plain.config, [(i,) for i in range(4)])
    tokens = np.random.default_rng(0).integers(0, 40, size=(2, 9)).astype(np.int32)
    ours, theirs = token_logits(model, params, tokens), token_logits(plain, merged, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


HRM = {
    **{"norm": "rmsnorm_unscaled", "attention_gate": True, "mlp": "swiglu"},
    **{"plan": "2x8", "tied_output": False},
}
DORY = {"layer": "ngpt", "norm": "l2", "qk_norm": True, "mlp": "swiglu", "plan": "1x1,2x3,1x1"}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no norm": ("unrolled", {"norm": "none"}, "config.model.norm='none'"),
    "no positions": ("unrolled", {"positions": "none"}, "config.model.positions='none'"),
    "norms on the branch": ("unrolled", {"norms": "branch"}, "config.loop.norms='branch'"),
    "gated attention": ("unrolled", {"attention_gate": True}, "config.model.attention_gate=True"),
    "a layer of nGPT": ("unrolled", DORY, "config.model.layer='ngpt'"),
    "injection": ("unrolled", {"loop": (("injection", "concat"),)}, "config.loop.injection="),
    "lanes": ("unrolled", {"loop": (("lanes", "hyper_connections"),)}, "config.loop.lanes="),
    "nest": ("unrolled", {"loop": (("nest", "two_stacks"),)}, "config.loop.nest='two_stacks'"),
    "a step per loop": ("unrolled", {"loop": (("per_loop", "step"),)}, "config.loop.per_loop="),
    "Qwen3 with biases": ("unrolled", {"qk_norm": True, "bias": True}, "config.model.bias=True"),
    "QK norm and GELU": ("unrolled", {"qk_norm": True}, "config.model.mlp='gelu'"),
    "LayerNorm and SwiGLU": ("unrolled", {"norm": "layernorm", "mlp": "swiglu"}, "model.mlp="),
    "GPT-2 with grouped queries": (
        *("unrolled", {"norm": "layernorm", "positions": "learned", "num_kv_heads": 2}),
        "config.model.num_kv_heads=2",
    ),
    "shared with LoRA": ("shared", {"loop": (("per_loop", "lora"),)}, "config.loop.per_loop="),
    "shared with QK norm": ("shared", {"qk_norm": True, "mlp": "swiglu"}, "model.qk_norm=True"),
    "gguf with GELU": ("gguf", {"mlp": "gelu"}, "--layout=gguf cannot express config.model.mlp"),
    "gguf with QK norm": ("gguf", {"qk_norm": True, "mlp": "swiglu"}, "config.model.qk_norm"),
    "gguf with LayerNorm": ("gguf", {"norm": "layernorm"}, "--layout=gguf cannot express"),
    "hrm_text without a nest": ("hrm_text", HRM, "config.loop.nest='none'"),
    "hrm_text with one stack": (
        *("hrm_text", {**HRM, "loop": (("nest", "one_stack"),)}),
        "config.loop.nest='one_stack'",
    ),
    "dory without its input": ("dory", DORY, "config.loop.injection='none'"),
    "ouro with the plain norms": ("ouro", {"mlp": "swiglu"}, "config.loop.norms='pre'"),
    "ouro without the norm in the loop": (
        *("ouro", {"mlp": "swiglu", "norms": "branch"}),
        "config.loop.last_norm='none'",
    ),
    "ouro with a prelude": (
        "ouro",
        {
            **{"plan": "1x1,2x2", "mlp": "swiglu", "norms": "branch"},
            "loop": (("last_norm", "every_loop"),),
        },
        "plan 1x1,2x2",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_layout_cannot_express_is_named_by_its_key(what: str) -> None:
    layout, options, key = REFUSED[what]
    config = small_model(**options).config
    with pytest.raises(UserError) as raised:
        layout_of(layout, config)
    said = str(raised.value)
    assert key in said and "--layout=" in said and "\n" not in said


def test_a_refused_model_leaves_nothing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"config\.model\.mlp='gelu'"):
        exported(tmp_path / "out", "gguf", model__mlp="gelu")
    assert not list(tmp_path.iterdir())


def test_a_synthetic_task_has_no_tokenizer_for_a_gguf_file(tmp_path: pathlib.Path) -> None:
    changes = {"data__task": "addition_n4", "data__vocabulary": "bytes"}
    with pytest.raises(UserError, match="the task addition_n4 has none"):
        exported(tmp_path / "out", "gguf", **changes)
    assert not list(tmp_path.iterdir())


def test_only_bytes_are_a_tokenizer_of_a_gguf_file(tmp_path: pathlib.Path) -> None:
    folder = write_own(tmp_path / "own", trained_byte_level(), eos_token="<|endoftext|>")
    changes = {"data__vocabulary": f"own:{folder}", "model__vocab_size": 312}
    with pytest.raises(UserError, match=r"tokenizers of bytes only .*here 'own:"):
        exported(tmp_path / "out", "gguf", **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_row_is_filled_up_with_what_the_tokenizer_names(tmp_path: pathlib.Path) -> None:
    folder = write_own(tmp_path / "own", trained_byte_level(), eos_token="<|endoftext|>")
    changes = {"data__vocabulary": f"own:{folder}", "model__vocab_size": 312}
    exported(tmp_path / "out", "unrolled", **changes)
    named = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["pad_token"]
    ids = {t["content"]: t["id"] for t in json.loads(trained_byte_level())["added_tokens"]}
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / file).read_text())["pad_token_id"] == ids[named]


@pytest.mark.parametrize(("loops", "shown"), [(None, "9.5"), (3, "9.5"), (2, "8.25"), (5, "7.5")])
def test_a_card_has_the_figures_of_its_own_loop_count(
    loops: int | None, shown: str, tmp_path: pathlib.Path
) -> None:
    run = dataclasses.replace(random_run(), workdir=epath.Path(tmp_path))
    measured = {"eval/text/perplexity": 9.5, "eval/text/loops_2/perplexity": 8.25}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": run.step, **measured}) + "\n")
    known = dict(overrides={}, checkpoint="", data="")
    for count, value in ((5, 7.5), (4, 6.5)):
        append_evaluation(
            run.workdir, run.step, count, "test", {"eval/text/perplexity": value}, **known
        )
    changed = {**known, "overrides": {"model.norm_eps": 1.0}}
    append_evaluation(run.workdir, run.step, 5, "test", {"eval/text/perplexity": 5.5}, **changed)
    card = evaluations(run, loops)
    there = {value for value in ("9.5", "8.25", "7.5", "6.5", "5.5") if f"| {value} |" in card}
    assert there == {shown}


def test_a_folder_in_use_is_left_alone(tmp_path: pathlib.Path) -> None:
    kept = tmp_path / "out" / "mine"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        exported(kept.parent, "unrolled")
    assert kept.read_text() == "mine" and list(tmp_path.rglob("*")) == [kept.parent, kept]


# The package safetensors has its own error for what the system says.
FAILURES = {
    "a system's error": FULL,
    "safetensors' own error": safetensors.SafetensorError(f"I/O error: {FULL.strerror}"),
}


@pytest.mark.parametrize("why", FAILURES)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    why: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_file(tensors: Any, path: pathlib.Path, **_: Any) -> None:
        pathlib.Path(path).write_bytes(b"the first bytes")
        raise FAILURES[why]

    monkeypatch.setattr(safetensors.numpy, "save_file", save_file)
    with pytest.raises(RunError) as raised:
        exported(tmp_path / "out", "unrolled")
    said = str(raised.value)
    assert said.startswith(f"cannot write --out={tmp_path / 'out'}") and "\n" not in said
    assert "No space left on device" in said
    assert not list(tmp_path.iterdir())


def test_what_lies_beside_the_folder_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("mine")
    exported(tmp_path / "out", "unrolled")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]
    assert (tmp_path / "out.partial" / "mine").read_text() == "mine"


def test_a_gguf_file_gives_the_tensors_that_were_put_in(tmp_path: pathlib.Path) -> None:
    """Rows of queries and keys, too, whose order is another one there; with biases."""
    options = {**UNTIED, **MIDDLE, "model__head_size": 8}
    run = exported(tmp_path / "out", "gguf", **options)
    config = run.job.model.config
    tensors = layout_of("gguf", config).tensors(config, run.parameters())
    path = epath.Path(tmp_path / "out" / "model.gguf")
    with open_gguf(path) as (source, reader):
        assert source.names == set(tensors)
        for name, tensor in tensors.items():
            assert source.read(name).tobytes() == tensor.tobytes(), name
        there = {tensor.name: tensor.data for tensor in reader.tensors}
        query = tensors["model.layers.0.self_attn.q_proj.weight"]
        # Channel 1 of a head and its partner half a head on are neighbours there.
        np.testing.assert_array_equal(there["blk.0.attn_q.weight"][2:4], query[[1, 5]])
        described = dict(layout_of("unrolled", config).describe(config), vocab_size=259)
        for key in ("hidden_size", "num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps"):
            assert source.said(key) == described[key], key


@given(odd_text)
def test_the_tokenizer_of_a_gguf_file_written_here_is_read_back(
    gguf_bytes: Vocabulary, text: str
) -> None:
    assert list(gguf_bytes.encode(text)) == list(BYTES.encode(text))


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_the_order_of_rows_in_gguf_files_is_undone(heads: int, half: int, width: int) -> None:
    rows = np.arange(heads * 2 * half * width).reshape(-1, width)
    np.testing.assert_array_equal(halves(neighbours(rows, heads), heads), rows)


def test_a_run_is_exported_at_another_loop_count(tmp_path: pathlib.Path) -> None:
    run = random_run()
    export(run, epath.Path(tmp_path / "out"), "unrolled", loops=5)
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["num_hidden_layers"] == 10
    assert "2 layers 5 times" in (tmp_path / "out" / "README.md").read_text()
