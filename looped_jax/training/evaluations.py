"""What a run measures while it trains: held-out rows, and downstream tasks of a language model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from looped_jax.data.run_data import downstream_names
from looped_jax.data.tasks.downstream import TASKS
from looped_jax.errors import UserError
from looped_jax.evaluation.downstream import Settings, ask, run_task, scalars
from looped_jax.evaluation.held_out import Evaluator, HeldOut
from looped_jax.evaluation.loop_watch import of_parameters
from looped_jax.inference.generator import Generator
from looped_jax.models.transformer import check_loops
from looped_jax.parallel.mesh import local_rows, replicated
from looped_jax.training.job import Job


def held_out_sets(job: Job, split: str = "validation") -> list[HeldOut]:
    """The held-out rows of a config's evaluations, this process's of them."""
    config = job.config
    batch_size = config.eval.batch_size or config.train.batch_size
    return [
        HeldOut.from_source(
            name,
            job.data.source(split, name),
            config.eval.examples,
            batch_size,
            local_rows(job.mesh, batch_size),
        )
        for name in (config.eval.tasks or (config.data.task,))
        if config.data.task != "text" or name == "text"
    ]


class Evaluations:
    """The evaluations of a job; compiled at the first of them."""

    def __init__(self, job: Job):
        """Reads the questions of downstream tasks; UserError if one is not to be had, or the model
        cannot make the loops of config.eval.loops."""
        self.job = job
        config = job.config
        for loops in config.eval.loops:
            try:
                check_loops(job.model, loops)
            except UserError as error:
                raise UserError(f"config.eval.loops={config.eval.loops}: {error}") from None
        settings = Settings.from_config(config, config.eval.examples)
        self.asked = tuple(
            ask(TASKS[name], settings, job.data.vocabulary, job.data.length)
            for name in downstream_names(config)
        )

    @functools.cached_property
    def held_out(self) -> list[HeldOut]:
        return held_out_sets(self.job)

    @functools.cached_property
    def _evaluators(self) -> dict[str, Evaluator]:
        """Of the plan's loops, and of those of config.eval.loops; by what their sets' names end
        with."""
        job = self.job
        counts = {"": None} | {f"/loops_{loops}": loops for loops in job.config.eval.loops}
        of = functools.partial(Evaluator, job.model, job.mesh, job.rules)
        # What each loop does is told of the plan's loops.
        return {ending: of(loops, watch=loops is None) for ending, loops in counts.items()}

    @functools.cached_property
    def _of_parameters(self) -> Callable[[Any], dict[str, Any]]:
        job = self.job
        watch = functools.partial(of_parameters, job.model)
        return jax.jit(watch, out_shardings=replicated(job.mesh))

    @functools.cached_property
    def _generator(self) -> Generator:
        job = self.job
        return Generator(job.model, None, job.mesh, job.rules, eos=job.data.vocabulary.eos)

    def measure(self, params: Any, stop: Callable[[], bool]) -> dict[str, float] | None:
        """All metrics of these parameters, eval/<name>/… and, of held-out rows with the loops of
        config.eval.loops, eval/<name>/loops_<N>/…; what is watched of loops (loop_watch.py). None
        if ``stop``, asked again and again, says so."""
        line: dict[str, float] = {}
        for ending, evaluator in self._evaluators.items():
            for held_out in self.held_out:
                named = dataclasses.replace(held_out, name=held_out.name + ending)
                metrics = evaluator(params, named, stop)
                if metrics is None:
                    return None
                line |= metrics
        with self.job.context():
            line |= {name: float(value) for name, value in self._of_parameters(params).items()}
        if self.asked:
            self._generator.params = params
            try:
                answered = self._downstream(stop)
            finally:
                self._generator.params = None  # Training lets go of them at its next step.
            if answered is None:
                return None
            line |= answered
        return line

    def _downstream(self, stop: Callable[[], bool]) -> dict[str, float] | None:
        found: dict[str, float] = {}
        for asked in self.asked:
            summary = run_task(
                asked,
                self._generator,
                self.job.data.vocabulary,
                self.job.config.eval.style,
                stop=stop,
                show_progress=False,
            )
            if summary is None:
                return None
            found |= scalars(asked.task.name, summary)
        return found
