"""Prepares text once: tokenised, packed, shuffled, in ArrayRecord shards with a manifest.

python -m looped_jax.prepare --config=experiments/pile_12x2.py --config.data.path=$PILE_DIR \\
    --output=$PREPARED_DIR

Then train with --config.data.path=$PREPARED_DIR. The same command again finishes what was
interrupted. With --scheduler=tcp://HOST:8786 the workers of a Dask cluster do the work, to the same
bytes.
"""

from etils import epath

from looped_jax.config import cli, load_experiment
from looped_jax.errors import UserError

_FLAGS = cli.Flags()
_CONFIG = _FLAGS.path("config", "", "Experiment: FILE.py or FILE.py:ARGUMENT.")
_OUTPUT = _FLAGS.path("output", "", "Folder for the shards and their manifest.")
_SCHEDULER = _FLAGS.string(
    "scheduler",
    "",
    "Address of a Dask scheduler, whose workers see --output too; empty: processes here.",
)


def main(overrides: dict[str, str]) -> None:
    """Prepares what config.data describes and prints what came out."""
    if not _CONFIG.value or not _OUTPUT.value:
        raise UserError("say --config=FILE and --output=DIR")
    from looped_jax.data import preparation

    config = load_experiment(_CONFIG.value, overrides)
    manifest = preparation.prepare(config, epath.Path(_OUTPUT.value), _SCHEDULER.value)
    print(preparation.describe(manifest))


if __name__ == "__main__":
    cli.run(main, _FLAGS, prints_only=False)
