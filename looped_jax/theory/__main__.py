"""Verifies a construction of the paper's section 5 and shows its loop at work.

python -m looped_jax.theory --construction=group_composition --group=s5 --n=128
python -m looped_jax.theory --construction=p_hop --p=16 --n=64 --alphabet=4
python -m looped_jax.theory --construction=simulate_depth --plan=6x4
python -m looped_jax.theory --construction=chain_of_thought --plan=2x1 --m=8
python -m looped_jax.theory --run=runs/quickstart/looped --max_loops=6

With --run: the accuracy of a trained model of group composition or p-hop by the loops at
evaluation, beside that of the construction for the same task. --figure=FILE.png draws.
"""

from etils import epath

from looped_jax.config import cli
from looped_jax.errors import RunError, UserError

_NAMES = ["group_composition", "p_hop", "simulate_depth", "chain_of_thought"]
_FLAGS = cli.Flags()
_CONSTRUCTION = _FLAGS.enum("construction", None, _NAMES, "What to verify.")
_GROUP = _FLAGS.string("group", "s3", "z<m>, d<k>, s<k>, a<k> or products, z2*s3.")
_N = _FLAGS.integer("n", 8, "Elements, or characters.")
_P = _FLAGS.integer("p", 4, "Hops.")
_ALPHABET = _FLAGS.integer("alphabet", 4, "Characters to choose from.")
_PLAN = _FLAGS.string("plan", "3x2", "Of the model that is simulated.")
_M = _FLAGS.integer("m", 8, "Tokens of chain of thought.")
_CASES = _FLAGS.integer("cases", 64, "Random inputs.", lower_bound=1)
_SEED = _FLAGS.integer("seed", 0, "Of inputs and random models.")
_DTYPE = _FLAGS.enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Compute type.")
_RUN = _FLAGS.path("run", "", "A trained run to compare with the construction.")
_LOOPS = _FLAGS.integer("max_loops", 8, "With --run: loops at evaluation.", lower_bound=1)
_FIGURE = _FLAGS.path("figure", "", "PNG file to draw.", on_disk=True)


def main(overrides: dict[str, str]) -> None:
    """Prints the verification, or the comparison with a run."""
    if overrides:
        raise UserError("the theory has no --config")
    if bool(_CONSTRUCTION.value) == bool(_RUN.value):
        raise UserError(f"say --construction=NAME ({', '.join(_NAMES)}) or --run=DIR")
    if _RUN.value:
        compare()
    else:
        verify()


def verify() -> None:
    """The table, then the loop at work. RunError if an answer is wrong."""
    from looped_jax.analysis.text_table import aligned
    from looped_jax.theory import verify as checks

    common = (_CASES.value, _SEED.value, _DTYPE.value)
    found = {
        "group_composition": lambda: checks.verify_group_composition(
            _GROUP.value, _N.value, *common
        ),
        "p_hop": lambda: checks.verify_p_hop(_P.value, _N.value, _ALPHABET.value, *common),
        "simulate_depth": lambda: checks.verify_simulate_depth(_PLAN.value, *common),
        "chain_of_thought": lambda: checks.verify_chain_of_thought(_PLAN.value, _M.value, *common),
    }[str(_CONSTRUCTION.value)]()
    built = found.construction
    sizes = [[key, built.claimed[key], built.used[key]] for key in built.claimed]
    print(f"{found.name}: {found.exact} of {found.cases} exact in {_DTYPE.value} ({found.how})\n")
    print(aligned([["size", "theorem", "used"], *sizes], left=3))
    print(f"precision needed: {built.precision or 'float32, as the model that is simulated'}")
    print(f"\nThe loop at work ({found.places}):")
    after = ["input", *(f"loop {i}" for i in range(1, len(found.trace)))]
    shown = [found.columns, *found.trace]
    widest = max(len(word) for row in shown for word in row)
    for name, row in zip(["", *after], shown, strict=True):
        print((f"{name:8}  " + "  ".join(word.rjust(widest) for word in row)).rstrip())
    for line in found.words:
        print(line)
    for note in found.notes:
        print(note)
    if _FIGURE.value:
        from looped_jax.theory.picture import picture  # Matplotlib, only when it is drawn.

        _write(picture(found, after))
    if not found.ok:
        raise RunError(f"{found.cases - found.exact} of {found.cases} answers are wrong")


def compare() -> None:
    """A table and a figure of accuracy by loops."""
    from looped_jax.analysis import plots
    from looped_jax.analysis.text_table import aligned
    from looped_jax.theory.learned import by_loops

    curves, task, trained = by_loops(_RUN.value, _LOOPS.value)
    names = list(curves)
    counts = sorted({loops for curve in curves.values() for loops in curve})
    rows = [
        [str(loops), *(_percent(curves[name].get(loops)) for name in names)] for loops in counts
    ]
    print(aligned([["loops", *names], *rows], left=1))
    if _FIGURE.value:
        lines = [
            plots.Curve(name, [(n, 100 * value) for n, value in curve.items()], mark=mark)
            for (name, curve), mark in zip(curves.items(), (trained, None), strict=True)
        ]
        axes = ("loops at evaluation", f"{task}: exact match (%)")
        _write(plots.curves(lines, *axes, mark="loops in training"))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def _write(picture: bytes) -> None:
    try:
        epath.Path(_FIGURE.value).write_bytes(picture)
    except OSError as error:
        raise UserError(f"cannot write {_FIGURE.value}: {error.strerror}") from error
    print(f"figure: {_FIGURE.value}")


if __name__ == "__main__":
    cli.run(main, _FLAGS)
