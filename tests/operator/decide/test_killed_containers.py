"""Which container was killed for want of memory, and what gives that one more."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from tests.operator.cases import Json, observed

from finetune_operator.decide.killed_containers import out_of_memory
from finetune_operator.decide.wait import Obstacle
from finetune_operator.observed import Pod

ENDED = datetime(2026, 1, 1, 12, tzinfo=UTC)
KILLED: Json = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}


def pods(role: str, *containers: Json, init: Json | None = None) -> list[Pod]:
    status: Json = {"containerStatuses": list(containers), "initContainerStatuses": [init] if init else []}
    return list(observed({"pods": [{role: "p", "status": status}]}).pods)


@pytest.mark.parametrize("kind", ["state", "lastState"])
@pytest.mark.parametrize(
    ("role", "advice"),
    [
        ("head", "raise spec.cluster.head.resources.limits.memory"),
        ("submitter", "raise spec.cluster.submitter.resources.limits.memory"),
        (
            "worker",
            "raise spec.cluster.worker.resources.limits.memory, or lower spec.train_batch_size_per_device",
        ),
    ],
)
def test_field_that_is_to_be_raised_is_that_of_the_pod(role: str, advice: str, kind: str) -> None:
    found = out_of_memory(pods(role, {"name": role, kind: KILLED}))
    assert found is not None
    assert found.obstacle is Obstacle.OUT_OF_MEMORY
    assert found.message.startswith(f"pod p took more memory than its limit; {advice}")
    assert ("train_batch_size" in found.message) is (role == "worker")


def test_what_runs_or_has_ended_otherwise_was_not_killed() -> None:
    assert out_of_memory(pods("worker")) is None
    assert out_of_memory(pods("worker", {"name": "worker", "state": {"running": {}}})) is None
    ended_since: Json = {"terminated": {"reason": "Error"}}
    assert (
        out_of_memory(pods("worker", {"name": "worker", "state": ended_since, "lastState": KILLED})) is None
    )


@pytest.mark.parametrize("name", ["istio-proxy", "linkerd-proxy", "sidecar"])
def test_container_of_somebody_else_does_not_stand_for_the_pod(name: str) -> None:
    worker: Json = {"name": "worker", "state": {"running": {}}}
    assert out_of_memory(pods("worker", {"name": name, "state": KILLED}, worker), ENDED) is None


@pytest.mark.parametrize(
    ("runs_since", "counts"),
    [("11:54:59", False), ("11:55:00", True), ("11:59:59", True), ("12:00:30", True)],
)
def test_container_that_runs_again_was_why_for_five_minutes(runs_since: str, counts: bool) -> None:
    again: Json = {
        "name": "worker",
        "state": {"running": {"startedAt": f"2026-01-01T{runs_since}Z"}},
        "lastState": KILLED,
    }
    assert (out_of_memory(pods("worker", again), ENDED) is not None) is counts
    assert out_of_memory(pods("worker", again)) is None


def test_kuberays_init_container_counts_until_it_is_done() -> None:
    waits: Json = {"name": "wait-gcs-ready", "state": {"waiting": {}}, "lastState": KILLED}
    done: Json = {
        "name": "wait-gcs-ready",
        "state": {"terminated": {"reason": "Completed"}},
        "lastState": KILLED,
    }
    found = out_of_memory(pods("worker", init=waits))
    assert found is not None
    assert "ENABLE_INIT_CONTAINER_INJECTION" in found.message
    assert "spec.cluster" not in found.message
    assert out_of_memory(pods("worker", init=done), ENDED) is None
