from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import JsonValue
from tests.trainer.training_jobs import LORA, Course, job_of, lines_of

from finetune_api.record import with_record
from finetune_api.status import FineTuneJobStatus, ProgressRecord
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.job import TrainingJob
from finetune_trainer.training.loop import train

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture(autouse=True)
def nothing_leaves_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


class Vandal(list[ProgressRecord]):
    """Keeps progress records, and at the first one deletes the run at MLflow, which then takes no numbers."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri

    def append(self, record: ProgressRecord) -> None:
        if not self:
            client = client_of(self._uri)
            (run,) = client.search_runs(["0"])
            client.delete_run(run.info.run_id)
        super().append(record)


def client_of(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def tracked(tiny_model: Path, tmp_path: Path) -> tuple[TrainingJob, str]:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logger: JsonValue = {"provider": "mlflow", "provider_config": {"tracking_uri": uri}}
    return job_of(tiny_model, tmp_path / "run", {**LORA, "logger": logger}, num_epochs=2), uri


def test_numbers_that_a_tracker_did_not_get_are_told_in_the_record_and_in_the_result(
    tiny_model: Path, tmp_path: Path
) -> None:
    job, uri = tracked(tiny_model, tmp_path)
    records = Vandal(uri)

    train(job, Course().worker(0, 1, records))

    (warning,) = records[-1].warnings
    lines = len(lines_of(tmp_path / "run"))
    assert warning.startswith(
        f"mlflow did not get {lines} of {lines} points of this run (metrics.jsonl has them): "
    )
    result = RunDirectory.open(str(tmp_path / "run")).result()
    assert result is not None
    assert result.warnings == [warning]
    assert with_record(FineTuneJobStatus(), result).warnings == [warning]


def test_a_run_that_loses_nothing_says_nothing(tiny_model: Path, tmp_path: Path) -> None:
    job, _ = tracked(tiny_model, tmp_path)
    records: list[ProgressRecord] = []

    train(job, Course().worker(0, 1, records))

    assert all(record.warnings == [] for record in records)
    assert "warnings" not in (tmp_path / "run" / "result.json").read_text()
