from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import make_inputs
from make_inputs import (
    PAIRS_TRAIN,
    PAIRS_VALIDATION,
    TOPICS_TRAIN,
    TOPICS_VALIDATION,
    TRAIN,
    TRAIN_LARGE,
    VALIDATION,
    inputs_directory,
    link,
    make_data,
    make_model,
)
from make_stdlib_topics import LABELS

EXAMPLES = Path(make_inputs.__file__).parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory in which nothing is made yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "finetune-operator" / "inputs"


def _rows(file: Path) -> list[tuple[str, str]]:
    """Question and answer of each row."""
    messages = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    return [(user["content"], assistant["content"]) for user, assistant in messages]


def test_no_question_and_no_answer_is_in_both_splits(cache: Path) -> None:
    make_data()
    validation, train, large = (_rows(cache / name) for name in (VALIDATION, TRAIN, TRAIN_LARGE))

    assert {question for question, _ in validation}.isdisjoint(question for question, _ in large)
    assert {answer for _, answer in validation}.isdisjoint(answer for _, answer in large)
    assert large[: len(train)] == train
    assert (len(validation), len(train)) == (32, 80)


def test_no_sentence_is_in_both_splits_of_the_topics_and_every_topic_is_in_both(cache: Path) -> None:
    make_data()
    validation, train = (_rows(cache / name) for name in (TOPICS_VALIDATION, TOPICS_TRAIN))

    assert {sentence for sentence, _ in validation}.isdisjoint(sentence for sentence, _ in train)
    assert {label for _, label in validation} == {label for _, label in train} == set(LABELS)
    assert (len(validation), len(train)) == (120, 480)


def test_making_the_data_again_gives_the_same_bytes_and_leaves_nothing_beside_them(cache: Path) -> None:
    make_data()
    first = {file.name: file.read_bytes() for file in cache.iterdir()}
    make_data()

    assert {file.name: file.read_bytes() for file in cache.iterdir()} == first
    pairs_and_topics = {PAIRS_VALIDATION, PAIRS_TRAIN, TOPICS_VALIDATION, TOPICS_TRAIN}
    assert first.keys() == {".lock", VALIDATION, TRAIN, TRAIN_LARGE} | pairs_and_topics


def test_data_of_another_python_is_replaced(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / TRAIN).write_text("{}\n")
    make_data()

    assert len(_rows(cache / TRAIN)) == 80


def test_what_else_is_installed_changes_no_row(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sched.py").write_text('def scheduler(): "Return something quite different."')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    make_data()

    assert "quite different" not in (cache / TRAIN_LARGE).read_text()


def test_without_a_cache_variable_the_inputs_are_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert inputs_directory() == tmp_path / ".cache" / "finetune-operator" / "inputs"


def test_the_link_follows_the_cache_and_replaces_nothing_but_a_link(tmp_path: Path) -> None:
    old, new, name = tmp_path / "old", tmp_path / "new", tmp_path / "inputs"
    link(old, name)
    link(new, name)
    assert name.readlink() == new

    name.unlink()
    name.mkdir()
    with pytest.raises(FileExistsError):
        link(new, name)


def test_a_model_that_cannot_be_fetched_leaves_nothing_and_says_so(cache: Path, tmp_path: Path) -> None:
    examples = shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("inputs"))
    shutil.copytree(EXAMPLES.parent / "locks", tmp_path / "locks")
    left_by_a_killed_run = cache / ".making" / "half.gguf"
    left_by_a_killed_run.parent.mkdir(parents=True)
    left_by_a_killed_run.touch()
    run = subprocess.run(
        [sys.executable, examples / "make_inputs.py", "--what", "model"],
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert run.returncode == 1
    assert "could not fetch the model" in run.stderr
    assert [file.name for file in cache.iterdir()] == [".lock"]
    assert (examples / "inputs").resolve() == cache


def test_a_model_that_is_there_is_not_made_again(smollm2: Path) -> None:
    before = [(file.name, file.stat().st_mtime_ns) for file in sorted(smollm2.iterdir())]

    assert make_model() == smollm2
    assert [(file.name, file.stat().st_mtime_ns) for file in sorted(smollm2.iterdir())] == before
