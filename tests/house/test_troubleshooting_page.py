from __future__ import annotations

import re
from pathlib import Path

import pytest

from finetune_api.failure import FailureClass
from finetune_api.status import Phase
from finetune_operator.decide.attempts import RETRIED

PAGE = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text()
WAITING = (Phase.PENDING, Phase.PREPARING, Phase.QUEUED, Phase.STARTING)


def headings(chapter: str) -> list[str]:
    """The headings of the third level in a chapter."""
    return re.findall(
        r"^### (.+)$", PAGE.partition(f"\n## {chapter}\n")[2].partition("\n## ")[0], re.MULTILINE
    )


def section(heading: str) -> str:
    """What stands below a heading of the third level, each paragraph on one line."""
    text = re.split(r"\n##", PAGE.partition(f"\n### {heading}\n")[2])[0]
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def test_the_failed_job_has_a_section_for_each_class_and_no_other() -> None:
    assert sorted(headings("A job that has failed")) == sorted(FailureClass)


@pytest.mark.parametrize("failure_class", FailureClass)
def test_a_section_says_whether_the_failure_is_tried_again(failure_class: FailureClass) -> None:
    said = re.findall(r"\*\*(Tried again|Not tried again)\b", section(failure_class))

    assert said == ["Tried again" if failure_class in RETRIED else "Not tried again"]


def test_the_job_that_waits_has_a_section_for_each_phase_of_waiting() -> None:
    assert set(WAITING) <= set(headings("A job that waits"))
