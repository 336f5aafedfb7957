"""What a Ray cluster waits for: the gravest first, in a line."""

from __future__ import annotations

import pytest
from tests.operator.cases import Json, observed

from finetune_operator.decide.obstacles import first_obstacle
from finetune_operator.decide.wait import Obstacle, Wait


def stuck(message: str) -> Json:
    return {
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        ]
    }


def held(reason: str, *, init: bool = False) -> Json:
    return {
        ("initContainerStatuses" if init else "containerStatuses"): [
            {"name": "c", "image": "i:1", "state": {"waiting": {"reason": reason, "message": "m"}}}
        ]
    }


def killed(kind: str) -> Json:
    return {
        "containerStatuses": [{"name": "c", kind: {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]
    }


QUOTA: Json = {
    "status": {
        "conditions": [
            {
                "type": "ReplicaFailure",
                "status": "True",
                "reason": "FailedCreateWorkerPod",
                "message": "quota",
            }
        ]
    }
}


def wait(*pods: Json, clusters: list[Json] | None = None) -> Wait:
    seen = observed(
        {
            "rayJob": {
                "status": {"jobDeploymentStatus": "Initializing", "rayClusterName": "tune-11111111-1-abcde"}
            },
            "rayClusters": list(clusters or []),
            "pods": list(pods),
        }
    )
    return first_obstacle(seen, 2)


MEMORY: Json = {"worker": "a", "status": killed("lastState")}
EVICTED: Json = {"worker": "e", "status": {"phase": "Failed", "reason": "Evicted", "message": "disk"}}
GATED: Json = {
    "worker": "g",
    "spec": {"schedulingGates": [{"name": "quota"}, {"name": "topology"}]},
    "status": {
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "m"}
        ]
    },
}
UNSCHEDULABLE: Json = {"worker": "b", "status": stuck("no room")}
IMAGE: Json = {"worker": "c", "status": held("ErrImagePull")}
CONTAINER: Json = {"worker": "d", "status": held("CrashLoopBackOff")}


@pytest.mark.parametrize(
    ("pods", "clusters", "obstacle"),
    [
        ([CONTAINER, IMAGE, UNSCHEDULABLE, EVICTED, MEMORY], [QUOTA], Obstacle.OUT_OF_MEMORY),
        ([CONTAINER, IMAGE, UNSCHEDULABLE, EVICTED], [QUOTA], Obstacle.REFUSED),
        ([CONTAINER, IMAGE, UNSCHEDULABLE, GATED, EVICTED], [], Obstacle.LOST),
        ([CONTAINER, IMAGE, UNSCHEDULABLE, GATED], [], Obstacle.GATED),
        ([CONTAINER, IMAGE, UNSCHEDULABLE], [], Obstacle.UNSCHEDULABLE),
        ([CONTAINER, IMAGE], [], Obstacle.IMAGE_PULL),
        ([CONTAINER], [], Obstacle.CONTAINER),
        ([], [], Obstacle.STARTING),
    ],
)
def test_gravest_obstacle_is_told(pods: list[Json], clusters: list[Json], obstacle: Obstacle) -> None:
    assert wait(*pods, clusters=clusters).obstacle is obstacle


@pytest.mark.parametrize(
    "reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"]
)
@pytest.mark.parametrize("init", [False, True], ids=["container", "init container"])
def test_image_that_does_not_come_is_told(reason: str, init: bool) -> None:
    assert wait({"head": "h", "status": held(reason, init=init)}) == Wait(
        Obstacle.IMAGE_PULL, f"pod h cannot get the image i:1 ({reason}): m"
    )


@pytest.mark.parametrize(
    "reason", ["CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"]
)
def test_container_that_does_not_start_is_told(reason: str) -> None:
    assert wait({"worker": "w", "status": held(reason)}) == Wait(
        Obstacle.CONTAINER, f"a container of pod w does not start ({reason}): m"
    )


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_container_that_starts_is_no_obstacle(reason: str) -> None:
    assert wait({"worker": "w", "status": held(reason)}).obstacle is Obstacle.STARTING


def test_gates_of_a_pod_are_named() -> None:
    assert wait(GATED).message.startswith("pod g is held back by a scheduling gate (quota, topology), which")


def test_what_a_submitter_asks_for_is_said_where_no_node_takes_it() -> None:
    assert wait({"submitter": "s", "status": stuck("0/9 nodes")}).message == (
        "no node takes pod s: 0/9 nodes; what it asks for is spec.cluster.submitter.resources"
    )


def test_pod_that_is_being_deleted_is_nobodys_obstacle() -> None:
    assert (
        wait({**UNSCHEDULABLE, "metadata": {"deletionTimestamp": "2026-01-01T12:00:00Z"}}).obstacle
        is Obstacle.STARTING
    )


def test_refusal_of_another_rayjobs_cluster_is_not_ours() -> None:
    assert (
        wait(clusters=[{**QUOTA, "metadata": {"name": "tune-11111111-0-abcde"}}]).obstacle
        is Obstacle.STARTING
    )


def test_refusal_that_is_over_is_none() -> None:
    over: Json = {
        "status": {
            "conditions": [{"type": "ReplicaFailure", "status": "False", "reason": "FailedCreateWorkerPod"}]
        }
    }
    assert wait(clusters=[over]).obstacle is Obstacle.STARTING


def test_message_is_a_line_of_bounded_length() -> None:
    message = wait({"worker": "w", "status": stuck("no room\n" * 1000)}).message
    assert message.startswith("no node takes pod w: no room no room")
    assert len(message) <= 603
    assert "\n" not in message
