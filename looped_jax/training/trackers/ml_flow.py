"""MLflow (https://mlflow.org), by default in a database in the run's folder (extra `mlflow`).

Its own variables say where else: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.
"""

import logging
import os
import time
from collections.abc import Mapping

from looped_jax.config import flatten
from looped_jax.errors import from_extra
from looped_jax.training.trackers.base import Start, known_id, remember_id

# Before it is imported: it reports its use to its makers unless told not to.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
with from_extra("mlflow", "config.train.log_to=mlflow"):
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
with from_extra("mlflow", "config.train.log_to=mlflow"):  # What its database needs.
    import alembic  # noqa: F401
    import sqlalchemy  # noqa: F401

NAME = "mlflow"
# What one call may have, and how long a parameter may be.
MOST_METRICS, MOST_PARAMS, MOST_CHARACTERS = 1000, 100, 6000


class MlflowRun:
    """One run there, whatever starts and stops it had here; a step that is repeated is there
    once."""

    def __init__(self, start: Start):
        for name in ("mlflow", "alembic"):  # Its tables are made in many lines.
            logging.getLogger(name).setLevel(logging.ERROR)
        default = f"sqlite:///{start.workdir.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", default))
        self._known: dict[str, set[int]] = {}  # Steps of each metric; of a run that is not new.
        known = known_id(start.workdir, NAME)
        self._is_new = known is None or not self._goes_on(known)
        self._run_id = self._begin(start) if known is None or self._is_new else known
        self.complete_until = 0  # What it has is left out by ``write``.

    def _goes_on(self, run_id: str) -> bool:
        """Whether the store has the run; then it is under way again."""
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _begin(self, start: Start) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "looped_jax")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = (
            self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        )
        run_id: str = self._client.create_run(experiment_id, run_name=start.config.name).info.run_id
        remember_id(start.workdir, NAME, run_id)
        params = [Param(key, str(value)[:MOST_CHARACTERS]) for key, value in flatten(start.config)]
        for i in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(run_id, params=params[i : i + MOST_PARAMS])
        return run_id

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [
            Metric(name, float(value), now, step)
            for name, value in scalars.items()
            if self._is_new or step not in self._steps(name)
        ]
        for i in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[i : i + MOST_METRICS])

    def _steps(self, name: str) -> set[int]:
        """Those at which an earlier start wrote the metric."""
        if name not in self._known:
            history = self._client.get_metric_history(self._run_id, name)
            self._known[name] = {metric.step for metric in history}
        return self._known[name]

    def flush(self) -> None:
        """Nothing is left to do: every call has been written."""

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run_id, status="FINISHED" if finished else "KILLED")
