"""Trains what an experiment file describes.

python -m looped_jax.main --config=experiments/quickstart.py
python -m looped_jax.main --config=experiments/pile_12x2.py --workdir=DIR --config.train.steps=100
python -m looped_jax.main --workdir=DIR

The same command again, or the folder alone, goes on where the run stopped, and the same command on
every host is one run (looped_jax/parallel/distributed.py).
"""

import functools

from etils import epath
from ml_collections import ConfigDict

from looped_jax.config import (
    apply_overrides,
    cli,
    load_experiment,
    read_config,
    validate,
    variant_config,
)
from looped_jax.errors import UserError
from looped_jax.parallel import distributed
from looped_jax.training.evaluations import Evaluations
from looped_jax.training.job import Job, make_job
from looped_jax.training.memory import check_state
from looped_jax.training.trackers import check_installed
from looped_jax.training.trainer import train
from looped_jax.training.workdir import check_can_hold, check_owner, claim_workdir, locked

_FLAGS = cli.Flags()
_CONFIG = _FLAGS.path(
    "config", "", "Experiment: FILE.py or FILE.py:ARGUMENT; default: that of the run in --workdir."
)
_WORKDIR = _FLAGS.path("workdir", "", "Where the run lives; default runs/<experiment>.")


def main(overrides: dict[str, str]) -> None:
    """Trains the config, or each of its variants in turn and then compares them."""
    distributed.join()
    config = read(overrides)
    workdir = epath.Path(_WORKDIR.value or f"runs/{config.name}")
    if not config.variants:
        train(make_job(config), workdir)
        if distributed.is_first():
            print(f"done: {workdir}")
        return
    # Everything is checked before the first variant starts.
    jobs = {
        name: make_job(variant_config(config, name, changes)) for name, changes in config.variants
    }
    evaluations = {name: Evaluations(job) for name, job in jobs.items()}
    for job in jobs.values():
        check_state(job)
        check_installed(job.config)
        check_can_hold(workdir, job.config)
    with locked(workdir):
        check_owner(config, workdir)
        for name, job in jobs.items():
            claim = functools.partial(claim_workdir, config, workdir)
            train(job, workdir / name, evaluations.pop(name), claim)
    if distributed.is_first():
        show_comparison(config, jobs, workdir)


def read(overrides: dict[str, str]) -> ConfigDict:
    """The config that is asked for: a file's, or that of the run in the workdir."""
    if _CONFIG.value:
        return load_experiment(_CONFIG.value, overrides)
    path = epath.Path(_WORKDIR.value) / "config.json"
    if not _WORKDIR.value or not path.exists():
        nothing = f"; {_WORKDIR.value} holds no run to go on with" if _WORKDIR.value else ""
        raise UserError(f"say --config=FILE, e.g. --config=experiments/quickstart.py{nothing}")
    config = read_config(path)
    apply_overrides(config, overrides)
    validate(config)
    return config


def show_comparison(config: ConfigDict, jobs: dict[str, Job], workdir: epath.Path) -> None:
    """Prints and saves how the variants compare."""
    from looped_jax.analysis import compare  # Matplotlib, only when something is drawn.

    comparison = config.comparison
    runs = []
    for name, job in jobs.items():
        flops = job.mean_step_flops
        of_run = (workdir / name, job.config, job.layout.parameter_count, flops)
        runs.append(compare.read_run(name, *of_run, comparison.metric))
    print()
    print(compare.table(runs, comparison.metric))
    if components := compare.components_table({name: workdir / name for name in jobs}):
        print(f"\n{components}")
    (workdir / "comparison.csv").write_text(compare.to_csv(runs, comparison.metric))
    compare.plot(runs, comparison.metric, config.name, workdir / "comparison.png")
    if comparison.looped:
        print()
        print(compare.sentence(runs, comparison))
    print(f"\nplot: {workdir / 'comparison.png'}   numbers: {workdir / 'comparison.csv'}")


if __name__ == "__main__":
    cli.run(main, _FLAGS, prints_only=False)
