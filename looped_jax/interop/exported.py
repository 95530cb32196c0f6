"""Writes a checkpoint as a folder that programs of other projects open."""

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from looped_jax.data.files import sha256
from looped_jax.data.pieces import Bytes, Vocabulary
from looped_jax.errors import RunError, UserError, from_extra
from looped_jax.interop import shared
from looped_jax.interop.gguf_file import write_gguf
from looped_jax.interop.imported import imported, lost_bits
from looped_jax.interop.layouts import layout_of
from looped_jax.interop.model_card import model_card
from looped_jax.interop.source import CONFIG, WEIGHTS, in_memory
from looped_jax.interop.tokenizer_files import write_tokenizer
from looped_jax.interop.weights import Tensors
from looped_jax.models.config import ModelConfig
from looped_jax.training.run import OpenRun

# What looped_jax.retrofit reads of a folder written here: where it is from, and lost bits.
ORIGIN, LOST = "looped_jax.json", "looped_jax.npz"


def export(run: OpenRun, out: epath.Path, layout: str, loops: int | None = None) -> epath.Path:
    """Writes the checkpoint of a run, at its plan's loop count or at ``loops``; returns the folder.

    UserError for a model that the layout cannot express, and where ``out`` is in use; RunError if
    it cannot be written. It is there whole or not at all.
    """
    config = run.job.model.config
    config = dataclasses.replace(config, plan=config.plan.with_loops(loops))
    form = layout_of(layout, config)
    vocabulary = run.job.data.vocabulary
    if layout == "gguf":
        _check_gguf_tokenizer(vocabulary, run.job.config.data.task)
    with from_extra("hf", f"--layout={layout}"):
        import gguf  # noqa: F401
        import safetensors.numpy  # noqa: F401
    with whole_folder(out) as folder:
        params = jax.device_get(run.parameters())
        tensors = form.tensors(config, params)
        described = {**form.describe(config), **_common(config, tensors)}
        if layout == "gguf":
            with tempfile.TemporaryDirectory() as files:
                write_tokenizer(
                    vocabulary, described["vocab_size"], config.max_length, epath.Path(files)
                )
                write_gguf(folder / "model.gguf", described, tensors, epath.Path(files))
            weights = ""
        else:
            _write_folder(folder, config, layout, described, tensors, vocabulary)
            weights = sha256(folder / WEIGHTS)
            if form.own_layers is not None:
                chosen = [(number,) for number in form.own_layers]
                back = imported(in_memory(described, tensors), config, chosen)
                if lost := lost_bits(params, back):
                    known: dict[str, Any] = {"sha256": weights, **lost}
                    np.savez(folder / LOST, **known)
        origin = {
            "plan": str(config.plan),
            "layout": layout,
            "step": run.step,
            "weights": weights,
            "checkpoint": run.identity(loops),
            "code": run.meta["code"],
            "numerics_format": run.meta["format"],
            "config": json.loads(run.job.config.to_json_best_effort()),
        }
        (folder / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n")
        (folder / "README.md").write_text(model_card(run, config, layout, tensors, loops))
    return out


def _check_gguf_tokenizer(vocabulary: Any, task: str) -> None:
    """UserError for one that a GGUF file cannot have with the same ids: llama.cpp cuts words by
    rules of its own, known by name."""
    if not isinstance(vocabulary, Vocabulary):
        raise UserError(f"--layout=gguf has a tokenizer in it; the task {task} has none")
    if not isinstance(vocabulary, Bytes):
        raise UserError(
            "--layout=gguf has tokenizers of bytes only (config.data.vocabulary='bytes', here "
            f"{vocabulary.spec!r}); the folder that --layout=unrolled writes can be converted by "
            "llama.cpp's own script"
        )


def _common(config: ModelConfig, tensors: Tensors) -> dict[str, Any]:
    """Fields of config.json that all layouts have."""
    return {
        "vocab_size": config.ids_in_use or config.vocab_size,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "dtype": "float32",
        "torch_dtype": "float32",  # The same, for transformers 4.
        "use_cache": True,
    }


def _write_folder(
    folder: epath.Path,
    config: ModelConfig,
    layout: str,
    described: dict[str, Any],
    tensors: Tensors,
    vocabulary: Any,
) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if isinstance(vocabulary, Vocabulary):
        write_tokenizer(vocabulary, described["vocab_size"], config.max_length, folder)
        # What pads rows is not looked at, but fine-tuning may leave its embedding out.
        ids = {f"{of}_token_id": getattr(vocabulary, of) for of in ("bos", "eos", "pad")}
        described |= ids
        _json(folder / "generation_config.json", {**ids, "do_sample": False})
    _json(folder / CONFIG, described)
    if layout == "shared":
        shutil.copy(shared.CODE, folder / shared.CODE.name)
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # A full disk, for one.
        raise OSError(str(error)) from error
    # That package lets none but the owner read it; who serves a model may be another.
    os.chmod(folder / WEIGHTS, os.stat(folder / CONFIG).st_mode)


def _json(path: epath.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def whole_folder(out: epath.Path) -> Iterator[epath.Path]:
    """A folder to write in, which becomes ``out`` when all is written; nothing is left of it
    otherwise. UserError if ``out`` holds something; RunError if it cannot be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is there already; choose another, or remove it")
    # A name that nobody has: what lies beside it is somebody's.
    partial = out.with_name(f"{out.name}.partial-{secrets.token_hex(8)}")
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise RunError(f"cannot write --out={out}: {error.strerror or error}") from error
    finally:
        if partial.exists():
            partial.rmtree()
