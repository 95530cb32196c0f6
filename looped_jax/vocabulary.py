"""Trains a vocabulary, or reports how well one fits a text.

python -m looped_jax.vocabulary --train=my_32k.model --size=32768 --path=$PILE_DIR
python -m looped_jax.vocabulary --report=pile_mini_32k --path=$PILE_DIR --files='val.jsonl.zst'

The report is bytes per token for each component of the text (`pile_set_name`).
"""

import json
from collections import Counter
from collections.abc import Iterator

from etils import epath
from tqdm import tqdm

from looped_jax.config import cli
from looped_jax.data.documents import Document, Shards, parse
from looped_jax.data.vocabulary import load_vocabulary, train_sentencepiece
from looped_jax.errors import UserError

_FLAGS = cli.Flags()
_TRAIN = _FLAGS.path("train", "", "SentencePiece .model to write; its provenance beside it.")
_SIZE = _FLAGS.integer("size", 32_768, "Ids of the vocabulary to train.", lower_bound=300)
_REPORT = _FLAGS.path("report", "", "Vocabulary to report on.")
_PATH = _FLAGS.path("path", "", "Folder of Pile-format shards.")
_FILES = _FLAGS.string("files", "train-*.jsonl.zst", "Pattern of the shards in it.")
_BLOCK = 1 << 24


def main(overrides: dict[str, str]) -> None:
    """Writes a vocabulary and its provenance, or prints a table."""
    if overrides or bool(_TRAIN.value) == bool(_REPORT.value):
        raise UserError("say --train=FILE.model or --report=VOCABULARY, and --path=FOLDER")
    shards = Shards.find(_PATH.value, _FILES.value)
    if _REPORT.value:
        print(how_it_fits(_REPORT.value, shards))
        return
    model = epath.Path(_TRAIN.value)
    if model.suffix != ".model":
        raise UserError(f"--train={model} must end in .model")
    content = train_sentencepiece((d.text for d in documents(shards)), _SIZE.value)
    provenance = {
        "what": "SentencePiece BPE with byte fallback, lossless; see train_sentencepiece in "
        "looped_jax/data/vocabulary.py",
        "command": f"python -m looped_jax.vocabulary --train={model.name} --size={_SIZE.value} "
        f"--files='{_FILES.value}' --path=…",
        "size": _SIZE.value,
        "trained_on": shards.identity(),
    }
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_bytes(content)
    model.with_suffix(".json").write_text(json.dumps(provenance, indent=1) + "\n")
    print(how_it_fits(str(model), shards))


def documents(shards: Shards) -> Iterator[Document]:
    """All documents, with a progress bar."""
    total = sum(path.stat().length for path in shards.paths)
    with tqdm(total=total, unit="B", unit_scale=True) as bar:
        for block in shards.blocks(_BLOCK):
            yield from parse(block)
            bar.update(block.read)


def how_it_fits(spec: str, shards: Shards) -> str:
    """Bytes, tokens and bytes per token of each component, as a table."""
    vocabulary = load_vocabulary(spec)
    size: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for document in documents(shards):
        size[document.component] += len(document.text.encode())
        tokens[document.component] += len(vocabulary.encode(document.text))
    size["all"], tokens["all"] = size.total(), tokens.total()
    lines = [f"{spec}: {vocabulary.size:,} ids, {'lossless' if vocabulary.lossless else 'lossy'}"]
    lines.append(f"{'component':20}  {'bytes':>12}  {'tokens':>12}  bytes/token")
    for name in [*sorted(set(size) - {"all"}), "all"]:
        ratio = size[name] / max(1, tokens[name])
        lines.append(f"{name:20}  {size[name]:12,}  {tokens[name]:12,}  {ratio:11.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, _FLAGS)
