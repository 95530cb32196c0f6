"""Other people's models through our evaluations: the same greedy tokens in batches of any lengths,
the same predictions as our own model with the same weights, prompts as their tokenizers have them.
"""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import init, small_config, small_model

from looped_jax.data.pieces import BYTE_OF_CHARACTER
from looped_jax.data.vocabulary import Bytes
from looped_jax.errors import UserError
from looped_jax.evaluation.downstream import Settings, evaluate_tasks
from looped_jax.inference.generator import Generator
from looped_jax.inference.sampling import Sampling
from looped_jax.inference.text import complete, prompt_ids
from looped_jax.interop.hf_folder import HfFolder
from looped_jax.interop.hf_model import HfModel, load
from looped_jax.parallel.mesh import make_mesh

WHY = "the models come with the extra judges: pip install -e '.[judges]'"
torch: Any = pytest.importorskip("torch", reason=WHY)
transformers: Any = pytest.importorskip("transformers", minversion="5.24", reason=WHY)
tokenizers: Any = pytest.importorskip("tokenizers", reason=WHY)

WIDTH, FF, HEADS, KV, LAYERS, LENGTH = 32, 48, 4, 2, 2, 96
TEXTS = ("", "a", "loops <s> and </s> layers", "zwei Schleifen, тест ⊗", "x = 1\n" * 9)


def write_tokenizer(folder: pathlib.Path, bos: bool) -> None:
    """Bytes with the ids of our vocabulary `bytes`."""
    specials = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocab = {**specials, **{c: 3 + byte for c, byte in BYTE_OF_CHARACTER.items()}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def write_llama(folder: pathlib.Path, bos: bool = True) -> None:
    write_tokenizer(folder, bos)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=259,
        hidden_size=WIDTH,
        intermediate_size=FF,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV,
        max_position_embeddings=LENGTH,
        rms_norm_eps=1e-6,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.repetition_penalty = 5.0  # Of its own; evaluations ask plainly.
    model.save_pretrained(folder)


def write_gpt2(folder: pathlib.Path) -> None:
    write_tokenizer(folder, bos=False)
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=259,
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    place = tmp_path_factory.mktemp("hf")
    write_llama(place / "llama")
    write_gpt2(place / "gpt2")
    return {name: place / name for name in ("llama", "gpt2")}


def opened(folder: pathlib.Path, batch_size: int = 4) -> tuple[Any, HfModel]:
    found = HfFolder.open(str(folder))
    return found.vocabulary, load(found, batch_size)


def ours(folder: pathlib.Path) -> Generator:
    """Our model with the same weights: embeddings are scaled by sqrt(D) here."""
    judge = transformers.LlamaForCausalLM.from_pretrained(folder)
    theirs = {name: jnp.asarray(p.detach().numpy()) for name, p in judge.state_dict().items()}
    size = WIDTH // HEADS
    shapes = {
        "self_attn.q_proj": ("attention", "query", (WIDTH, HEADS, size)),
        "self_attn.k_proj": ("attention", "key", (WIDTH, KV, size)),
        "self_attn.v_proj": ("attention", "value", (WIDTH, KV, size)),
        "self_attn.o_proj": ("attention", "output", (HEADS, size, WIDTH)),
        "mlp.gate_proj": ("mlp", "gate", (WIDTH, FF)),
        "mlp.up_proj": ("mlp", "up", (WIDTH, FF)),
        "mlp.down_proj": ("mlp", "down", (FF, WIDTH)),
    }
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}

    def of_layers(name: str, shape: tuple[int, ...]) -> jax.Array:
        kept = [theirs[f"model.layers.{i}.{name}.weight"] for i in range(LAYERS)]
        return jnp.stack([w.T.reshape(shape) for w in kept])

    layer: dict[str, Any] = {"attention": {}, "mlp": {}}
    for name, (part, own, shape) in shapes.items():
        layer[part][own] = {"kernel": of_layers(name, shape)}
    for name, own in norms.items():
        layer[own] = {"scale": of_layers(name, (WIDTH,))}
    params = {
        "embed": {"embedding": theirs["model.embed_tokens.weight"] / WIDTH**0.5},
        "final_norm": {"scale": theirs["model.norm.weight"]},
        "output": {"kernel": theirs["lm_head.weight"].T},
        "segment_0": {"layers": {"layer": layer}},
    }
    model = small_model(
        f"{LAYERS}x1",
        vocab_size=259,
        max_length=LENGTH,
        d_model=WIDTH,
        num_heads=HEADS,
        num_kv_heads=KV,
        d_ff=FF,
        mlp="swiglu",
        norm="rmsnorm",
        tied_output=False,
    )
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, init(model))
    config = small_config(mesh__data=1)
    return Generator(model, params, make_mesh(config), config.mesh.rules, batch_size=4)


def test_their_tokenizer_is_asked_for_bos_and_text_stays_text(tmp_path: pathlib.Path) -> None:
    for bos, before in ((True, (1,)), (False, ())):
        folder = tmp_path / str(bos)
        write_llama(folder, bos)
        vocabulary = HfFolder.open(str(folder)).vocabulary
        assert vocabulary.before == before
        for text in TEXTS:
            ids = [int(i) for i in Bytes().encode(text)]
            assert vocabulary.encode(text) == ids
            assert prompt_ids(vocabulary, text) == ([*before, *ids] or [vocabulary.bos])
            assert vocabulary.decode(ids) == text
    with pytest.raises(UserError, match="not Unicode"):
        prompt_ids(vocabulary, "\ud800")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_batch_of_any_lengths_says_what_each_prompt_says_alone(
    name: str, folders: dict[str, pathlib.Path]
) -> None:
    vocabulary, model = opened(folders[name])
    prompts = [prompt_ids(vocabulary, text) for text in TEXTS[1:]]
    together = model.generate(prompts, 12)
    alone = [model.generate([prompt], 12)[0] for prompt in prompts]
    assert together == alone
    assert len({tuple(row.tokens) for row in together}) > 1
    # Greedy, without a cache or padding, and without penalties of the model's own.
    class_of = transformers.AutoModelForCausalLM
    judge = class_of.from_pretrained(folders[name]).eval()
    for prompt, row in zip(prompts, together, strict=True):
        tokens = list(prompt)
        while len(tokens) < len(prompt) + len(row.tokens):
            with torch.no_grad():
                tokens.append(int(judge(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert tokens[len(prompt) :] == row.tokens


def test_rows_end_at_eos_at_a_stop_and_where_the_model_is_full(
    folders: dict[str, pathlib.Path],
) -> None:
    _, model = opened(folders["gpt2"])
    free = model.generate([[70, 71], [72]], 12)
    assert not free[0].ended and len(free[0].tokens) == 12
    third = free[0].tokens[2]
    model._ends, kept = {third}, model._ends
    model._model.generation_config.eos_token_id = [third]
    (ended, other) = model.generate([[70, 71], [72]], 12)
    assert ended.ended and ended.tokens == free[0].tokens[: free[0].tokens.index(third)]
    assert other.tokens[:1] == free[1].tokens[:1]
    model._ends = kept
    model._model.generation_config.eos_token_id = sorted(kept)
    seen: list[list[int]] = []

    def stop(new: list[int]) -> bool:
        seen.append(new)
        return len(new) == 3

    (stopped,) = model.generate([[70, 71]], 12, stop=stop)
    assert stopped.ended and stopped.tokens == free[0].tokens[:3] == seen[-1]
    full, short = model.generate([[70] * LENGTH, [70]], 12)  # gpt2 has no place beyond.
    assert len(full.tokens) == 1 and not full.ended
    assert len(short.tokens) == 12
    for prompt in ([], [70] * (LENGTH + 1)):
        with pytest.raises(UserError, match=f"this model reads 1 to {LENGTH}"):
            model.generate([prompt], 4)
    with pytest.raises(UserError, match="greedily only"):
        model.generate([[70]], 4, sampling=Sampling(1.0))
    assert model.usage.cache_bytes > 0 and 0 < model.usage.padding < 1


def write_svamp(folder: pathlib.Path) -> None:
    folder.mkdir()
    records = [
        {"id": f"{s}{i}", "question": f"{i} " * i + "?", "answers": [str(i)], "split": s}
        for s in ("fewshot", "eval")
        for i in range(1, 12)
    ]
    (folder / "svamp.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_the_same_weights_give_the_same_predictions_as_our_own_model(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    write_svamp(tmp_path / "evals")
    settings = Settings(str(tmp_path / "evals"), shots=2)
    predictions = []
    vocabulary, model = opened(folders["llama"])
    for name, (own, generator) in {
        "theirs": (vocabulary, model),
        "ours": (Bytes(), ours(folders["llama"])),
    }.items():
        folder = epath.Path(tmp_path / name)
        summary = evaluate_tasks(
            *(("svamp",), settings, generator, own, folder), show_progress=False
        )
        assert summary["tasks"]["svamp"]["counts"]["prompts_with_fewer_exemplars"] > 0
        predictions.append((folder / "svamp.jsonl").read_text())
    assert predictions[0] == predictions[1]
    said = [json.loads(line)["prediction"] for line in predictions[0].splitlines()]
    assert len(set(said)) > 3
    texts = [complete(g, v, ["x"], 20) for v, g in ((vocabulary, model), (Bytes(), generator))]
    assert texts[0] == texts[1]


def test_the_command_evaluates_prints_prompts_and_goes_on(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path, run_module: Callable
) -> None:
    write_svamp(tmp_path / "evals")
    asked = (
        *(f"--hf={folders['llama']}", "--tasks=svamp", "--limit=6"),
        f"--config.eval.data_dir={tmp_path / 'evals'}",
    )
    before = sorted(path.name for path in folders["llama"].iterdir())
    for _ in range(2):
        done = run_module("looped_jax.evaluate", *asked, f"--out={tmp_path / 'out'}")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["hf"] == str(folders["llama"]) and "eval/svamp/accuracy" in found
    folder = tmp_path / "out" / "default_limit6"
    summary = json.loads((folder / "summary.json").read_text())
    model = summary["model"]
    assert model["class"] == "LlamaForCausalLM" and model["dtype"] == "float32"
    assert model["identity"] == HfFolder.open(str(folders["llama"])).identity
    assert summary["tasks"]["svamp"]["loops"] == {}  # The second time nothing was asked anew.
    assert sorted(path.name for path in folders["llama"].iterdir()) == before
    lines = [json.loads(line) for line in (folder / "svamp.jsonl").read_text().splitlines()]
    (tmp_path / "file").write_text("")
    done = run_module("looped_jax.evaluate", *asked, f"--out={tmp_path / 'file' / 'x'}")
    assert done.returncode == 2 and done.stderr.startswith("error: --out=")
    done = run_module("looped_jax.evaluate", *asked, "--prompts")
    assert done.returncode == 0, done.stderr
    prompts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [p["id"] for p in prompts] == [line["id"] for line in lines]
    assert all(p["stop"] == ["\n"] and p["prompt"].endswith("Answer:") for p in prompts)


def test_what_makes_other_answers_has_another_identity(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders["llama"], copy)
    known = HfFolder.open(str(folders["llama"])).identity
    (copy / "README.md").write_text("hello")
    assert HfFolder.open(str(copy)).identity == known
    assert HfFolder.open(str(copy), max_length=50).identity != known
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert HfFolder.open(str(copy)).identity != known


def test_what_is_no_whole_model_is_refused_in_a_line(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    def refused(folder: pathlib.Path, message: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message) as raised:
            load(HfFolder.open(str(folder), **options))
        assert "\n" not in str(raised.value)

    refused(tmp_path, "holds no model of transformers: there is no config.json")
    refused(folders["llama"], "reads 96 tokens at most", max_length=97)

    def copy(name: str) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(folders["llama"], tmp_path / name))

    bare = copy("bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    refused(bare, "cannot read its tokenizer")
    empty = copy("empty")
    (empty / "model.safetensors").unlink()
    refused(empty, "cannot read its weights")
    cut = copy("cut")
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused(cut, "cannot read its weights")
    config = json.loads((folders["llama"] / "config.json").read_text())

    def changed(name: str, **values: Any) -> pathlib.Path:
        folder = copy(name)
        (folder / "config.json").write_text(json.dumps({**config, **values}))
        return folder

    refused(changed("deep", num_hidden_layers=3), "weights of the model are not in its files")
    refused(changed("wide", intermediate_size=FF + 8), "cannot read its weights")
    refused(changed("odd", model_type="nothing", architectures=["No"]), "cannot read its config")
    remote = {"AutoConfig": "configuration_x.XConfig"}
    foreign = changed("foreign", model_type="x", auto_map=remote)
    refused(foreign, "it is code in the folder; --trust_remote_code runs it")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    refused(tmp_path / "broken", "cannot read its config")
    assert np.all([path.exists() for path in folders.values()])
