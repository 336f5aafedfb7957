"""The events that `kubectl describe` shows: each transition once."""

from __future__ import annotations

import pytest
from pydantic import JsonValue
from tests.operator.cases import RUN, Json, observed

from finetune_api.status import FineTuneJobStatus
from finetune_operator.decide.events import transitions


def status(state: str | None = None, **changes: JsonValue) -> FineTuneJobStatus:
    return observed({"job": {"state": state, "status": changes}}).job.status if state else FineTuneJobStatus()


def posted(before: FineTuneJobStatus, after: FineTuneJobStatus, *remarks: str) -> list[str]:
    return [f"{event.type} {event.reason}" for event in transitions(before, after, remarks)]


def saved(epoch: int, loss: float | None = None, *, best: bool = False) -> Json:
    return {
        "name": f"epoch-{epoch}",
        "path": f"{RUN}/epoch-{epoch}",
        "epoch": epoch + 1,
        "step": 2 * epoch + 2,
        "evalLoss": loss,
        "time": "2026-01-01T11:50:00Z",
        "best": best,
    }


@pytest.mark.parametrize(
    "state", ["asked", "starting", "running", "retrying", "suspended", "succeeded", "failed"]
)
def test_nothing_is_told_twice(state: str) -> None:
    assert posted(status(state), status(state), "a remark") == []


@pytest.mark.parametrize(
    ("before", "after", "events"),
    [
        (None, "asked", ["Normal Accepted", "Warning SpecRemark", "Normal ClusterRequested"]),
        ("asked", "starting", []),
        ("starting", "running", ["Normal CheckpointSaved", "Normal Running"]),
        ("running", "retrying", ["Warning Retrying"]),
        ("running", "suspended", ["Normal Suspended"]),
        ("running", "succeeded", ["Normal Succeeded"]),
        ("running", "failed", ["Warning Failed"]),
    ],
)
def test_turn_of_a_job_is_told(before: str | None, after: str, events: list[str]) -> None:
    assert posted(status(before), status(after), "a remark") == events


def test_cluster_of_each_attempt_is_told() -> None:
    second = status("retrying", attempts=2, rayJobName="tune-11111111-2")
    assert [event.message for event in transitions(status("retrying"), second)] == [
        "RayJob tune-11111111-2: 1 worker pod with CPU"
    ]


def test_every_new_checkpoint_is_told_and_no_old_one() -> None:
    before = status("running", checkpoints=[saved(0)], latestCheckpoint=saved(0))
    after = status("running", checkpoints=[saved(0), saved(1), saved(2)], latestCheckpoint=saved(2))
    assert [event.message for event in transitions(before, after)] == [
        "epoch-1 after epoch 2",
        "epoch-2 after epoch 3",
    ]


def test_newest_is_no_news_as_the_best_without_validation() -> None:
    before, after = (status("running", bestCheckpoint=saved(epoch)) for epoch in (0, 1))
    assert posted(before, after) == []
    before, after = (status("running", bestCheckpoint=saved(epoch, 2.0 - epoch)) for epoch in (0, 1))
    assert posted(before, after) == ["Normal NewBest"]


def test_failure_is_told_with_its_class() -> None:
    (event,) = transitions(status("running"), status("failed"))
    assert event.message == "InvalidData: train.jsonl:17: messages is missing"


def test_message_is_no_longer_than_an_event_takes() -> None:
    (event,) = transitions(
        status("running"), status("failed", failure={"class": "Unknown", "message": "x" * 5000})
    )
    assert len(event.message) == 1024
    assert event.message.endswith("xxx…")
