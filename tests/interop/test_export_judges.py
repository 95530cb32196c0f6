"""The judge of exported models: transformers opens them and gives the same logits, of whole rows,
of packed ones and token by token."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from exported_models import LENGTH, exported
from helpers import batch_logits, random_rows, small_config, token_logits

from looped_jax.inference.generator import Generator
from looped_jax.parallel.mesh import make_mesh

WHY = "the judge comes with the extra judges: pip install -e '.[judges]'"
torch: Any = pytest.importorskip("torch", reason=WHY)
transformers: Any = pytest.importorskip("transformers", minversion="5.24", reason=WHY)

IDS = 259
TOKENS = np.random.default_rng(0).integers(3, IDS, size=(2, 9)).astype(np.int32)
MIDDLE, UNTIED, MANY = {"plan": "1x1,2x2,1x1"}, {"tied_output": False}, {"num_kv_heads": 4}
GPT2 = {"norm": "layernorm", "positions": "learned", "mlp": "gelu", **MANY}
HRM = {
    **{"plan": "2x8", "norm": "rmsnorm_unscaled", "attention_gate": True, **MANY},
    "loop__nest": "two_stacks",
}
DORY = {
    **{"plan": "1x1,2x3,1x1", "layer": "ngpt", "norm": "l2", "qk_norm": True},
    "loop__injection": "unit_add",
}
# The class of transformers, the layout, and options of config.model (or of config.loop).
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", "unrolled", {}),
    "Llama, prelude and coda, untied, biases": (
        *("LlamaForCausalLM", "unrolled", {**MIDDLE, **UNTIED, "bias": True}),
    ),
    "Llama, GELU": ("LlamaForCausalLM", "unrolled", {"mlp": "gelu"}),
    "Llama, ReLU, biases": ("LlamaForCausalLM", "unrolled", {"mlp": "relu", "bias": True}),
    "Llama, LoRA per loop": ("LlamaForCausalLM", "unrolled", {"loop__per_loop": "lora"}),
    "Qwen3": ("Qwen3ForCausalLM", "unrolled", {"qk_norm": True}),
    "StarCoder2": ("Starcoder2ForCausalLM", "unrolled", {"norm": "layernorm", "mlp": "gelu"}),
    "StarCoder2, untied, biases": (
        *("Starcoder2ForCausalLM", "unrolled"),
        {**MIDDLE, **UNTIED, "norm": "layernorm", "mlp": "relu", "bias": True},
    ),
    "GPT-2": ("GPT2LMHeadModel", "unrolled", GPT2),
    "GPT-2, untied, biases": ("GPT2LMHeadModel", "unrolled", {**GPT2, **UNTIED, "bias": True}),
    "shared": ("LoopedLlamaForCausalLM", "shared", {}),
    "shared, prelude and coda, untied": (
        *("LoopedLlamaForCausalLM", "shared", {**MIDDLE, **UNTIED}),
    ),
    "HRM-Text": ("HrmTextForCausalLM", "hrm_text", HRM),
    "HRM-Text, untied": ("HrmTextForCausalLM", "hrm_text", {**HRM, **UNTIED}),
    "Dory": ("DoryForCausalLM", "dory", {**DORY, "head_size": 16}),
    "Dory, untied": ("DoryForCausalLM", "dory", {**DORY, **UNTIED}),
}


def keys(options: dict[str, Any]) -> dict[str, Any]:
    """As small_config has them."""
    return {k if "__" in k else f"model__{k}": v for k, v in options.items()}


def opened(folder: pathlib.Path) -> Any:
    """The model in a folder, of which every weight was there and none was more."""
    model, said = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(said.values()), said
    return model.eval()


def logits_of(model: Any, tokens_BT: np.ndarray, **more: Any) -> np.ndarray:
    with torch.no_grad():
        found = model(input_ids=torch.tensor(tokens_BT, dtype=torch.long), **more).logits
    return np.asarray(found)


@pytest.mark.parametrize("case", CASES)
def test_transformers_gives_our_logits(case: str, tmp_path: pathlib.Path) -> None:
    kind, layout, options = CASES[case]
    run = exported(tmp_path, layout, **keys(options))
    model = opened(tmp_path)
    assert type(model).__name__ == kind
    theirs = logits_of(model, TOKENS)
    ours = np.asarray(token_logits(run.job.model, run.parameters(), TOKENS))[..., :IDS]
    assert np.abs(ours).max() > 0.5
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("layout", ["unrolled", "shared"])
def test_documents_in_one_row_do_not_see_each_other(layout: str, tmp_path: pathlib.Path) -> None:
    run = exported(tmp_path, layout)
    batch = random_rows(2, LENGTH, IDS)
    segments, at = batch["segment_ids"], np.arange(LENGTH)
    seen_BTT = (segments[:, :, None] == segments[:, None]) & (at[:, None] >= at)
    # Numbers that are added: some of its kernels take booleans as such numbers, too.
    hidden_BTT = np.where(seen_BTT, 0.0, np.finfo(np.float32).min).astype(np.float32)
    theirs = logits_of(
        opened(tmp_path),
        batch["tokens"],
        position_ids=torch.tensor(batch["positions"], dtype=torch.long),
        attention_mask=torch.tensor(hidden_BTT[:, None]),
    )
    ours = np.asarray(batch_logits(run.job.model, run.parameters(), batch))[..., :IDS]
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_what_follows_a_text_is_the_same_token_by_token(tmp_path: pathlib.Path) -> None:
    run = exported(tmp_path, "shared")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "loops </s>"
    asked = tokenizer(text, return_tensors="pt")
    ids = asked["input_ids"][0].tolist()
    assert ids == [1, *map(int, run.job.data.vocabulary.encode(text))]
    model = opened(tmp_path)
    count = LENGTH - len(ids)
    said = model.generate(**asked, max_new_tokens=count, eos_token_id=-1)
    mesh = small_config(mesh__data=1)
    parts = (run.job.model, run.parameters(), make_mesh(mesh), mesh.mesh.rules)
    (ours,) = Generator(*parts, batch_size=1, eos=-1).generate([ids], count)
    assert said[0].tolist()[len(ids) :] == ours.tokens
    assert len(set(ours.tokens)) > 3


def test_a_shared_model_keeps_one_copy_in_memory_and_when_it_is_saved(
    tmp_path: pathlib.Path,
) -> None:
    exported(tmp_path / "out", "shared", **keys({**MIDDLE, **UNTIED}))
    model = opened(tmp_path / "out")
    places = [layer.mlp.up_proj.weight.data_ptr() for layer in model.model.layers]
    assert [places.index(place) for place in places] == [0, 1, 2, 1, 2, 5]
    model.save_pretrained(tmp_path / "again")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("out", "again")]
    assert abs(sizes[0] - sizes[1]) < 1000  # Their headers have names in another order.
    for name in ("config.json", "modeling_looped_llama.py"):
        assert (tmp_path / "again" / name).exists()
    stored = json.loads((tmp_path / "again" / "config.json").read_text())["stored_layers"]
    assert stored == [0, 1, 2, 1, 2, 5]
    np.testing.assert_array_equal(
        logits_of(model, TOKENS), logits_of(opened(tmp_path / "again"), TOKENS)
    )
