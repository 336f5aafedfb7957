"""docs/on-a-cluster.md names the phases, conditions and events that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from finetune_api.failure import FailureClass
from finetune_api.status import Phase
from finetune_operator.decide import conditions, events
from finetune_operator.decide.wait import Obstacle

PAGE = (Path(__file__).parents[2] / "docs/on-a-cluster.md").read_text()


def rows(chapter: str) -> Iterator[list[str]]:
    """The cells of the rows of a chapter's table, without its head."""
    text = PAGE.partition(f"\n## {chapter}\n")[2].partition("\n## ")[0]
    for line in [line for line in text.splitlines() if line.startswith("|")][2:]:
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def test_every_phase_is_explained() -> None:
    assert sorted(word for row in rows("Phases") for word in words(row[0])) == sorted(Phase)


def test_every_condition_is_explained_in_its_order_with_all_reasons() -> None:
    assert [row[0] for row in rows("Conditions")] == [f"`{kind}`" for kind in conditions.TYPES]
    named = {reason for row in rows("Conditions") for reason in re.findall(r"`(\w+)`", row[2])}
    assert named == {*get_args(conditions.Reason), *Obstacle}


def test_every_event_is_explained() -> None:
    assert sorted(row[0].strip("`") for row in rows("Events")) == sorted(get_args(events.Reason))


def test_every_class_of_failure_is_explained() -> None:
    assert sorted(word for row in rows("When it fails") for word in words(row[0])) == sorted(FailureClass)
