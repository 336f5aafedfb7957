from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.retention import best, flagged, kept
from finetune_api.status import Checkpoint


def checkpoints(*eval_losses: float | None) -> list[Checkpoint]:
    """epoch-0, epoch-1, … with these validation losses."""
    return [
        Checkpoint(
            name=f"epoch-{index}",
            path="p",
            epoch=index + 1,
            step=index + 1,
            eval_loss=loss,
            time=datetime(2026, 1, 1, tzinfo=UTC),
        )
        for index, loss in enumerate(eval_losses)
    ]


@pytest.mark.parametrize(
    ("eval_losses", "num_to_keep", "names"),
    [
        ([3.0, 1.0, 2.0], 1, {"epoch-1"}),
        ([3.0, 1.0, 2.0], 2, {"epoch-1", "epoch-2"}),
        ([3.0, 1.0, 2.0], 5, {"epoch-0", "epoch-1", "epoch-2"}),
        ([2.0, 1.0, 1.0], 1, {"epoch-1"}),
        ([None, None, None], 2, {"epoch-1", "epoch-2"}),
        ([], 1, set()),
    ],
    ids=[
        "the lowest loss",
        "the two lowest",
        "no more than there are",
        "the earlier of equals",
        "the newest without validation",
        "none",
    ],
)
def test_a_finished_job_keeps_its_best_checkpoints(
    eval_losses: list[float | None], num_to_keep: int, names: set[str]
) -> None:
    assert kept(checkpoints(*eval_losses), num_to_keep, finished=True) == names


def test_a_running_job_keeps_the_newest_checkpoint_as_well() -> None:
    assert kept(checkpoints(3.0, 1.0, 2.5, 2.0), 1, finished=False) == {"epoch-1", "epoch-3"}


def test_the_newest_counts_once_when_it_is_the_best() -> None:
    assert kept(checkpoints(3.0, 2.0, 1.0), 1, finished=False) == {"epoch-2"}


def test_the_tenth_epoch_is_newer_than_the_ninth() -> None:
    assert kept(checkpoints(*range(11)), 1, finished=False) == {"epoch-0", "epoch-10"}


@given(st.lists(st.floats(0, 10)), st.integers(1, 5))
def test_deleting_after_each_epoch_ends_with_the_best_of_all(
    eval_losses: list[float], num_to_keep: int
) -> None:
    every = checkpoints(*eval_losses)
    present: list[Checkpoint] = []

    for checkpoint in every:
        stay = kept([*present, checkpoint], num_to_keep, finished=False)
        present = [one for one in [*present, checkpoint] if one.name in stay]

    assert kept(present, num_to_keep, finished=True) == kept(every, num_to_keep, finished=True)


def test_the_best_has_the_lowest_validation_loss_and_comes_first_among_equals() -> None:
    assert best(checkpoints(3.0, 1.0, 1.0, 2.0)) == checkpoints(3.0, 1.0)[1]


def test_without_validation_the_newest_is_the_best() -> None:
    assert best(checkpoints(None, None)) == checkpoints(None, None)[1]


def test_there_is_no_best_of_none() -> None:
    assert best([]) is None


def test_flags_mark_one_best_and_one_latest_in_the_order_of_saving() -> None:
    first, second, third = checkpoints(3.0, 1.0, 2.0)
    stale = first.model_copy(update={"best": True, "latest": True})

    marked = flagged([third, stale, second])

    assert [(one.name, one.best, one.latest) for one in marked] == [
        ("epoch-0", False, False),
        ("epoch-1", True, False),
        ("epoch-2", False, True),
    ]
