"""What is known of the cluster: the latest of what watches, reads and writes have told, and nothing else."""

from __future__ import annotations

from typing import cast

import pytest
from pydantic import JsonValue
from tests.operator.cases import Json, observed

from finetune_api.assignment import RECORD_KEY
from finetune_api.manifest import KIND
from finetune_api.status import Phase
from finetune_operator.cluster.caches import REMEMBERED_SECONDS, LostPods, WatchCaches
from finetune_operator.names import JOB_UID
from finetune_operator.observed import ConfigMap, EndedJob, KubernetesObject, Pod, RayCluster, RayJob

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


NAMESPACE = "team"


def a_job(version: int, phase: str = "Running", **metadata: JsonValue) -> KubernetesObject:
    return {
        "metadata": {
            "name": "tune",
            "namespace": NAMESPACE,
            "uid": "job",
            "resourceVersion": str(version),
            **metadata,
        },
        "spec": {"model_id": "m"},
        "status": {"phase": phase},
    }


def child(
    version: int, uid: str = "child", namespace: str = NAMESPACE, **content: JsonValue
) -> KubernetesObject:
    metadata: dict[str, JsonValue] = {
        "name": uid,
        "namespace": namespace,
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {JOB_UID: "job"},
        "ownerReferences": [{"uid": "job"}],
    }
    return {"metadata": metadata, **content}


def record(caches: WatchCaches) -> list[str | None]:
    return [each.record for each in caches.children(ConfigMap, "job")]


def with_record(version: int, text: str) -> KubernetesObject:
    return child(version, data={RECORD_KEY: text, "job.yaml": "model_id: m"})


def test_latest_version_counts_whoever_brings_it() -> None:
    caches = WatchCaches(Clock())
    assert caches.put("ConfigMap", with_record(9, "nine"))
    assert not caches.put("ConfigMap", with_record(8, "eight")), "a watch that is late"
    assert not caches.put("ConfigMap", with_record(9, "nine")), "what was written comes by"
    assert record(caches) == ["nine"]
    assert caches.put("ConfigMap", with_record(10, "ten")), "versions are numbers"
    assert record(caches) == ["ten"]


def test_status_that_was_written_is_not_taken_back_by_a_watch_that_is_late() -> None:
    caches = WatchCaches(Clock())
    caches.put(KIND, a_job(5))
    job = caches.job("job")
    assert job is not None
    metadata = job.metadata.model_copy(update={"resource_version": "7"})
    caches.replace(job.model_copy(update={"metadata": metadata}))
    assert not caches.put(KIND, a_job(6))
    assert not caches.put(KIND, a_job(7))
    assert caches.job("job") is not None
    assert caches.versions(KIND, NAMESPACE) == {"job": 7}
    assert caches.put(KIND, a_job(8, generation=2))


def test_what_is_gone_does_not_come_back_by_an_answer_that_was_under_way() -> None:
    clock = Clock()
    caches = WatchCaches(clock)
    caches.put("RayJob", child(5))
    assert caches.gone("RayJob", NAMESPACE, "child", "7")
    assert caches.is_gone("child")
    assert not caches.put("RayJob", child(6))
    assert caches.children(RayJob, "job") == []
    assert not caches.gone("RayJob", NAMESPACE, "child", "7")


def test_what_was_out_of_the_watch_s_sight_is_known_again() -> None:
    caches = WatchCaches(Clock())
    caches.put("ConfigMap", with_record(5, "a"))
    caches.gone("ConfigMap", NAMESPACE, "child", "6")
    assert caches.put("ConfigMap", with_record(7, "b")), "its label is back"
    assert not caches.gone("ConfigMap", NAMESPACE, "child", "6")
    assert record(caches) == ["b"]


def test_what_is_gone_is_forgotten_after_some_minutes() -> None:
    clock = Clock()
    caches = WatchCaches(clock)
    for number in range(100):
        caches.put("Pod", child(number + 1, uid=f"pod-{number}"))
        caches.gone("Pod", NAMESPACE, f"pod-{number}")
        clock.now += REMEMBERED_SECONDS / 5
    assert sum(caches.is_gone(f"pod-{number}") for number in range(100)) < 10


def test_list_of_a_job_s_objects_says_what_is_gone_but_for_what_is_younger() -> None:
    caches = WatchCaches(Clock())
    for version, uid in ((3, "stays"), (4, "goes"), (9, "younger")):
        caches.put("Pod", child(version, uid=uid))
    caches.put("RayCluster", child(2, uid="of-another-kind"))
    caches.found("Pod", NAMESPACE, "job", [child(3, uid="stays"), child(5, uid="new")], "8")
    assert [each.name for each in caches.children(Pod, "job")] == ["new", "stays", "younger"]
    assert len(caches.children(RayCluster, "job")) == 1


def test_ray_job_of_somebody_else_is_not_taken_for_the_job_s() -> None:
    caches = WatchCaches(Clock())
    body = child(5)
    body["metadata"] = {**cast("dict[str, JsonValue]", body["metadata"]), "ownerReferences": []}
    assert not caches.put("RayJob", body)
    assert caches.children(RayJob, "job") == []


def test_of_a_job_that_has_ended_next_to_nothing_is_kept_until_something_happens_to_it() -> None:
    caches = WatchCaches(Clock())
    caches.put(KIND, a_job(5, "Succeeded"))
    for kind in ("RayJob", "Pod", "RayCluster", "ConfigMap"):
        caches.put(kind, child(6, uid=kind))
    job = caches.job("job")
    assert job is not None
    caches.keep_only_its_end(job)
    assert caches.job("job") is None
    assert list(caches.ended()) == [EndedJob(NAMESPACE, "tune", Phase.SUCCEEDED)]
    assert caches.key_of("job") == (NAMESPACE, "tune")
    assert caches.children(RayJob, "job") == []
    assert caches.children(Pod, "job") == []
    assert caches.children(ConfigMap, "job") == []
    assert len(caches.children(RayCluster, "job")) == 1, "it may have to be deleted"

    for kind in ("RayJob", "Pod", "RayCluster", "ConfigMap"):
        assert not caches.put(kind, child(6, uid=kind)), "a watch that begins anew"
        assert not caches.put(kind, child(7, uid=kind)) or kind in ("RayJob", "RayCluster")
    assert caches.put(KIND, a_job(8, "Succeeded", generation=2))
    assert caches.job("job") is not None
    assert list(caches.ended()) == []


def test_what_a_comparison_finds_gone_is_named_by_its_job() -> None:
    caches = WatchCaches(Clock())
    caches.put("RayJob", child(5))
    assert caches.lose("RayJob", "child", 4) is None, "it is younger than the list"
    assert caches.lose("RayJob", "child", 5) == "job"
    assert caches.children(RayJob, "job") == []
    assert caches.lose("RayJob", "child", 6) is None


def test_nothing_is_kept_of_a_namespace_that_is_given_up_and_all_of_it_is_news_again() -> None:
    caches = WatchCaches(Clock())
    caches.put(KIND, a_job(5))
    caches.put("Pod", child(6))
    caches.put("Pod", child(6, uid="elsewhere", namespace="another"))
    caches.forget(NAMESPACE)
    assert caches.job("job") is None
    assert [each.name for each in caches.children(Pod, "job")] == ["elsewhere"]
    assert caches.put("Pod", child(6))
    assert caches.versions("Pod", "") == {"elsewhere": 6, "child": 6}
