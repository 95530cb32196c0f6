"""A model of another project on disk: its description and its tensors, one at a time."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from looped_jax.data.files import identity
from looped_jax.errors import UserError, from_extra

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # What safetensors calls the kinds of numbers that are read.
# Frequencies of RoPE, which old files store, follow from its base; config.json says where they are
# scaled.
DERIVED = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Source:
    """description: what its config.json says. names: of all its tensors, also of those that
    nothing here reads. files: those that its tensors are in. taken: names of those that were asked
    for."""

    path: epath.Path
    description: Mapping[str, Any]
    names: frozenset[str]
    read: Callable[[str], np.ndarray]
    files: tuple[epath.Path, ...] = ()
    taken: set[str] = dataclasses.field(default_factory=set, compare=False)

    def tensor(self, name: str, *shape: int) -> np.ndarray:
        """A tensor, float32; UserError, which names it, if it is missing or of another shape."""
        if name not in self.names:
            raise UserError(f"{self.path} has no tensor {name}")
        self.taken.add(name)
        found = self.read(name)
        if found.shape != shape:
            raise UserError(
                f"{self.path}: tensor {name} is {list(found.shape)}, where its config.json asks "
                f"for {list(shape)}"
            )
        return np.asarray(found, np.float32)

    def said(self, key: str) -> Any:
        """What its description says of a key that it must have; UserError if it does not."""
        if key not in self.description:
            raise UserError(f"{self.path}: its {CONFIG} does not say {key}")
        return self.description[key]

    def refuse_unread(self) -> None:
        """UserError, which names one, if there are tensors that nobody asked for: a model without
        them is another one. Harmless are those of layers that a plan does not choose, where the
        same tensor of another layer was asked for; `DERIVED` ones; a `lm_head.weight` although the
        output is tied; and biases of 0."""
        kinds = {_LAYER.sub("", name) for name in self.taken if _LAYER.match(name)}
        left = [name for name in sorted(self.names - self.taken) if not self._harmless(name, kinds)]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise UserError(
                f"{self.path} has the tensor {left[0]}{more}, for which config.model has nothing, "
                "nor have --plan and config.loop: without it the run would be another model; "
                "leave these as the source has them, or take another source"
            )

    def _harmless(self, name: str, kinds: set[str]) -> bool:
        layer = _LAYER.match(name)
        if (
            layer
            and int(layer[1]) < self.said("num_hidden_layers")
            and name[layer.end() :] in kinds
        ):
            return True
        if name == "lm_head.weight" and self.description.get("tie_word_embeddings"):
            return True
        return bool(DERIVED.fullmatch(name)) or (
            name.endswith(".bias") and not self.read(name).any()
        )

    @property
    def identity(self) -> list[dict[str, Any]]:
        """Name, size and SHA-256 of its files."""
        return [identity(file) for file in self.files]


def in_memory(description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Source:
    """A source that is not on disk."""
    return Source(epath.Path("memory"), description, frozenset(tensors), tensors.__getitem__)


@contextlib.contextmanager
def open_folder(folder: epath.Path) -> Iterator[Source]:
    """A folder with config.json and safetensors, in one file or several with their index; needs
    the extra `hf`. UserError if it is none, or a file of it is damaged."""
    with from_extra("hf", f"reading {folder}"):
        from safetensors import SafetensorError, safe_open
    if not folder.is_dir() or not (folder / CONFIG).exists():
        raise UserError(
            f"{folder} is no model: a folder with {CONFIG} and {WEIGHTS}, or a .gguf file, is one"
        )
    description = _json(folder / CONFIG)
    if (folder / INDEX).exists():
        file_of = dict(_json(folder / INDEX).get("weight_map", {}))
    elif (folder / WEIGHTS).exists():
        file_of = {}
    else:
        raise UserError(f"{folder} has no {WEIGHTS} (weights in other formats are not read)")
    names = sorted(set(file_of.values())) or [WEIGHTS]
    with contextlib.ExitStack() as opened:
        try:
            files = {n: opened.enter_context(safe_open(folder / n, "numpy")) for n in names}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder}: its weights cannot be read ({error})") from error
        place = {name: file for file in files.values() for name in file.keys()}  # noqa: SIM118
        if missing := sorted(set(file_of) - set(place)):
            raise UserError(f"{folder} has no tensor {missing[0]}, which {INDEX} names")

        def read(name: str) -> np.ndarray:
            kind = place[name].get_slice(name).get_dtype()
            if kind not in FLOATS:  # Of 8 bits or fewer, numbers mean something by their scales.
                raise UserError(
                    f"{folder}: tensor {name} is of the kind {kind}; weights are read that are one "
                    f"of {', '.join(FLOATS)}: take the model that is not quantised"
                )
            tensor: np.ndarray = place[name].get_tensor(name)
            return tensor

        where = tuple(folder / name for name in names)
        yield Source(folder, description, frozenset(place), read, where)


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON file ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} has no JSON object")
    return found
