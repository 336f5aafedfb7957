"""A run on an MLflow server or in a local store."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec, LoggerConfig
from finetune_trainer.report.metrics import NumberLine, SampleLine, numbers_of
from finetune_trainer.report.trackers.published_fields import published_fields

if TYPE_CHECKING:
    from mlflow import MlflowClient

SAMPLES = "samples.json"
"""The artifact that is the table of answers."""

FAILURE_CLASSES = {
    "INVALID_PARAMETER_VALUE": FailureClass.INVALID_SPEC,
    "PERMISSION_DENIED": FailureClass.ACCESS_DENIED,
    "UNAUTHENTICATED": FailureClass.ACCESS_DENIED,
}
"""The failure class of MLflow's error codes. All others mean that a server or store fails (StorageError)."""


class MlflowRun:
    """A run at MLflow.

    When the server does not answer, the client retries for minutes; see MLFLOW_HTTP_REQUEST_MAX_RETRIES.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._rows: list[list[int | str | None]] = []

    def send(self, lines: Sequence[NumberLine]) -> None:
        """Adds the numbers of the lines, by their names in metrics.jsonl."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, timestamp=int(line.time.timestamp() * 1000), step=line.step)
            for line in lines
            for key, value in numbers_of(line).items()
        ]
        self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)

    def show(self, line: SampleLine) -> None:
        """Adds the answers as rows to the run's table of them, an artifact that MLflow shows as one.

        The client's own `log_table` reads back what is there, and would take answers such as 007 for numbers.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

        self._rows += [[line.step, each.prompt, each.answer, each.expected] for each in line.samples]
        table = {"columns": ["step", "asked", "answered", "expected"], "data": self._rows}
        self._client.log_dict(self._run_id, table, SAMPLES)
        shown = json.dumps([{"path": SAMPLES, "type": "table"}])
        self._client.set_tag(self._run_id, MLFLOW_LOGGED_ARTIFACTS, shown)

    def end(self, *, failed: bool) -> None:
        """Marks the run as finished or failed."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def start_mlflow_run(spec: FineTuneJobSpec, config: LoggerConfig, name: str) -> MlflowRun:
    """Starts a new run, with the spec's fields as its parameters.

    The defaults are MLflow's own: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, the experiment `Default`.
    Raises FineTuneError: InvalidSpec for a wrong address, and for an experiment that does not exist and
    must not be created; AccessDenied; StorageError when the server or store fails.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Param

    params = [
        Param(key, value if isinstance(value, str) else json.dumps(value))
        for key, value in published_fields(spec).items()
    ]
    with _explained(config):
        client = MlflowClient(tracking_uri=config.tracking_uri)
        run = client.create_run(_experiment(client, config), run_name=spec.custom_model_tag or name)
        client.log_batch(run.info.run_id, params=params, synchronous=True)
    return MlflowRun(client, run.info.run_id)


def _experiment(client: MlflowClient, config: LoggerConfig) -> str:
    """The id of the experiment, which is created if it does not exist and the spec allows it."""
    name = config.experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    if config.create_experiment_if_not_exists is False:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"spec.logger.provider_config.experiment_name: {name} is not at the tracking server; "
            "make it, or leave create_experiment_if_not_exists out and it is made",
        )
    return client.create_experiment(name)


@contextmanager
def _explained(config: LoggerConfig) -> Iterator[None]:
    """Turns MLflow's exceptions into FineTuneErrors that a person can act on."""
    from mlflow.exceptions import MlflowException

    where = "spec.logger.provider_config.tracking_uri" if config.tracking_uri else "MLFLOW_TRACKING_URI"
    try:
        yield
    except FineTuneError:
        raise
    except MlflowException as error:
        failure_class = FAILURE_CLASSES.get(error.error_code, FailureClass.STORAGE_ERROR)
        raise FineTuneError(failure_class, f"{where}: mlflow says: {error.message}") from error
    except Exception as error:  # stores raise errors of their database drivers
        raise FineTuneError(
            FailureClass.STORAGE_ERROR, f"{where}: mlflow cannot start a run: {error}"
        ) from error
