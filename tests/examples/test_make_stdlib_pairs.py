from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import make_stdlib_pairs


def _pairs(rows: Path) -> list[dict[str, list[dict[str, str]]]]:
    """What the script makes of a file of rows."""
    made = subprocess.run(
        [sys.executable, make_stdlib_pairs.__file__],
        input=rows.read_text(encoding="utf-8"),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in made.stdout.splitlines()]


def test_each_row_is_a_chosen_conversation_and_its_question_with_another_answer_the_rejected_one(
    stdlib_train: Path,
) -> None:
    rows = [json.loads(line)["messages"] for line in stdlib_train.read_text(encoding="utf-8").splitlines()]
    pairs = _pairs(stdlib_train)

    assert [pair["chosen"] for pair in pairs] == rows
    assert [pair["rejected"][:-1] for pair in pairs] == [row[:-1] for row in rows]
    assert all(pair["rejected"] != pair["chosen"] for pair in pairs)


def test_every_answer_is_preferred_as_often_as_it_is_rejected(stdlib_train: Path) -> None:
    pairs = _pairs(stdlib_train)
    chosen, rejected = (
        Counter(pair[side][-1]["content"] for pair in pairs) for side in ("chosen", "rejected")
    )

    assert chosen == rejected
