"""Text data: how fast it is prepared and read, and what reading costs a training step.

Prepare: MB of text per second and core by `looped_jax.prepare`, with one worker, against tokenising
alone (the limit: nothing but `encode`) and against Hugging Face `tokenizers` with a byte-level
BPE of the same size, trained on the same text; interleaved. Read: tokens per second of one host
process from ArrayRecord at random, 64 rows of 1280 at a time. Step: seconds of a training step of
`pile_mini` with data from disk against the same batch over and over, interleaved.

    python -m benchmarks.text_data --pile=$PILE_DIR
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import jax
import tokenizers
from etils import epath

from benchmarks.common import interleaved, machine, save
from looped_jax.config import ConfigDict, load_experiment
from looped_jax.data import preparation
from looped_jax.data.documents import Shards, parse
from looped_jax.data.pipeline import train_batches
from looped_jax.data.run_data import resolve
from looped_jax.data.vocabulary import load_vocabulary
from looped_jax.parallel.mesh import put_batch
from looped_jax.training.job import make_job
from looped_jax.training.state import init_state
from looped_jax.training.train_step import make_train_step

VOCABULARY = "pile_mini_32k"
PREPARED = "train-*"  # To time preparing: the longer, the less its start counts.
FILES = "train-00000*"
STEPS_PER_CALL = 5

# A v5p chip has 459e12 bf16 FLOP/s (Google Cloud TPU documentation); a host has 4 chips. At
# an MFU of 50% and 6 FLOPs per parameter and token a model of 1.5e9 parameters takes, per host:
V5P_HOST_TOKENS_PER_SECOND = 4 * 459e12 * 0.5 / (6 * 1.5e9)


def text_config(path: str, **data: object) -> ConfigDict:
    """pile_12x2's data with one worker."""
    config = load_experiment("experiments/pile_12x2.py")
    config.unlock()
    config.data.update(path=path, train_files=PREPARED, validation_files="", **data)
    config.prepare.workers = 1
    return config


def preparing(folder: pathlib.Path) -> dict[str, list[float]]:
    """Seconds of each way over the same text."""
    shards = Shards.find(ARGUMENTS.pile, PREPARED)
    texts = [d.text for block in shards.blocks(1 << 24) for d in parse(block)]
    size = sum(len(text.encode()) for text in texts)
    ours = load_vocabulary(VOCABULARY)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator(
        texts, tokenizers.trainers.BpeTrainer(vocab_size=ours.size, show_progress=False)
    )
    runs = iter(range(1_000_000))

    def prepare_all() -> None:
        output = epath.Path(folder / f"prepared{next(runs)}")
        preparation.prepare(text_config(ARGUMENTS.pile), output)

    def encode_all() -> None:
        for text in texts:
            ours.encode(text)

    def encode_theirs() -> None:
        for text in texts:
            theirs.encode(text)

    ways = {
        "looped_jax.prepare, 1 worker": prepare_all,
        "encode alone": encode_all,
        "Hugging Face tokenizers": encode_theirs,
    }
    seconds = interleaved(ways, ARGUMENTS.rounds)
    print(f"{size / 1e6:.1f} MB of text, MB/s per core (median):")
    for name, values in seconds.items():
        print(f"  {name:30} {size / 1e6 / statistics.median(values):6.2f}")
    return {name: [size / 1e6 / value for value in values] for name, values in seconds.items()}


def reading(folder: pathlib.Path) -> dict[str, float]:
    """Tokens per second from prepared shards through the training iterator, by threads."""
    rates = {}
    for threads in (1, 4):
        config = text_config(str(folder / "prepared0"), read_threads=threads)
        config.train.batch_size = 64
        batches = train_batches(resolve(config), config)
        next(batches)
        start = time.perf_counter()
        count = 200
        for _ in range(count):
            next(batches)
        rates[f"threads={threads}"] = count * 64 * 1280 / (time.perf_counter() - start)
    need = V5P_HOST_TOKENS_PER_SECOND
    for name, rate in rates.items():
        print(f"reading, {name}: {rate:,.0f} tokens/s, {rate / need:.0f} times a v5p host's need")
    return rates


def stepping(folder: pathlib.Path) -> dict[str, list[float]]:
    """Seconds per step with data from disk and with one batch over and over."""
    config = load_experiment("experiments/pile_mini.py")
    config.unlock()
    output = folder / "mini"
    config.data.update(path=ARGUMENTS.pile, train_files=FILES, validation_files="val.jsonl.zst")
    preparation.prepare(config, epath.Path(output))
    config.data.path = str(output)
    job = make_job(config)
    step = jax.jit(make_train_step(job.model, job.optimizer), donate_argnums=0)
    batches = train_batches(resolve(config), config)
    with job.context():
        state = init_state(job.model, job.optimizer, 0, job.layout)
        same = put_batch(next(batches), job.mesh)

        def from_disk() -> None:
            nonlocal state
            for _ in range(STEPS_PER_CALL):
                state, scalars = step(state, put_batch(next(batches), job.mesh))
            jax.block_until_ready(scalars)

        def one_batch() -> None:
            nonlocal state
            for _ in range(STEPS_PER_CALL):
                state, scalars = step(state, same)
            jax.block_until_ready(scalars)

        seconds = interleaved(
            {"from disk": from_disk, "one batch": one_batch}, 4 * ARGUMENTS.rounds
        )
    ratios = [a / b for a, b in zip(seconds["from disk"], seconds["one batch"], strict=True)]
    print(
        f"a step from disk takes {statistics.median(ratios):.3f} times one with a repeated batch "
        f"(median of {len(ratios)} pairs of {STEPS_PER_CALL} steps)"
    )
    return {name: [s / STEPS_PER_CALL for s in values] for name, values in seconds.items()}


def main() -> None:
    """Measures all three and saves the results."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        results = {
            "machine": machine(),
            "megabytes_per_second": preparing(folder),
            "tokens_per_second": reading(folder),
            "v5p_host_tokens_per_second": V5P_HOST_TOKENS_PER_SECOND,
            "seconds_per_step": stepping(folder),
        }
    save("text_data", results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pile", required=True, help="folder of Pile-format shards")
    parser.add_argument("--rounds", type=int, default=5)
    ARGUMENTS = parser.parse_args()
    main()
