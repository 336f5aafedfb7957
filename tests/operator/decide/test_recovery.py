"""What is known of a job whose status is lost."""

from __future__ import annotations

import pytest
from tests.operator.cases import RUN, UID, Json, configuration, observed

from finetune_api.manifest import read_spec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.decide.recovery import recovered
from finetune_operator.observed import Observed


def recover(seen: Json, settings: Json | None = None) -> Observed:
    before = observed(seen)
    return recovered(before, read_spec(before.job.spec), configuration(settings))


def status_of(seen: Json, settings: Json | None = None) -> FineTuneJobStatus:
    return recover(seen, settings).job.status


def test_new_job_has_lost_nothing() -> None:
    assert status_of({"job": {}}) == FineTuneJobStatus()


def test_status_that_is_there_stays_as_it_is() -> None:
    seen: Json = {"job": {"state": "running"}, "rayJob": {"metadata": {"name": "tune-11111111-7"}}}
    assert recover(seen) == observed(seen)


@pytest.mark.parametrize(
    ("ray_job", "record", "attempt"),
    [
        ({"metadata": {"labels": {"finetune.dev/attempt": "3"}}}, {"attempt": 3}, 3),
        ({"metadata": {"name": "tune-11111111-4"}}, None, 4),
        ({"metadata": {"name": "tune-11111111-4"}}, {"attempt": 3}, 4),
        (None, {"attempt": 2}, 2),
        ({}, None, 1),
        ({"metadata": {"name": "tune", "labels": {"finetune.dev/attempt": "x"}}}, "no record", 1),
    ],
)
def test_attempt_is_that_of_the_newest_trace(
    ray_job: Json | None, record: Json | str | None, attempt: int
) -> None:
    found = recover({"job": {}, "rayJob": ray_job, "record": record})
    assert found.job.status.attempts == attempt
    assert found.job.status.ray_job_name == f"tune-11111111-{attempt}"
    assert (found.ray_job is None) is (ray_job is None)


def test_what_is_left_of_a_status_is_kept() -> None:
    seen: Json = {
        "job": {"state": "running", "status": {"attempts": 2, "runDirectory": None}},
        "rayJob": {"metadata": {"name": "tune-11111111-2"}},
    }
    found = recover(seen)
    assert (found.job.status.attempts, found.job.status.run_directory) == (2, RUN)
    assert found.ray_job is not None


def test_rayjob_of_an_earlier_attempt_than_the_records_is_not_the_current_one() -> None:
    ended: Json = {"status": {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}}
    found = recover({"job": {}, "rayJob": ended, "record": {"attempt": 2}})
    assert (found.job.status.attempts, found.ray_job) == (2, None)


def test_rayjob_that_runs_is_the_current_one_whatever_the_record_says() -> None:
    running: Json = {"status": {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}}
    found = recover({"job": {}, "rayJob": running, "record": {"attempt": 2}})
    assert found.job.status.attempts == 1
    assert found.ray_job is not None


@pytest.mark.parametrize(
    ("seen", "directory"),
    [
        ({"rayJob": {"metadata": {"annotations": {"finetune.dev/storage": "s3://runs"}}}, "record": {}}, RUN),
        ({"rayJob": {}, "record": {}}, RUN),
        ({"rayJob": {}, "record": {"checkpoints": []}}, f"s3://elsewhere/team/tune-{UID}"),
        ({"rayJob": {}}, f"s3://elsewhere/team/tune-{UID}"),
        ({"job": {"spec": {"storage": {"path": "pvc://c"}}}, "record": {}}, f"pvc://c/team/tune-{UID}"),
    ],
)
def test_run_stays_where_it_is_when_the_default_storage_is_another_one(seen: Json, directory: str) -> None:
    assert status_of(seen, {"storage": "s3://elsewhere"}).run_directory == directory


@pytest.mark.parametrize(("attempt", "interruptions"), [(1, None), (4, None), (5, 1), (9, 5)])
def test_attempts_beyond_the_limit_have_followed_interruptions(
    attempt: int, interruptions: int | None
) -> None:
    assert status_of({"job": {}, "record": {"attempt": attempt}}).interruptions == interruptions
