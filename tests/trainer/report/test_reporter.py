from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import JsonValue
from tests.trainer.conftest import allow, deny
from tests.trainer.training_jobs import LORA, Course, job_of, lines_of

from finetune_api.record import with_record
from finetune_api.status import FineTuneJobStatus, ProgressRecord
from finetune_trainer.storage import objects
from finetune_trainer.storage.open import open_storage
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
            delete_run(self._uri)
        super().append(record)


def delete_run(uri: str) -> None:
    client = client_of(uri)
    (run,) = client.search_runs(["0"])
    client.delete_run(run.info.run_id)


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


class Failing(list[ProgressRecord]):
    """Keeps progress records, and fails the run at that of the second step, after `then`."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._then: Callable[[], None] | None = then

    def append(self, record: ProgressRecord) -> None:
        super().append(record)
        if self._then is not None and record.progress is not None and record.progress.step == 2:
            self._then()
            self._then = None
            raise RuntimeError("a device fails")


def test_the_last_lines_of_a_run_that_fails_are_stored_too(tiny_model: Path, object_path: str) -> None:
    job = job_of(tiny_model, object_path, LORA)

    with pytest.raises(RuntimeError, match="a device fails"):
        train(job, Course().worker(0, 1, Failing()))

    lines = (open_storage(object_path).read_text("metrics.jsonl") or "").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_lines_that_cannot_be_uploaded_are_told_in_the_record_of_a_run_that_fails(
    tiny_model: Path, s3_bucket: str
) -> None:
    job = job_of(tiny_model, f"s3://{s3_bucket}/run", LORA)
    records = Failing(lambda: deny(s3_bucket))

    with pytest.raises(RuntimeError, match="a device fails"):
        train(job, Course().worker(0, 1, records))

    (warning,) = records[-1].warnings
    assert re.fullmatch(
        r"metrics\.jsonl lacks its newest lines; an upload failed at \d\d:\d\d UTC: s3://.*ACCESS_DENIED.*",
        warning,
    )


def test_lines_that_were_uploaded_late_are_told_as_there_again(
    tiny_model: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DeniedForAWhile(list[ProgressRecord]):
        def append(self, record: ProgressRecord) -> None:
            super().append(record)
            if len(self) == 2:
                deny(s3_bucket)
            if record.warnings:
                allow(s3_bucket)

    monkeypatch.setattr(objects, "FLUSH_SECONDS", 0)
    path = f"s3://{s3_bucket}/run"
    records = DeniedForAWhile()

    train(job_of(tiny_model, path, LORA, num_epochs=1), Course().worker(0, 1, records))

    told = [record.warnings for record in records]
    first = next(index for index, warnings in enumerate(told) if warnings)
    assert first >= 2
    assert told[first][0].startswith("metrics.jsonl lacks its newest lines; an upload failed at ")
    assert told[-1][0].startswith("metrics.jsonl had to wait for its lines, and has them all now; ")
    result = RunDirectory.open(path).result()
    assert result is not None
    assert result.warnings == told[-1]
    text = open_storage(path).read_text("metrics.jsonl") or ""
    assert len(text.splitlines()) == 7, "six steps and a validation"


def test_what_a_tracker_did_not_get_of_a_run_that_fails_is_told_too(tiny_model: Path, tmp_path: Path) -> None:
    job, uri = tracked(tiny_model, tmp_path)
    records = Failing(lambda: delete_run(uri))

    with pytest.raises(RuntimeError, match="a device fails"):
        train(job, Course().worker(0, 1, records))

    # What it got before the run was deleted there, and what it did not, is a matter of moments.
    assert re.match(r"mlflow did not get (\d of 2 points|all numbers) of this run", records[-1].warnings[0])
