"""Preparing text: sources -> tokens -> packed rows -> shuffled ArrayRecord shards and a manifest.

Passes over independent pieces of work that are whole or absent, so that they can be done in any
number of processes on any number of machines, be killed at any moment, and be taken up again with
the same result:

1. *Pack* (data/packed_blocks.py). The sources are cut into blocks of lines, and each is tokenised
   and packed into rows.
2. *Shuffle* (data/sorted_runs.py). Every row draws a random key, and rows are sorted by it.
3. *Write* (data/shard_writer.py). The keys' range is divided evenly between the shards.

Keys follow from (seed, split, block number), blocks from the sources: nothing depends on timing.
What is done is kept by what it was made of, so that a mended source costs what changed of it.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from looped_jax.data.claim import BAD_LINES, PACKED, PARTIAL, WORK, abandon, claim, open_again, tidy
from looped_jax.data.cluster import Cluster, Setting
from looped_jax.data.documents import Shards, Source, check_apart
from looped_jax.data.files import sha256, write_whole
from looped_jax.data.manifest import BYTES_OF_ID, FORMAT, NAME, Manifest, is_prepared, read_manifest
from looped_jax.data.packed_blocks import (
    Bad,
    PackBlock,
    Packed,
    Packing,
    PackStripe,
    Place,
    block_name,
    read_packed,
    remove_packed,
)
from looped_jax.data.packing import component_id
from looped_jax.data.publication import made_at, publish
from looped_jax.data.records import PILE
from looped_jax.data.shard_writer import WriteShard
from looped_jax.data.sorted_runs import Column, PackedBlock, plan, run_of
from looped_jax.data.text import SPLITS, patterns, reading
from looped_jax.data.vocabulary import load_vocabulary
from looped_jax.data.workers import Job, Pool, Workers, progress
from looped_jax.errors import RunError, UserError, from_extra, nearest
from looped_jax.storage.buckets import in_bucket

# Bytes of source that a shard stands for when config.prepare.shards is 0.
_SOURCE_BYTES_PER_SHARD = 1 << 27
# What decides how text becomes bytes on disk.
_VERSIONED = ("array_record", "numpy", "zstandard")
_SHOWN = 20  # Bad lines on the screen.
# A cluster's jobs in pass 1, and those of one file: each reads it whole, in a hundredth of the time
# that tokenising it takes.
_JOBS_PER_WORKER = 2
_STRIPES = 32
_LISTED = 10_000  # Bad lines after which no more are looked for.


class _NothingToKeep(UserError):
    """What the user has to change is the recipe, so nothing that was done could be gone on with."""


def prepare(config: ConfigDict, output: epath.Path, scheduler: str = "") -> Manifest:
    """Prepares the splits of config.data in ``output``, or finishes what was begun there, in
    processes of this machine or on the workers of the Dask ``scheduler`` (its address).

    UserError for bad input (with all bad lines; what was done of the others is kept, and the same
    call goes on when they are mended), or if ``output`` holds anything else than this preparation;
    RunError if it cannot be written. An unfinished folder has no manifest.json. What goes to a
    bucket is made on this disk, and copied.
    """
    if in_bucket(output) and scheduler:
        raise UserError(
            f"--scheduler: its workers write in one folder, which {output} cannot be; give an "
            "--output on a file system that all of them see, and copy it to the bucket"
        )
    sources = _sources(config)
    recipe = _recipe(config, sources)
    fresh = claim(output, recipe)
    if is_prepared(output):
        manifest = read_manifest(output)
        if not (lost := manifest.not_whole()):
            tidy(output)  # It may have been killed as it did so itself.
            return manifest
        open_again(output, recipe, lost)
    if not in_bucket(output):
        return _make(config, recipe, sources, output, scheduler, fresh)
    here = made_at(output)
    if is_prepared(here) and read_manifest(here).recipe != recipe:
        shutil.rmtree(here)  # Finished, not copied, and of sources that have changed since.
    try:
        new_here = claim(here, recipe)
        if not is_prepared(here):
            _make(config, recipe, sources, here, scheduler, new_here)
    except _NothingToKeep:
        abandon(output)
        raise
    publish(read_manifest(here), output)
    (output / PARTIAL).unlink()
    shutil.rmtree(here)
    return read_manifest(output)


def _make(
    config: ConfigDict,
    recipe: dict[str, Any],
    sources: dict[str, Source],
    output: epath.Path,
    scheduler: str,
    fresh: bool,
) -> Manifest:
    """Prepares in a folder of a disk, which is claimed: ``fresh``, just now."""
    try:
        workers = _workers(config, recipe, sources, output, scheduler)
    except BaseException:
        if fresh:
            abandon(output)
        raise
    try:
        with workers:
            splits = _prepare(recipe, sources, output, workers)
        with (output / BYTES_OF_ID).open("wb") as file:
            np.save(file, load_vocabulary(recipe["vocabulary"]["name"]).bytes_of_id)
        manifest = Manifest(output, recipe, splits)
        write_whole(output / NAME, manifest.to_json())
        tidy(output)
    except _NothingToKeep:
        abandon(output)
        raise
    except OSError as error:
        raise RunError(
            f"cannot write in {error.filename or output}: {error.strerror or error}; what is "
            "finished is kept: make room and start the same command again"
        ) from error
    return manifest


def _workers(
    config: ConfigDict,
    recipe: dict[str, Any],
    sources: dict[str, Source],
    output: epath.Path,
    scheduler: str,
) -> Workers:
    if not scheduler:
        return Pool(config.prepare.workers)
    vocabulary = recipe["vocabulary"]
    shards = (source for source in sources.values() if isinstance(source, Shards))
    setting = Setting(
        claim=output / PARTIAL,
        claimed=sha256(output / PARTIAL),
        vocabulary=vocabulary["name"],
        fingerprint=vocabulary["sha256"],
        versions=tuple(recipe["versions"].items()),
        sources=tuple(source.paths[0] for source in shards),
    )
    return Cluster(scheduler, setting)


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
    if not config.data.length:
        raise UserError("config.data.length must be set: tokens of a row")
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


@dataclasses.dataclass(frozen=True)
class _Split:
    """What pass 1 made of a split: name and bytes of each block, and sums of what
    Packed counts."""

    blocks: dict[Place, tuple[str, int]] = dataclasses.field(default_factory=dict)
    components: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, packed: Packed) -> None:
        """Counts a block in."""
        self.blocks[packed.place] = (packed.name, packed.bytes)
        for name, counts in packed.components.items():
            self.components.setdefault(name, Counter()).update(counts)
        self.skipped.update(packed.skipped)

    def in_order(self) -> list[tuple[str, int]]:
        """Name and bytes of the blocks, as they stand in the source."""
        return [self.blocks[place] for place in sorted(self.blocks)]

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return {"blocks": self.in_order(), "components": self.components, "skipped": self.skipped}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "_Split":
        """Of what `to_json` gave."""
        return cls(
            {(0, at): (name, size) for at, (name, size) in enumerate(content["blocks"])},
            {name: Counter(counts) for name, counts in content["components"].items()},
            Counter(content["skipped"]),
        )


def _prepare(
    recipe: dict[str, Any], sources: dict[str, Source], output: epath.Path, workers: Workers
) -> dict[str, Any]:
    """All splits' parts of the manifest. Every source is read before the first shard is written:
    their bad lines are known together."""
    packed: dict[str, _Split] = {}
    bad: list[str] = []
    for split, source in sources.items():
        packed[split], messages = _pack(recipe, split, source, output, workers)
        bad += messages
    if bad:
        raise UserError(_said(bad, output))
    (output / BAD_LINES).unlink(missing_ok=True)
    for split in packed:
        _check_split(recipe, split, packed[split])
    return {split: _shuffle(recipe, split, packed[split], output, workers) for split in packed}


def _said(bad: list[str], output: epath.Path) -> str:
    """What is said of bad lines; all of them are written into a file."""
    write_whole(output / BAD_LINES, "".join(f"{line}\n" for line in bad))
    kept = (
        f"what is done of the rest is kept in {output}: mend this and start the same command again"
    )
    if len(bad) == 1:
        return f"{bad[0]}; {kept}"
    more = f"\n  and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    ended = "; no more were looked for" if len(bad) >= _LISTED else ""
    return (
        f"{len(bad):,} faults in the input, all of them in {output / BAD_LINES}{ended}:\n  "
        + "\n  ".join(bad[:_SHOWN])
        + f"{more}\n{kept}"
    )


def _pack(
    recipe: dict[str, Any], split: str, source: Source, output: epath.Path, workers: Workers
) -> tuple[_Split, list[str]]:
    """Pass 1 of a split: what came of it, and messages on what is bad, in the source's order."""
    work = output / WORK / split
    work.mkdir(parents=True, exist_ok=True)
    entries = recipe["splits"][split]["sources"]
    if (known := _known(work, entries)) is not None:
        return known, []
    packing = Packing(
        length=recipe["length"],
        vocabulary=recipe["vocabulary"]["name"],
        weights=recipe["weights"] if split == "train" else {},
        seed=recipe["seed"],
    )
    done = _Split()
    bad: set[tuple[Place, int, str]] = set()  # All stripes of a broken file say so.

    def take(result: Packed | Bad) -> None:
        if isinstance(result, Bad):
            bad.update((result.place, i, said) for i, said in enumerate(result.messages))
        else:
            done.add(result)

    def blocks() -> Iterator[tuple[Job | None, int]]:
        """One reads the source, and hands out what is to be done."""
        # What is broken in one file ends that one.
        parts = source.parts() if isinstance(source, Shards) else iter([source])
        for file, part in enumerate(parts):
            place, position = (file, 0), None
            trail = _Trail(work, file)
            for name, after in trail.known:
                packed = read_packed(work, place, name)
                if packed is None:
                    break
                take(packed)
                position, place = after, (file, place[1] + 1)
            trail.keep(place[1])
            if position is not None:
                yield None, position["read"]
            try:
                for block in part.blocks(recipe["block_bytes"], position):
                    name = block_name(block)
                    if block.position is not None:
                        trail.add(name, block.position)
                    packed = read_packed(work, place, name)
                    if packed is not None:
                        take(packed)
                    job = PackBlock(packing, block, place, name, work)
                    yield (job if packed is None else None), block.read
                    place = (file, place[1] + 1)
                    if len(bad) >= _LISTED:
                        return
            except UserError as error:  # The file itself is broken: go on with the next one.
                take(Bad(place, [str(error)]))

    def stripes() -> Iterator[tuple[Job | None, int]]:
        """Workers of other machines read the source themselves: one could not read for all."""
        assert isinstance(source, Shards)
        sizes = (entry["bytes"] for entry in entries)
        for file, part in enumerate(source.parts()):
            size = sum(itertools.islice(sizes, len(part.paths)))
            wanted = math.ceil(_JOBS_PER_WORKER * workers.capacity() / len(entries))
            number = max(1, min(wanted, size // recipe["block_bytes"], _STRIPES))
            for i in range(number):
                if len(bad) >= _LISTED:
                    return
                job = PackStripe(packing, part, file, i, number, recipe["block_bytes"], work)
                yield job, size // number

    with progress(f"{split}: tokenise and pack", sum(e["bytes"] for e in entries), "B") as bar:
        if isinstance(workers, Cluster) and isinstance(source, Shards):
            for results in workers.run(stripes(), bar):
                for result in results:
                    take(result)
        else:
            for result in workers.run(blocks(), bar):
                take(result)
    if not bad:
        write_whole(work / PACKED, json.dumps({"sources": entries, **done.to_json()}))
    return done, [message for *_, message in sorted(bad)][:_LISTED]


class _Trail:
    """Of a source that can go on from a position: the blocks that were read, in order, and where it
    goes on after each. So what was packed by an earlier command is not read, or fetched, again."""

    def __init__(self, work: epath.Path, file: int):
        self._path = work / f"read-{file}.jsonl"
        self.known: list[tuple[str, Any]] = []
        lines = self._path.read_text().split("\n")[:-1] if self._path.exists() else []
        with contextlib.suppress(ValueError):  # A line that was cut off ends it.
            self.known.extend((name, position) for name, position in map(json.loads, lines))

    def keep(self, count: int) -> None:
        """Forgets all but the first so many blocks."""
        if self.known:
            self.known = self.known[:count]
            write_whole(self._path, "".join(map(_line, self.known)))

    def add(self, name: str, position: Any) -> None:
        """Notes a block; those before it are there."""
        with self._path.open("a") as file:
            file.write(_line((name, position)))


def _line(noted: tuple[str, Any]) -> str:
    return json.dumps(noted) + "\n"


def _known(work: epath.Path, entries: list[dict[str, Any]]) -> _Split | None:
    """What an earlier command made of the same sources, where it got through them."""
    if not (work / PACKED).exists():
        return None
    content = json.loads((work / PACKED).read_text())
    return _Split.from_json(content) if content["sources"] == entries else None


def _shuffle(
    recipe: dict[str, Any], split: str, packed: _Split, output: epath.Path, workers: Workers
) -> dict[str, Any]:
    """Passes 2 and 3 of a split: its part of the manifest."""
    work = output / WORK / split
    shards = recipe["splits"][split]["shards"]
    columns = _sort(recipe, split, packed, work, workers)
    written: list[dict[str, Any]] = []

    def jobs() -> Iterator[tuple[Job | None, int]]:
        for shard in range(shards):
            runs = tuple(run_of(column, shard) for column in columns)
            job = WriteShard(split, shard, shards, runs, work, output)
            if (known := job.known()) is not None:
                written.append(known)
            yield (job if known is None else None), 1

    with progress(f"{split}: write", shards, "shard") as bar:
        for result in workers.run(jobs(), bar):
            written.append(result)
    return _summary(recipe, split, packed, written)


def _sort(
    recipe: dict[str, Any], split: str, packed: _Split, work: epath.Path, workers: Workers
) -> list[Column]:
    """The columns that the shards are read from; what they were made of is removed."""
    blocks = [
        PackedBlock(work, number, name, size)
        for number, (name, size) in enumerate(packed.in_order())
    ]
    seed = (recipe["seed"], SPLITS.index(split))
    levels = plan(blocks, seed, recipe["splits"][split]["shards"], work)
    first = next((i for i in range(len(levels), 0, -1) if levels[i - 1].is_whole()), 0)
    jobs = sum(len(level.jobs) for level in levels[first:])
    with progress(f"{split}: shuffle", jobs, "run") as bar:
        for number in range(first, len(levels)):
            todo = ((None if job.run.path.exists() else job, 1) for job in levels[number].jobs)
            list(workers.run(todo, bar))
            if number:
                for path in levels[number - 1].files():
                    path.unlink(missing_ok=True)
            else:
                for block in blocks:
                    remove_packed(work, block.name)
    return levels[-1].columns


def _check_split(recipe: dict[str, Any], split: str, packed: _Split) -> None:
    """UserError if it has no rows, or there is a weight of what it has not."""
    components = packed.components
    if not components:
        files = ", ".join(entry["file"] for entry in recipe["splits"][split]["sources"])
        raise UserError(f"{split}: there is no document in {files[:200]}")
    for name in recipe["weights"] if split == "train" else ():
        if name not in components:
            raise _NothingToKeep(
                f"config.prepare.weights: no document of train has component {name!r}"
                + (nearest(name, components) or f"; there are {', '.join(sorted(components))}")
            )
    if not any(counts["tokens"] for counts in components.values()):
        raise _NothingToKeep(f"{split}: no document is left; see config.prepare.weights")


def _summary(
    recipe: dict[str, Any], split: str, packed: _Split, shards: list[dict[str, Any]]
) -> dict[str, Any]:
    """A split's part of the manifest; RunError unless every token that went in came out."""
    components = packed.components
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
    return {
        "rows": rows,
        "tokens": tokens,
        "padding": rows * recipe["length"] - tokens,
        "components": {name: dict(components[name]) for name in sorted(components)},
        **({"skipped": dict(packed.skipped)} if packed.skipped else {}),
        "shards": sorted(shards, key=lambda shard: str(shard["file"])),
    }


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
        for what, number in counts.get("skipped", {}).items():
            lines.append(f"{split:10}  {number:,} {what.replace('_', ' ')} skipped")
    return "\n".join(lines)
