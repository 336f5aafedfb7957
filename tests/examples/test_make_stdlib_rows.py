from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import make_stdlib_rows
from make_stdlib_rows import first_sentence

SCRIPT = Path(make_stdlib_rows.__file__)


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sine of x. Measured in radians.", "Return the sine of x."),
        ("\n    Remove a file\n    or a link.\n\n    More about it.\n    ", "Remove a file or a link."),
        ("Return what :func:`os.stat` does, for ``links``", "Return what os.stat does, for `links`."),
        (
            "Split a name, e.g. `usr.bin`, into its parts. Twice.",
            "Split a name, e.g. `usr.bin`, into its parts.",
        ),
    ],
)
def test_an_answer_is_the_first_sentence_on_one_line_without_markup(
    docstring: str, sentence: str | None
) -> None:
    assert first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    "docstring",
    [
        "Return x -> y, a new dictionary of them",
        "Too short.",
        f"Return {'very ' * 40}much.",
        "Point(x, y, z, and more)",
    ],
)
def test_what_is_not_a_sentence_of_an_answers_length_is_no_answer(docstring: str) -> None:
    assert first_sentence(docstring) is None


def _made(*switches: str) -> str:
    """What the script prints; it must print nothing else, no warning either."""
    run = subprocess.run(
        [sys.executable, "-I", "-S", *switches, SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert run.stderr == ""
    return run.stdout


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """Answers by their questions, in the order of the rows."""
    rows = [json.loads(line)["messages"] for line in _made("-W", "error").splitlines()]
    assert all([message["role"] for message in row] == ["user", "assistant"] for row in rows)
    assert len({user["content"] for user, _ in rows}) == len(rows)
    return {user["content"]: assistant["content"] for user, assistant in rows}


def test_each_row_is_a_question_about_a_name_and_an_answer_of_its_own(answers: dict[str, str]) -> None:
    assert len(set(answers.values())) == len(answers) > 1000
    assert all(question.startswith("What does `") and question.endswith("` do?") for question in answers)
    assert all(answer.endswith((".", "!", "?")) and "\n" not in answer for answer in answers.values())


def test_the_rows_are_about_what_a_module_offers_and_not_about_what_it_imports(
    answers: dict[str, str],
) -> None:
    assert answers["What does `os.getpid` do?"] == "Return the current process id."
    assert answers["What does `hex` do?"] == "Return the hexadecimal representation of an integer."
    assert "What does `tracemalloc.start` do?" in answers
    assert "What does `tracemalloc.Sequence` do?" not in answers
    assert "What does `os.Mapping` do?" not in answers
    assert "What does `ValueError` do?" not in answers


def test_the_rows_are_always_the_same(answers: dict[str, str]) -> None:
    lines = _made().splitlines()

    assert [json.loads(line)["messages"][1]["content"] for line in lines] == list(answers.values())
