"""What is said of a pod that its node has ended or not taken, in the kubelet's words."""

from __future__ import annotations

import pytest
from tests.operator.cases import Json, observed

from finetune_operator.decide.lost_pods import lost_pod
from finetune_operator.decide.wait import Obstacle, Wait


def failed(role: str, reason: str, message: str, phase: str = "Failed") -> Wait | None:
    status: Json = {"phase": phase, "reason": reason, "message": message}
    return lost_pod(observed({"pods": [{role: "p", "status": status}]}).pods)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("UnexpectedAdmissionError", "Pod was rejected: Allocate failed due to no healthy devices present"),
        ("OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu, requested: 4000, used: 2000"),
        ("OutOfmemory", "Node didn't have enough resource: memory"),
        ("OutOfnvidia.com/gpu", "Node didn't have enough resource: nvidia.com/gpu"),
        ("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed"),
        ("TopologyAffinityError", "Pod was rejected: Resources cannot be allocated with Topology locality"),
        ("Preempting", "Preempted in order to admit critical pod"),
        ("NodeShutdown", "Pod was rejected as the node is shutting down."),
        ("Terminated", "Pod was terminated in response to imminent node shutdown."),
    ],
)
def test_reason_that_another_node_cures_is_a_lost_pod(reason: str, message: str) -> None:
    text = message.removesuffix(".")
    assert failed("worker", reason, message) == Wait(Obstacle.LOST, f"pod p has failed ({reason}): {text}")


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        (
            "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
            "raise spec.cluster.head.resources.limits.ephemeral-storage",
        ),
        (
            'Container head exceeded its local ephemeral storage limit "1Gi". ',
            "raise spec.cluster.head.resources.limits.ephemeral-storage",
        ),
        (
            'Container istio-proxy exceeded its local ephemeral storage limit "1Gi". ',
            "whoever adds this container to pods sets its limit",
        ),
        (
            'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". ',
            "raise its sizeLimit in spec.cluster.volumes",
        ),
        (
            'Usage of EmptyDir volume "shared-mem" exceeds the limit "1Gi". ',
            "raise spec.cluster.head.resources.limits.memory",
        ),
    ],
)
def test_limit_of_the_pods_own_is_one_that_no_node_cures(message: str, advice: str) -> None:
    assert failed("head", "Evicted", message) == Wait(
        Obstacle.OUT_OF_STORAGE, f"pod p was evicted: {message.strip('. ')}; {advice}"
    )


def test_node_that_is_full_is_one_that_another_node_cures() -> None:
    memory, storage = (
        failed("worker", "Evicted", f"The node was low on resource: {each}. ")
        for each in ("memory", "ephemeral-storage")
    )
    assert memory == Wait(Obstacle.LOST, "pod p was evicted: The node was low on resource: memory")
    assert storage is not None
    assert storage.obstacle is Obstacle.LOST
    assert "spec.cluster.worker.resources.requests.ephemeral-storage" in storage.message


def test_pod_that_has_not_failed_is_not_lost() -> None:
    assert failed("worker", "", "", "Running") is None
    assert failed("submitter", "", "", "Failed") is None
