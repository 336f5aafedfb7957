"""What is known of pods and Ray clusters: of those that are gone, and when watches have begun again."""

from __future__ import annotations

from typing import cast

import kopf
import pytest
from tests.operator.cases import Json, observed

from finetune_operator.cluster.caches import REMEMBERED_SECONDS, LostPods, WatchCaches
from finetune_operator.observed import ObjectMeta, Pod, RayCluster

EVICTED: Json = {"phase": "Failed", "reason": "Evicted", "message": "disk"}
PREEMPTED: Json = {
    "phase": "Running",
    "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}],
}


def pod(name: str, status: Json) -> Pod:
    return observed({"pods": [{"worker": name, "status": status}]}).pods[0]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("status", [EVICTED, PREEMPTED], ids=["evicted", "preempted"])
def test_pod_that_was_lost_is_known_for_some_minutes_after_it_was_deleted(status: Json) -> None:
    clock = Clock()
    lost = LostPods(clock)
    lost.deleted("a-job", pod("w-0", status))
    clock.now = REMEMBERED_SECONDS - 1
    lost.deleted("a-job", pod("w-1", status))
    assert [each.name for each in lost.of("a-job")] == ["w-1", "w-0"]
    assert lost.of("another-job") == []
    clock.now += 2
    assert [each.name for each in lost.of("a-job")] == ["w-1"]


@pytest.mark.parametrize("status", [{"phase": "Running"}, {"phase": "Succeeded"}, {"phase": "Failed"}])
def test_pod_that_ends_with_its_cluster_was_not_lost(status: Json) -> None:
    lost = LostPods(Clock())
    lost.deleted("a-job", pod("w-0", status))
    assert lost.of("a-job") == []


def watched_pod(name: str, namespace: str) -> Pod:
    return Pod(metadata=ObjectMeta(name=name, namespace=namespace, uid=name))


def test_what_is_forgotten_is_known_again_when_a_watch_has_reported_it_anew() -> None:
    pods = {
        "job": [watched_pod("stays", "a"), watched_pod("goes", "b"), watched_pod("is-deleted-meanwhile", "b")]
    }
    clusters = {"job": [RayCluster(metadata=ObjectMeta(name="c", namespace="b", uid="c"))]}
    caches = WatchCaches(cast("kopf.Index[str, Pod]", pods), cast("kopf.Index[str, RayCluster]", clusters))

    caches.forget("b")
    assert [each.name for each in caches.pods("job")] == ["stays"]
    assert caches.clusters("job") == []

    pods["job"][1] = watched_pod("goes", "b")
    assert [each.name for each in caches.pods("job")] == ["stays", "goes"]

    caches.forget("another")
    assert [each.name for each in caches.pods("job")] == ["stays", "goes"]
    assert caches.pods("nobody") == []
