"""What is deleted of a job that is gone."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from finetune_operator.decide.cleanup import release
from finetune_operator.observed import ObjectMeta, RayCluster, RayJob

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
