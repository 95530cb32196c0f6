"""Preparing text: sources -> tokens -> packed rows -> shuffled ArrayRecord shards and a manifest.

Two passes, each over independent pieces of work that are whole or absent, so that they can be done
in any number of processes, be killed at any moment, and be taken up again with the same result:

1. *Pack.* The sources are cut into blocks of lines. Each block is tokenised and packed; every row
   draws a random 64-bit key, and the block's rows are written sorted by key.
2. *Shuffle.* The keys' range is divided evenly between the shards. A shard collects its range from
   every block, sorts it, and is written. Sorting all rows by independent random keys is a uniform
   shuffle, and needs no more memory than one shard per process.

Keys follow from (seed, split, block number), blocks from the sources: nothing depends on timing.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from looped_jax.data.documents import Block, Document, Shards, Source, check_apart, parse
from looped_jax.data.files import sha256, write_whole
from looped_jax.data.manifest import BYTES_OF_ID, FORMAT, NAME, Manifest, is_prepared, read_manifest
from looped_jax.data.packing import Encoded, component_id, pack, segments_of, token_dtype
from looped_jax.data.records import PILE
from looped_jax.data.text import SPLITS, encode, patterns, reading
from looped_jax.data.vocabulary import load_vocabulary
from looped_jax.data.workers import Pool, progress
from looped_jax.errors import RunError, UserError, from_extra, nearest

PARTIAL = "manifest.partial.json"
WORK = "work"
# Bytes of source that a shard stands for when config.prepare.shards is 0.
_SOURCE_BYTES_PER_SHARD = 1 << 27
_KEY = struct.Struct("<QI")  # Key and length of a row in a block's file.
_WRITER_OPTIONS = "group_size:1"  # Rows are read one by one, at random.
# What decides how text becomes bytes on disk.
_VERSIONED = ("array_record", "numpy", "zstandard")


def prepare(config: ConfigDict, output: epath.Path) -> Manifest:
    """Prepares the splits of config.data in ``output``, or finishes what was begun there.

    UserError for bad input (with file and line; ``output`` is then as it was before), or if
    ``output`` holds anything else than this preparation; RunError if it cannot be written. An
    unfinished folder has no manifest.json.
    """
    sources = _sources(config)
    recipe = _recipe(config, sources)
    _claim(output, recipe)
    if is_prepared(output):
        return read_manifest(output)
    try:
        with Pool(config.prepare.workers) as pool:
            splits = {
                split: _prepare_split(recipe, split, source, output, pool)
                for split, source in sources.items()
            }
        with (output / BYTES_OF_ID).open("wb") as file:
            np.save(file, load_vocabulary(recipe["vocabulary"]["name"]).bytes_of_id)
        manifest = Manifest(output, recipe, splits)
        write_whole(output / NAME, manifest.to_json())
        (output / PARTIAL).unlink()
        shutil.rmtree(output / WORK)
    except UserError:
        # The input has to change, and with it the recipe: nothing here could be gone on with.
        _abandon(output)
        raise
    except OSError as error:
        raise RunError(
            f"cannot write in {error.filename or output}: {error.strerror or error}; what is "
            "finished is kept: make room and start the same command again"
        ) from error
    return manifest


def _sources(config: ConfigDict) -> dict[str, Source]:
    if config.data.path.startswith("seqio:"):
        with from_extra("data", f"config.data.path={config.data.path}"):
            from looped_jax.data.seqio_text import seqio_sources  # TensorFlow, only here.

        return seqio_sources(config.data.path.removeprefix("seqio:"), config.prepare.seqio_module)
    if not patterns(config):
        raise UserError("config.data.train_files, validation_files and test_files are all empty")
    if config.data.path.startswith("hf:"):
        with from_extra("datasets", f"config.data.path={config.data.path}"):
            from looped_jax.data.hub_text import hub_sources

        name = config.data.path.removeprefix("hf:")
        return hub_sources(name, patterns(config), reading(config))
    return {
        split: Shards.find(config.data.path, pattern, reading(config))
        for split, pattern in patterns(config).items()
    }


def _recipe(config: ConfigDict, sources: dict[str, Source]) -> dict[str, Any]:
    vocabulary = load_vocabulary(config.data.vocabulary)
    splits: dict[str, dict[str, Any]] = {}
    for split in tqdm(sources, desc="hashing sources", unit="split", leave=False):
        identity = sources[split].identity()
        size = sum(entry["bytes"] for entry in identity)
        shards = config.prepare.shards if split == "train" else 1
        splits[split] = {
            "sources": identity,
            "shards": shards or math.ceil(size / _SOURCE_BYTES_PER_SHARD),
        }
    check_apart({split: of["sources"] for split, of in splits.items()})
    return {
        "format": FORMAT,
        "length": config.data.length,
        "seed": config.prepare.seed,
        "weights": dict(config.prepare.weights),
        "block_bytes": config.prepare.block_kb << 10,
        "vocabulary": {
            "name": vocabulary.spec,
            "size": vocabulary.size,
            "sha256": vocabulary.fingerprint,
        },
        "splits": splits,
        # Where it is not as ever, so that what is prepared already stays the same preparation.
        **({} if (how := reading(config)) == PILE else {"reading": dataclasses.asdict(how)}),
        "versions": {
            package: importlib.metadata.version(package)
            for package in (*_VERSIONED, *vocabulary.packages)
        },
    }


def _claim(output: epath.Path, recipe: dict[str, Any]) -> None:
    """Makes ``output`` this preparation's; UserError if it is something else already."""
    finished = is_prepared(output)
    partial = output / PARTIAL
    if finished or partial.exists():
        there = read_manifest(output).recipe if finished else json.loads(partial.read_text())
        if there != recipe:
            raise UserError(
                f"{output} holds another preparation ({_difference(recipe, there)}); "
                "choose another --output, or remove that folder"
            )
        return
    begun = {f"{PARTIAL}.tmp"}  # All that a kill before this line can leave.
    if output.exists() and not (output.is_dir() and {p.name for p in output.iterdir()} <= begun):
        raise UserError(f"{output} exists and is not prepared data; choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(partial, json.dumps(recipe))
    except OSError as error:
        raise UserError(f"cannot write in {output}: {error.strerror}") from error


def _abandon(output: epath.Path) -> None:
    """Removes what an unfinished preparation has written."""
    shutil.rmtree(output / WORK, ignore_errors=True)
    for shard in output.glob("*.array_record*"):
        shard.unlink()
    (output / PARTIAL).unlink()
    if not any(output.iterdir()):
        output.rmdir()


def _difference(here: Any, there: Any, at: str = "") -> str:
    """The first difference between two recipes, in words."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in {**here, **there}:
            if here.get(key) != there.get(key):
                return _difference(here.get(key), there.get(key), f"{at}.{key}" if at else key)
    if isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for ours, theirs in zip(here, there, strict=True):
            if ours != theirs:
                return _difference(ours, theirs, f"{at} {ours.get('file', '')}".strip())
    shown = [s if len(s := repr(x)) < 80 else f"{s[:80]}…" for x in (here, there)]
    return f"{at}: {shown[0]} now, {shown[1]} there"


def _prepare_split(
    recipe: dict[str, Any], split: str, source: Source, output: epath.Path, pool: "Pool"
) -> dict[str, Any]:
    work = output / WORK / split
    work.mkdir(parents=True, exist_ok=True)
    total = sum(entry["bytes"] for entry in recipe["splits"][split]["sources"])
    count, position = _go_on_from(work)
    with progress(f"{split}: tokenise and pack", total, "B") as bar:

        def packing() -> Iterator[tuple[Callable[[], Any] | None, int]]:
            nonlocal count
            if position:
                yield None, position["read"]
            blocks = source.blocks(recipe["block_bytes"], position)
            for number, block in enumerate(blocks, start=count):
                count = number + 1
                done = _block_file(work, number, "json").exists()
                job = None if done else _PackBlock(recipe, split, block, number, work)
                yield job, block.read

        pool.run(packing(), bar)
    components = _components(work, count)
    if split == "train":
        _check_weights(recipe["weights"], set(components))
    shards = recipe["splits"][split]["shards"]
    jobs = [_WriteShard(split, shard, shards, count, work, output) for shard in range(shards)]
    with progress(f"{split}: shuffle and write", shards, "shard") as bar:
        written = pool.run(((job, 1) for job in jobs), bar)
    return _summary(recipe, split, components, written)


def _go_on_from(work: epath.Path) -> tuple[int, Any]:
    """How many of the first blocks need not be read again, and the position behind them."""
    packed = 0
    while _block_file(work, packed, "json").exists():
        packed += 1
    position = packed and _read_json(_block_file(work, packed - 1, "json")).get("position")
    return (packed, position) if position else (0, None)


def _components(work: epath.Path, blocks: int) -> dict[str, Counter[str]]:
    """Component -> what was packed of it, over all blocks."""
    components: dict[str, Counter[str]] = {}
    for number in range(blocks):
        for name, counts in _read_json(_block_file(work, number, "json"))["components"].items():
            components.setdefault(name, Counter()).update(counts)
    return components


def _check_weights(weights: dict[str, float], components: set[str]) -> None:
    for name in weights:
        if name not in components:
            raise UserError(
                f"config.prepare.weights: no document of train has component {name!r}"
                + (nearest(name, components) or f"; there are {', '.join(sorted(components))}")
            )


def _summary(
    recipe: dict[str, Any],
    split: str,
    components: dict[str, Counter[str]],
    shards: list[dict[str, Any]],
) -> dict[str, Any]:
    """A split's part of the manifest; RunError unless every token that went in came out."""
    by_id = {component_id(name): name for name in components}
    if len(by_id) != len(components):
        raise RunError(f"two of the components {', '.join(components)} have the same hash")
    tokens_out: Counter[str] = Counter()
    for shard in shards:
        for identifier, tokens in shard.pop("tokens").items():
            tokens_out[by_id[int(identifier)]] += tokens
    for name, counts in components.items():
        if counts["tokens"] != tokens_out[name]:
            raise RunError(
                f"{split}: {counts['tokens']} tokens of {name} went in, {tokens_out[name]} came out"
            )
    rows, tokens = sum(shard["rows"] for shard in shards), sum(tokens_out.values())
    if not rows:
        raise UserError(f"{split}: no document is left; see config.prepare.weights")
    return {
        "rows": rows,
        "tokens": tokens,
        "padding": rows * recipe["length"] - tokens,
        "components": {name: dict(components[name]) for name in sorted(components)},
        "shards": sorted(shards, key=lambda shard: str(shard["file"])),
    }


@dataclasses.dataclass(frozen=True)
class _PackBlock:
    """Pass 1 for one block: writes NUMBER.rows, then NUMBER.json, which says that it is whole."""

    recipe: dict[str, Any]
    split: str
    block: Block
    number: int
    work: epath.Path

    def __call__(self) -> None:
        recipe = self.recipe
        vocabulary = load_vocabulary(recipe["vocabulary"]["name"])
        components: dict[str, Counter[str]] = {}

        def encoded() -> Iterator[Encoded]:
            for number, document in enumerate(parse(self.block)):
                copies = _copies(document, recipe) if self.split == "train" else 1
                ids, trained = encode(document, vocabulary)
                counts = components.setdefault(document.component, Counter(copies=0, tokens=0))
                counts["documents"] += 1
                counts["text_bytes"] += len(document.text.encode())
                counts["decoded_bytes"] += int(vocabulary.bytes_of_id[ids].sum())
                counts["text_tokens"] += len(ids)
                for _ in range(copies):
                    counts["copies"] += 1
                    counts["tokens"] += len(ids) + 1  # Its EOS is predicted too.
                    component = component_id(document.component)
                    yield Encoded(ids, trained, component, (self.number, number))

        dtype, around = token_dtype(vocabulary.size), (vocabulary.bos, vocabulary.eos)
        rows = list(pack(encoded(), recipe["length"], dtype, around))
        if vocabulary.lossless:
            for name, counts in components.items():
                if counts["text_bytes"] != counts["decoded_bytes"]:
                    raise RunError(
                        f"{self.block.where}, from line {self.block.first_line}: "
                        f"{counts['text_bytes']} bytes of {name} became tokens of "
                        f"{counts['decoded_bytes']} bytes"
                    )
        seed = [recipe["seed"], SPLITS.index(self.split), self.number]
        keys = np.random.default_rng(seed).integers(0, 1 << 64, len(rows), np.uint64)
        order = np.argsort(keys, kind="stable")
        parts = [_KEY.pack(int(keys[i]), len(rows[i])) + rows[i] for i in order]
        ends = np.cumsum([0] + [len(part) for part in parts])
        starts = np.searchsorted(
            _shard_of(keys[order], recipe["splits"][self.split]["shards"]),
            np.arange(recipe["splits"][self.split]["shards"] + 1),
        )
        write_whole(_block_file(self.work, self.number, "rows"), b"".join(parts))
        summary = {
            "offsets": ends[starts].tolist(),
            "components": components,
            "position": self.block.position,
        }
        write_whole(_block_file(self.work, self.number, "json"), json.dumps(summary))


def _shard_of(keys: np.ndarray, shards: int) -> np.ndarray:
    return ((keys >> np.uint64(32)) * np.uint64(shards)) >> np.uint64(32)


def _copies(document: Document, recipe: dict[str, Any]) -> int:
    """How often a document is written.

    In a component of weight w: floor(w) times, and once more for a share w - floor(w) of its
    documents, chosen by a hash of seed and text.
    """
    weight = recipe["weights"].get(document.component, 1.0)
    whole = math.floor(weight)
    drawn = component_id(f"{recipe['seed']} {document.text}") / (1 << 32)
    return whole + (drawn < weight - whole)


@dataclasses.dataclass(frozen=True)
class _WriteShard:
    """Pass 2 for one shard: collects its rows from all blocks, sorts and writes them."""

    split: str
    shard: int
    shards: int
    blocks: int
    work: epath.Path
    output: epath.Path

    def __call__(self) -> dict[str, Any]:
        path = self.output / f"{self.split}-{self.shard:05}-of-{self.shards:05}.array_record"
        marker = self.work / f"{path.name}.json"
        if not (marker.exists() and path.exists()):
            description = self._write(path)
            write_whole(marker, json.dumps(description))
        return _read_json(marker)

    def _write(self, path: epath.Path) -> dict[str, Any]:
        from array_record.python import array_record_module

        rows: list[tuple[int, bytes]] = []
        for number in range(self.blocks):
            offsets = _read_json(_block_file(self.work, number, "json"))["offsets"]
            start, end = offsets[self.shard], offsets[self.shard + 1]
            with _block_file(self.work, number, "rows").open("rb") as file:
                file.seek(start)
                content = file.read(end - start)
            at = 0
            while at < len(content):
                key, size = _KEY.unpack_from(content, at)
                at += _KEY.size
                rows.append((key, content[at : at + size]))
                at += size
        rows.sort(key=lambda row: row[0])  # Stable: equal keys stay in the order of blocks.
        temporary = path.with_name(f"{path.name}.tmp")
        tokens: Counter[int] = Counter()
        try:
            writer = array_record_module.ArrayRecordWriter(os.fspath(temporary), _WRITER_OPTIONS)
            for _, record in rows:
                writer.write(record)
                for segment in segments_of(record):
                    tokens[segment.component] += sum(segment.runs)
            writer.close()
            reader = array_record_module.ArrayRecordReader(os.fspath(temporary))
            whole = reader.num_records() == len(rows)
            reader.close()
        except Exception as error:  # The library raises RuntimeError, or ValueError on reading.
            raise _not_written(temporary, str(error)) from error
        if not whole:
            raise _not_written(temporary, "it has not all of its rows")
        temporary.replace(path)
        return {
            "file": path.name,
            "rows": len(rows),
            "bytes": path.stat().length,
            "sha256": sha256(path),
            "tokens": tokens,
        }


def _not_written(path: epath.Path, reason: str) -> OSError:
    return OSError(0, " ".join(reason.split())[:200], os.fspath(path))


def _block_file(work: epath.Path, number: int, kind: str) -> epath.Path:
    return work / f"{number:06}.{kind}"


def _read_json(path: epath.Path) -> Any:
    return json.loads(path.read_text())


def describe(manifest: Manifest) -> str:
    """A table for the terminal: per split and component what went in, and bytes per token."""
    lines = [f"{'split':10}  {'component':20}  documents        bytes       tokens  bytes/token"]
    for split, counts in manifest.splits.items():
        for name, of in counts["components"].items():
            per_token = of["text_bytes"] / max(1, of["text_tokens"])
            lines.append(
                f"{split:10}  {name:20}  {of['documents']:9,}  {of['text_bytes']:11,}  "
                f"{of['tokens']:11,}  {per_token:11.3f}"
            )
        lines.append(
            f"{split:10}  {counts['rows']:,} rows of {manifest.recipe['length']}, "
            f"{counts['padding']:,} places of padding, {len(counts['shards'])} shards"
        )
    return "\n".join(lines)
