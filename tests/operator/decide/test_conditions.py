"""Conditions, as `kubectl wait` and kstatus read them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from finetune_api.failure import FailureClass
from finetune_api.status import LONGEST_MESSAGE, Condition
from finetune_operator.decide.conditions import (
    Finding,
    Truth,
    condition,
    conditions,
    reconciling,
)

THEN, NOW = datetime(2026, 1, 1, 11, tzinfo=UTC), datetime(2026, 1, 1, 12, tzinfo=UTC)
BEFORE = [
    Condition(
        type="Stalled",
        status="False",
        reason="Progressing",
        message="",
        observed_generation=1,
        last_transition_time=THEN,
    ),
    Condition(
        type="Training",
        status="False",
        reason="Starting",
        message="",
        observed_generation=1,
        last_transition_time=THEN,
    ),
]


@pytest.mark.parametrize(("status", "since"), [("False", THEN), ("True", NOW), ("Unknown", NOW)])
def test_time_of_transition_changes_with_the_status_alone(status: Truth, since: datetime) -> None:
    (training,) = conditions(
        BEFORE[1:], {"Training": Finding(status, "ChangeIgnored", "other words")}, 2, NOW
    )
    assert (training.status, training.reason, training.message) == (status, "ChangeIgnored", "other words")
    assert training.last_transition_time == since
    assert training.observed_generation == 2


def test_condition_about_which_nothing_is_found_stays_and_follows_the_generation() -> None:
    found = condition(conditions(BEFORE, {}, 2, NOW), "Stalled")
    assert found == BEFORE[0].model_copy(update={"observed_generation": 2})


def test_order_is_always_the_same() -> None:
    found = conditions(
        BEFORE, {"Succeeded": Finding("Unknown", "InProgress"), "Accepted": Finding("True", "Valid")}, 1, NOW
    )
    assert [each.type for each in found] == ["Accepted", "Training", "Succeeded", "Stalled"]


def test_what_was_never_found_is_not_there() -> None:
    assert conditions([], {}, 1, NOW) == []
    assert condition([], "Accepted") is None


def test_message_is_cut_to_what_a_status_takes() -> None:
    (found,) = conditions(
        [], {"Accepted": Finding("False", FailureClass.INVALID_SPEC, "x" * (LONGEST_MESSAGE + 1))}, 1, NOW
    )
    assert (len(found.message), found.message[-4:]) == (LONGEST_MESSAGE, "xxx…")


@pytest.mark.parametrize(
    ("succeeded", "found"),
    [
        (None, Finding("True", "Progressing", "pods start")),
        (Finding("Unknown", "InProgress"), Finding("True", "Progressing", "pods start")),
        (Finding("True", "Succeeded"), Finding("False", "Ended")),
        (Finding("False", FailureClass.INVALID_DATA), Finding("False", "Ended")),
    ],
)
def test_job_is_reconciling_until_it_has_succeeded_or_failed(
    succeeded: Finding | None, found: Finding
) -> None:
    others = conditions([], {"Succeeded": succeeded} if succeeded else {}, 1, NOW)
    assert reconciling(others, "pods start") == found
