"""When a watch counts as silent: what was read or written has not come on it, and for no other reason."""

from __future__ import annotations

import pytest

from finetune_operator.cluster.freshness import STALE_SECONDS, Freshness


class Clock:
    """Stands still until it is told how late it is."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def freshness(clock: Clock) -> Freshness:
    return Freshness(clock)


def stale_after(freshness: Freshness, clock: Clock, seconds: float = STALE_SECONDS + 1) -> bool:
    clock.now += seconds
    return freshness.is_stale()


def test_a_watch_that_owes_nothing_is_never_stale(freshness: Freshness, clock: Clock) -> None:
    assert not stale_after(freshness, clock, 1e6)
    assert freshness.stale_seconds() == 0


def test_a_version_that_was_read_and_does_not_come_by_makes_it_stale_after_two_minutes(
    freshness: Freshness, clock: Clock
) -> None:
    freshness.expect("job", "5")

    assert not stale_after(freshness, clock, STALE_SECONDS)
    assert freshness.stale_seconds() == STALE_SECONDS
    assert stale_after(freshness, clock, 0.001)


@pytest.mark.parametrize("version", ["5", "6", "1000000000000000000000"])
def test_the_version_or_a_later_one_settles_it(freshness: Freshness, clock: Clock, version: str) -> None:
    freshness.expect("job", "5")

    freshness.watched("job", version)

    assert not stale_after(freshness, clock)


def test_versions_are_numbers(freshness: Freshness, clock: Clock) -> None:
    freshness.expect("job", "10")

    freshness.watched("job", "9")

    assert stale_after(freshness, clock)


def test_an_earlier_version_settles_nothing(freshness: Freshness, clock: Clock) -> None:
    freshness.expect("job", "5")

    freshness.watched("job", "4")

    assert stale_after(freshness, clock)


def test_what_has_come_by_already_is_not_waited_for(freshness: Freshness, clock: Clock) -> None:
    freshness.watched("job", "7")

    freshness.expect("job", "7")
    freshness.expect("job", "6")

    assert not stale_after(freshness, clock)


def test_a_watch_that_tells_an_old_version_late_does_not_go_back(freshness: Freshness, clock: Clock) -> None:
    freshness.watched("job", "7")
    freshness.watched("job", "5")

    freshness.expect("job", "6")

    assert not stale_after(freshness, clock)


def test_an_object_that_is_written_again_and_again_does_not_hide_that_the_watch_is_silent(
    freshness: Freshness, clock: Clock
) -> None:
    for version in range(10, 30):
        freshness.expect("job", str(version))
        clock.now += STALE_SECONDS / 10

    assert freshness.is_stale()


def test_the_oldest_debt_counts(freshness: Freshness, clock: Clock) -> None:
    freshness.expect("job", "1")
    clock.now += 50
    freshness.expect("another", "2")
    clock.now += 10

    assert freshness.stale_seconds() == 60
    freshness.watched("job", "1")
    assert freshness.stale_seconds() == 10


def test_each_object_is_on_its_own(freshness: Freshness, clock: Clock) -> None:
    freshness.expect("job", "5")

    freshness.watched("another", "6")

    assert stale_after(freshness, clock)


def test_an_object_that_is_gone_owes_nothing(freshness: Freshness, clock: Clock) -> None:
    freshness.expect("job", "5")

    freshness.forget("job")

    assert not stale_after(freshness, clock)


def test_an_answer_that_was_under_way_when_the_object_went_owes_nothing_either(
    freshness: Freshness, clock: Clock
) -> None:
    freshness.watched("job", "4")
    freshness.forget("job")

    freshness.expect("job", "5")

    assert not stale_after(freshness, clock)


def test_an_object_that_comes_back_to_the_watch_is_waited_for_again(
    freshness: Freshness, clock: Clock
) -> None:
    freshness.forget("the label was taken away")
    freshness.watched("the label was taken away", "5")

    freshness.expect("the label was taken away", "6")

    assert stale_after(freshness, clock)


def test_what_is_gone_is_not_remembered_for_ever(freshness: Freshness, clock: Clock) -> None:
    for number in range(100):
        freshness.watched(f"job {number}", "1")
        freshness.forget(f"job {number}")
        clock.now += STALE_SECONDS

    assert sum(len(known) for known in vars(freshness).values() if isinstance(known, dict)) < 10


def test_a_version_that_is_no_number_is_not_waited_for(freshness: Freshness, clock: Clock) -> None:
    freshness.watched("job", "")

    freshness.expect("job", "")

    assert not stale_after(freshness, clock)


def test_watches_that_were_ended_owe_nothing(freshness: Freshness, clock: Clock) -> None:
    freshness.expect("job", "5")

    freshness.start_over()

    assert not stale_after(freshness, clock)
    freshness.expect("job", "6")
    assert stale_after(freshness, clock)
