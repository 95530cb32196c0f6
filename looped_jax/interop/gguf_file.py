"""GGUF, the files of llama.cpp, by the package `gguf` (extra `hf`): models of the architecture
`llama`, out and in. Its names of tensors and keys are that package's; its rotation turns pairs of
neighbours, so rows of query and key matrices are in another order than where halves are turned."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from looped_jax.data.own_ids import FILE
from looped_jax.data.rows import BOS, EOS, PAD
from looped_jax.errors import UserError, from_extra
from looped_jax.interop import llama
from looped_jax.interop.source import Source
from looped_jax.interop.weights import refuse_all_but
from looped_jax.models.config import ModelConfig

ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

# Keys of a Llama that are not read, and what they say where they change nothing; None: never do.
PLAIN: dict[str, Any] = {
    "llama.vocab_size": None,  # The table says it.
    "llama.attention.value_length": None,  # Shapes of tensors say it.
    "llama.tensor_data_layout": None,  # Where rows of tensors were before they were converted.
    "llama.rope.scaling.original_context_length": None,
    "llama.rope.scaling.finetuned": None,
    "llama.rope.scaling.type": "none",
    "llama.rope.scaling.factor": 1.0,
    "llama.rope.scaling.attn_factor": 1.0,
    "llama.rope.scale_linear": 1.0,
    "llama.attention.causal": True,
    "llama.expert_count": 0,
    "llama.expert_used_count": 0,
}


def check(config: ModelConfig) -> None:
    """UserError for what llama.cpp's Llama does not have."""
    llama.check(config, "gguf")
    wanted = {"mlp": ("swiglu",), "qk_norm": (False,)}
    refuse_all_but("gguf", config, wanted, {"per_loop": ("lora",)})


def gguf_name(name: str) -> str:
    """What Llama's tensor of this name is called there."""
    if name in ENDS:
        return ENDS[name]
    _, _, number, rest = name.split(".", 3)
    module, _, leaf = rest.rpartition(".")
    return f"blk.{number}.{LAYER[module]}.{leaf}"


def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads K, …] of a query or key matrix, halves of a head -> pairs of neighbours."""
    pairs = rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows.shape))


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of ``neighbours``."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows.shape))


def _heads(name: str, described: Mapping[str, Any]) -> int:
    """Of a tensor whose rows are in another order; 0 for others."""
    query, key = ".q_proj." in name, ".k_proj." in name
    field = "num_attention_heads" if query else "num_key_value_heads" if key else ""
    return int(described[field]) if field else 0


def write_gguf(
    path: epath.Path, described: Mapping[str, Any], tensors: Mapping[str, np.ndarray], folder: Any
) -> None:
    """Writes a Llama that `check` lets through, described as in its config.json, with the tokenizer
    whose tokenizer.json is in ``folder``. UserError for a tokenizer that is not one of bytes;
    OSError where it cannot be written."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(described["max_position_embeddings"])
    writer.add_embedding_length(described["hidden_size"])
    writer.add_block_count(described["num_hidden_layers"])
    writer.add_feed_forward_length(described["intermediate_size"])
    writer.add_head_count(described["num_attention_heads"])
    writer.add_head_count_kv(described["num_key_value_heads"])
    writer.add_key_length(described["head_dim"])
    writer.add_value_length(described["head_dim"])
    writer.add_rope_dimension_count(described["head_dim"])
    writer.add_rope_freq_base(described["rope_theta"])
    writer.add_layer_norm_rms_eps(described["rms_norm_eps"])
    writer.add_vocab_size(described["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _write_tokenizer(writer, json.loads((folder / FILE).read_text()))
    for name, tensor in tensors.items():
        heads = _heads(name, described)
        writer.add_tensor(gguf_name(name), neighbours(tensor, heads) if heads else tensor)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:  # numpy counts what it could not write, and does not say why.
        raise OSError(error.errno, error.strerror or f"is the disk full? ({error})") from error


def _write_tokenizer(writer: Any, tokenizer: Mapping[str, Any]) -> None:
    """That of the vocabulary `bytes`."""
    import gguf

    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    tokens = [token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    special = {token["id"] for token in tokenizer.get("added_tokens", ())}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [kinds.CONTROL if i in special else kinds.NORMAL for i in range(len(tokens))]
    )
    merges = tokenizer["model"]["merges"]
    # Readers want one; what this one would make is no token, so it is never made.
    writer.add_token_merges([" ".join(pair) for pair in merges] or ["\u0100 \u0101"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(True)


@contextlib.contextmanager
def open_gguf(path: epath.Path) -> Iterator[tuple[Source, Any]]:
    """A file of the architecture `llama`, of any quantisation, as a Source with the names of
    transformers' Llama, and the package's reader of it. UserError if it is none."""
    with from_extra("hf", f"reading {path}"):
        import gguf
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise UserError(f"{path} is no GGUF file ({error})") from error

    asked: set[str] = set()

    def said(key: str, default: Any = None) -> Any:
        asked.add(key)
        field = reader.get_field(key)
        return default if field is None else field.contents()

    kind = said("general.architecture")
    if kind != "llama":
        raise UserError(f"{path} is of the architecture {kind!r}; of GGUF files `llama` is read")
    there = {tensor.name: tensor for tensor in reader.tensors}
    count, width = said("llama.block_count"), said("llama.embedding_length")
    heads = said("llama.attention.head_count")
    head_dim = said("llama.attention.key_length", width // heads)
    rotated = said("llama.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise UserError(
            f"{path}: llama.rope.dimension_count={rotated} where heads are {head_dim} wide; "
            "config.model has nothing for RoPE of a part of them"
        )
    described = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": said("llama.feed_forward_length"),
        "num_hidden_layers": count,
        "num_attention_heads": heads,
        "num_key_value_heads": said("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": round(said("llama.attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": said("llama.rope.freq_base", 10000.0),
        "max_position_embeddings": said("llama.context_length"),
        "vocab_size": int(there["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in there,
    }
    for key in sorted(key for key in set(reader.fields) - asked if key.startswith("llama.")):
        value = said(key)
        if key not in PLAIN or PLAIN[key] not in (None, value):
            raise UserError(
                f"{path} says {key}={value!r}, for which config.model has nothing: without it the "
                "run would be another model; take another source"
            )
    modules = [
        f"model.layers.{i}.{m}.{leaf}"
        for i in range(count)
        for m in LAYER
        for leaf in ("weight", "bias")
    ]
    place = {n: gguf_name(n) for n in [*ENDS, *modules] if gguf_name(n) in there}
    # What a Llama has no name for keeps its own: nobody will ask for it, which is to be seen.
    place |= {name: name for name in set(there) - set(place.values())}

    def read(name: str) -> np.ndarray:
        tensor = there[place[name]]
        try:
            found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"{path}: tensor {tensor.name} is of the kind {tensor.tensor_type.name}, which the "
                "package gguf does not make floats of; take a file of another quantisation"
            ) from error
        own_heads = _heads(name, described)
        return halves(found, own_heads) if own_heads else found

    yield Source(path, described, frozenset(place), read, (path,)), reader
