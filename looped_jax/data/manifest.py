"""The manifest of prepared data: what went in, how it was made, what came out.

`manifest.json` is written last, so a folder that has one is whole. `recipe` is all that determines
the rows. The fingerprint is a hash of the shards' own hashes; a checkpoint remembers it.
"""

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
from etils import epath

from looped_jax.data.files import sizes_in
from looped_jax.errors import UserError

FORMAT = 4
NAME = "manifest.json"
BYTES_OF_ID = "bytes_of_id.npy"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A prepared folder's manifest.

    recipe: format, length, seed, weights, block_bytes, vocabulary {name, size, sha256}, versions,
      and per split its sources (file, bytes, sha256) and number of shards.
    splits: per split rows, tokens (predicted ones), padding, shards (file, rows, bytes, sha256)
      and components: documents, text_bytes, text_tokens and decoded_bytes of the source, copies
      and tokens of what was written, which differs by the weights.
    """

    folder: epath.Path
    recipe: dict[str, Any]
    splits: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows in equal order."""
        shards = {
            split: [shard["sha256"] for shard in counts["shards"]]
            for split, counts in self.splits.items()
        }
        return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()

    @property
    def bytes_of_id(self) -> np.ndarray:
        """int32 [V], see Vocabulary."""
        with (self.folder / BYTES_OF_ID).open("rb") as file:
            return np.load(file)

    def shards(self, split: str) -> list[epath.Path]:
        """The files of a split; UserError if it has none, or names one that is missing or cut."""
        if split not in self.splits:
            there = ", ".join(self.splits)
            raise UserError(f"prepared data {self.folder} has no {split} split; it has {there}")
        paths, sizes = [], sizes_in(self.folder)
        for shard in self.splits[split]["shards"]:
            path = self.folder / shard["file"]
            if path.name not in sizes:
                raise UserError(f"shard {path} is missing; prepare the data again or copy it there")
            if (size := sizes[path.name]) != shard["bytes"]:
                raise UserError(
                    f"shard {path} has {size} bytes, its manifest says {shard['bytes']}: not whole"
                )
            paths.append(path)
        return paths

    def not_whole(self) -> list[str]:
        """The files of shards that are missing or of another size than they were made with."""
        sizes = sizes_in(self.folder)
        shards = [shard for of in self.splits.values() for shard in of["shards"]]
        return [each["file"] for each in shards if sizes.get(each["file"]) != each["bytes"]]

    def to_json(self) -> str:
        """The content of manifest.json."""
        content = {"fingerprint": self.fingerprint, "recipe": self.recipe, "splits": self.splits}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def is_prepared(folder: epath.Path) -> bool:
    """Whether looped_jax.prepare has finished there."""
    return (folder / NAME).exists()


def read_manifest(folder: epath.Path) -> Manifest:
    """The manifest of a prepared folder; UserError if it is damaged or of another format."""
    path = folder / NAME
    try:
        content = json.loads(path.read_text())
        manifest = Manifest(folder, content["recipe"], content["splits"])
        saved_format, fingerprint = manifest.recipe["format"], content["fingerprint"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); prepare the data again") from error
    if saved_format != FORMAT:
        raise UserError(f"{path} has format {saved_format}, this version reads {FORMAT}")
    if fingerprint != manifest.fingerprint:
        raise UserError(f"{path} was changed by hand: its fingerprint does not fit its shards")
    return manifest
