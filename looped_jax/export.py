"""Writes a run's checkpoint for programs of other projects.

python -m looped_jax.export --workdir=runs/pile_mini --out=exported/pile_mini
python -m looped_jax.export --workdir=runs/pile_mini --out=exported/shared --layout=shared --loops=4

Layouts: `unrolled`, an ordinary model in which every loop's layers are stored (transformers, vLLM,
mlx, lm-evaluation-harness, without foreign code); `shared`, the distinct layers stored once;
`hrm_text`, `dory`, `ouro`, models of these recipes in their own classes; `gguf`, for llama.cpp. See
docs/export.md.
"""

from etils import epath

from looped_jax.config import cli
from looped_jax.errors import UserError
from looped_jax.interop.exported import export
from looped_jax.interop.layouts import NAMES
from looped_jax.models.transformer import check_loops
from looped_jax.training.run import open_run

_FLAGS = cli.Flags()
_WORKDIR = _FLAGS.path("workdir", "", "The run.")
_OUT = _FLAGS.path("out", "", "Folder to write; it must not be there yet.", on_disk=True)
_STEP = _FLAGS.integer("step", None, "Checkpoint; default: the newest.", lower_bound=0)
_LOOPS = _FLAGS.integer("loops", None, "Loop count in place of the plan's.", lower_bound=1)
_LAYOUT = _FLAGS.enum("layout", "unrolled", list(NAMES), "The form.")


def main(overrides: dict[str, str]) -> None:
    """Reads, translates, writes."""
    if not _OUT.value:
        raise UserError("say --out=DIR, the folder to write")
    run = open_run(_WORKDIR.value, _STEP.value, overrides)
    check_loops(run.job.model, _LOOPS.value)
    folder = export(run, epath.Path(_OUT.value), _LAYOUT.value, _LOOPS.value)
    size = sum(path.stat().length for path in folder.iterdir())
    print(f"{folder}: step {run.step}, {_LAYOUT.value}, {size / 1e6:,.1f} MB")


if __name__ == "__main__":
    cli.run(main, _FLAGS)
