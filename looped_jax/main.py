"""Trains what an experiment file describes.

python -m looped_jax.main --config=experiments/quickstart.py
python -m looped_jax.main --config=experiments/pile_12x2.py --workdir=DIR --config.train.steps=100

The same command again goes on where the run stopped, and the same command on every host is one run
(looped_jax/parallel/distributed.py).
"""

from etils import epath
from ml_collections import ConfigDict

from looped_jax.config import cli, load_experiment, variant_config
from looped_jax.errors import UserError
from looped_jax.parallel import distributed
from looped_jax.training.evaluations import Evaluations
from looped_jax.training.job import Job, make_job
from looped_jax.training.trainer import train
from looped_jax.training.workdir import claim_workdir, locked, renew_config

_FLAGS = cli.Flags()
_CONFIG = _FLAGS.string("config", "", "Experiment: FILE.py or FILE.py:ARGUMENT.")
_WORKDIR = _FLAGS.string("workdir", "", "Where the run lives; default runs/<experiment>.")


def main(overrides: dict[str, str]) -> None:
    """Trains the config, or each of its variants in turn and then compares them."""
    if not _CONFIG.value:
        raise UserError("say --config=FILE, e.g. --config=experiments/quickstart.py")
    distributed.join()
    config = load_experiment(_CONFIG.value, overrides)
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
    with locked(workdir):
        claim_workdir(config, workdir)
        for name, job in jobs.items():
            train(job, workdir / name, evaluations.pop(name))
        renew_config(config, workdir)
    if distributed.is_first():
        show_comparison(config, jobs, workdir)


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
