"""Makes a page that shows what happens inside a model's loops, of one prompt or example.

python -m looped_jax.explain --workdir=runs/quickstart/looped --task=group_s3_n7 --out=inside
python -m looped_jax.explain --workdir=runs/pile_mini --prompt="The loop of layers" --out=inside

For each token and loop: what the model would say had it stopped there, how likely the right answer
is, how the state changes, what attends to what, when exit rules would stop; and the same at twice
the loops. Of a synthetic task also what states hold (linear probes, beside a control and the
paper's construction), and what each loop is needed for. The page stands alone; pictures, tables and
data.json lie beside it. See docs/inside.md.
"""

from etils import epath

from looped_jax.config import cli
from looped_jax.errors import UserError
from looped_jax.inside import opened
from looped_jax.inside.decoded import decoded
from looped_jax.inside.effects import effects
from looped_jax.inside.explanation import explain, of_prompt, of_task, write
from looped_jax.inside.passes import watched_segment

_FLAGS = cli.Flags()
_WORKDIR = _FLAGS.path("workdir", "", "The run.")
_OUT = _FLAGS.path("out", "", "Folder of the page.", on_disk=True)
_PROMPT = _FLAGS.string("prompt", None, "Text to look at.")
_TASK = _FLAGS.string("task", "", "Of a synthetic run, in place of --prompt: one of its tasks.")
_EXAMPLE = _FLAGS.integer("example", 0, "Number of the task's held-out example.", lower_bound=0)
_LOOPS = _FLAGS.integer("loops", None, "Loop count in place of the plan's.", lower_bound=1)
_STEP = _FLAGS.integer("step", None, "Checkpoint; default: the newest.", lower_bound=0)
_SEGMENT = _FLAGS.integer("segment", None, "From 0; default: the looped one.", lower_bound=0)
_INTERVENE = _FLAGS.string("intervene", "", "Changes, e.g. skip:2 or layer:1.2 (docs/python.md).")
_PROBES = _FLAGS.bool("probes", True, "With --task: what states hold, by linear probes.")
_EFFECTS = _FLAGS.bool("effects", True, "With --task: what changes inside the loops cost.")


def main(overrides: dict[str, str]) -> None:
    """Opens, looks, writes."""
    if not _OUT.value:
        raise UserError("say --out=DIR")
    if (_PROMPT.value is None) == (not _TASK.value):
        raise UserError("say --prompt=TEXT, or --task=NAME of a synthetic run")
    if _TASK.value:
        overrides = {"eval.tasks": _TASK.value, **overrides}
    model = opened.load(_WORKDIR.value, _STEP.value, _LOOPS.value, overrides)
    if _INTERVENE.value:
        model = model.intervened(_INTERVENE.value)
    if _TASK.value and model.run.job.config.data.task == "text":
        raise UserError("a language model has no --task to explain; say --prompt=TEXT")
    held = lost = None
    if _TASK.value:
        asked = of_task(model, _TASK.value, _EXAMPLE.value)
        is_watched = _SEGMENT.value in (None, watched_segment(model.model.config, None))
        if _PROBES.value and is_watched:  # They look at the looped segment.
            held = decoded(model, _TASK.value)
        if _EFFECTS.value:
            lost = effects(model)
    else:
        asked = of_prompt(model, _PROMPT.value)
    document, data = explain(model, asked, _SEGMENT.value, held, lost)
    out = epath.Path(_OUT.value)
    try:
        write(document, data, out)
    except OSError as error:
        raise UserError(f"cannot write in {out}: {error.strerror or error}") from error
    print(out / "index.html")


if __name__ == "__main__":
    cli.run(main, _FLAGS)
