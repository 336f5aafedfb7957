"""What is deleted of a job that is gone, and when nothing is left to do about one that has ended."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import JsonValue

from finetune_api.status import FineTuneJobStatus
from finetune_operator.decide.cleanup import after_the_end, is_done_with, release
from finetune_operator.decide.decision import Decision
from finetune_operator.observed import Job, ObjectMeta, Observed, RayCluster, RayJob, RayJobStatus

DELETED = datetime(2026, 1, 1, 12, tzinfo=UTC)
CLUSTER = RayCluster(metadata=ObjectMeta(name="c", uid="the-ray-cluster"))
GOING = RayJob(metadata=ObjectMeta(name="j", uid="the-ray-job", deletion_timestamp=DELETED))


@pytest.mark.parametrize(
    ("ray_jobs", "clusters", "seconds", "deleted", "again"),
    [
        ([GOING], [CLUSTER], 4, [], 6),
        ([GOING], [CLUSTER], 10, ["the-ray-cluster"], 10),
        ([GOING], [], 10, [], math.inf),
        ([], [CLUSTER], 10, [], math.inf),
        ([RayJob(metadata=ObjectMeta(name="j", uid="the-ray-job"))], [CLUSTER], 10, [], math.inf),
    ],
    ids=[
        "KubeRay has 10 s",
        "KubeRay does not answer",
        "all is gone",
        "the garbage collector's",
        "nobody has deleted the RayJob yet",
    ],
)
def test_cluster_of_a_deleted_job_is_deleted_when_kuberay_does_not(
    ray_jobs: list[RayJob], clusters: list[RayCluster], seconds: int, deleted: list[str], again: float
) -> None:
    deletions, requeue_after = release(ray_jobs, clusters, DELETED + timedelta(seconds=seconds))
    assert [each.uid for each in deletions] == deleted
    assert (requeue_after.total_seconds() if requeue_after else math.inf) == again


ENDED = RayJob(
    metadata=ObjectMeta(name="j", uid="the-ray-job"), status=RayJobStatus(job_deployment_status="Complete")
)
RUNS = RayJob(
    metadata=ObjectMeta(name="j", uid="the-ray-job"), status=RayJobStatus(job_deployment_status="Running")
)


@pytest.mark.parametrize(
    ("ray_jobs", "policy", "generation", "completed", "done"),
    [
        ([ENDED], {}, 1, DELETED, True),
        ([ENDED, ENDED], {"backoff_limit": 1}, 1, DELETED, True),
        ([ENDED], {}, 1, None, False),
        ([ENDED], {"ttl_seconds_after_finished": 60}, 1, DELETED, False),
        ([ENDED], {}, 2, DELETED, False),
        ([ENDED, RUNS], {}, 1, DELETED, False),
        ([], {}, 1, DELETED, False),
    ],
    ids=[
        "ended",
        "after two attempts",
        "runs",
        "is deleted later",
        "spec changed",
        "holds devices",
        "prepared only",
    ],
)
def test_job_that_has_ended_is_done_with_when_nothing_is_left_to_do(
    ray_jobs: list[RayJob],
    policy: dict[str, JsonValue],
    generation: int,
    completed: datetime | None,
    done: bool,
) -> None:
    status = FineTuneJobStatus(observed_generation=1, completion_time=completed)
    metadata = ObjectMeta(name="j", uid="job", generation=generation)
    job = Job(metadata=metadata, spec={"run_policy": policy}, status=status)
    assert is_done_with(job, ray_jobs) is done
    if done:
        job = job.model_copy(update={"status": after_the_end(Observed(job), DELETED).status})
        decision = after_the_end(Observed(job, ray_job=ray_jobs[0]), DELETED)
        assert decision == Decision(job.status)
