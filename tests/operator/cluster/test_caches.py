"""What is known of pods that are gone."""

from __future__ import annotations

import pytest
from tests.operator.cases import Json, observed

from finetune_operator.cluster.caches import REMEMBERED_SECONDS, LostPods
from finetune_operator.observed import Pod

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
