"""A model of another project on disk: its description and its tensors, one at a time."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from looped_jax.data.files import identity
from looped_jax.errors import UserError, from_extra

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """description: what its config.json says. files: those that its tensors are in."""

    path: epath.Path
    description: Mapping[str, Any]
    names: frozenset[str]
    read: Callable[[str], np.ndarray]
    files: tuple[epath.Path, ...] = ()

    def tensor(self, name: str, *shape: int) -> np.ndarray:
        """A tensor, float32; UserError, which names it, if it is missing or of another shape."""
        if name not in self.names:
            raise UserError(f"{self.path} has no tensor {name}")
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
