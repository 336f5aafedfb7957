"""Tokens are taken from the user's cache where they are those of the file, and from nowhere else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.trainer.plan.test_kept_tokens import same
from tests.trainer.plan.test_prepare import TURNS, write_rows
from tests.trainer.training_jobs import LORA, some_rows, spec_of

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data import reading
from finetune_trainer.data.encoding import LineEncoder
from finetune_trainer.data.remarks import Found, Remarks
from finetune_trainer.data.token_files import ARRAYS, DESCRIPTION, Description
from finetune_trainer.data.token_files import write_rows as write_tokens
from finetune_trainer.data.tokens import FileTokens, RowWriter, TokenizedRows
from finetune_trainer.plan import token_cache, tokenization
from finetune_trainer.plan.prepare import prepare
from finetune_trainer.plan.token_cache import TokenCache

ROWS = some_rows(5)
REMARKS = Remarks(ignored_keys={"id": Found(rows=2, first=1)})


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "tokens")


def add(cache: TokenCache, key: str, rows: TokenizedRows = ROWS) -> FileTokens:
    private = cache.private_directory()
    write_tokens(rows, private)
    return cache.add(private, key, FileTokens(rows, REMARKS))


def is_taken(cache: TokenCache, key: str) -> bool:
    return cache.take(key) is not None


def age(cache: TokenCache, key: str, seconds: float) -> None:
    used = (cache.directory / key).stat().st_mtime - seconds
    os.utime(cache.directory / key, (used, used))


def entries(cache: TokenCache) -> set[str]:
    return {entry.name for entry in cache.directory.iterdir()}


def test_what_is_taken_is_what_was_added_mapped_from_its_files(cache: TokenCache) -> None:
    assert not is_taken(cache, "key")
    add(cache, "key")

    taken = cache.take("key")

    assert taken is not None
    assert taken.remarks == REMARKS
    assert all(np.array_equal(getattr(taken.rows, name), getattr(ROWS, name)) for name in ARRAYS)
    assert taken.rows.directory == cache.directory / "key"
    assert not is_taken(cache, "another key")


@pytest.mark.parametrize("name", [*(f"{array}.npy" for array in ARRAYS), DESCRIPTION])
@pytest.mark.parametrize("damage", ["changed", "cut off", "gone"])
def test_what_is_damaged_is_not_taken_and_makes_room(cache: TokenCache, name: str, damage: str) -> None:
    add(cache, "key")
    file = cache.directory / "key" / name
    content = file.read_bytes()
    if damage == "changed":
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "cut off":
        file.write_bytes(content[:-1])
    else:
        file.unlink()

    assert not is_taken(cache, "key")
    assert entries(cache) == set()
    add(cache, "key")
    assert is_taken(cache, "key")


def test_tokens_of_another_version_of_the_form_are_not_taken(
    cache: TokenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(
            "finetune_trainer.data.token_files.Description",
            lambda **fields: Description.model_construct(**{**fields, "version": 2}),
        )
        add(cache, "key")

    assert not is_taken(cache, "key")


def test_of_two_processes_that_make_the_same_both_have_it(cache: TokenCache) -> None:
    first, second = cache.private_directory(), cache.private_directory()
    made = []
    for private in (first, second):
        write_tokens(ROWS, private)
        made.append(cache.add(private, "key", FileTokens(ROWS, REMARKS)))

    assert [tokens.rows.input_ids.tolist() for tokens in made] == [ROWS.input_ids.tolist()] * 2
    assert is_taken(cache, "key")


def test_beyond_its_size_what_was_used_longest_ago_goes(
    cache: TokenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "_held", [])
    for hours, key in [(3, "old"), (4, "older"), (2, "new")]:
        add(cache, key)
        age(cache, key, hours * 3600)
    for descriptor in token_cache._held:
        os.close(descriptor)
    size = sum(file.stat().st_size for file in (cache.directory / "new").iterdir())

    add(TokenCache(cache.directory, largest=3 * size + 100), "newest")

    assert entries(cache) == {"old", "new", "newest"}


def test_what_is_in_use_or_was_an_hour_ago_stays(cache: TokenCache) -> None:
    add(cache, "used")
    age(cache, "used", 7200)
    add(cache, "now")

    add(TokenCache(cache.directory, largest=0), "newest")

    assert entries(cache) == {"used", "now", "newest"}


def test_what_a_process_that_died_has_left_goes(cache: TokenCache) -> None:
    left = cache.directory / ".private-left"
    left.mkdir(parents=True)
    (left / "input_ids.npy").write_bytes(b"half")
    os.utime(left, (1, 1))

    add(cache, "key")

    assert entries(cache) == {"key"}


def test_where_the_cache_cannot_be_written_tokens_are_among_temporary_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TokenCache(tmp_path / "file" / "tokens")

    made = add(cache, "key")

    assert made.rows.input_ids.tolist() == ROWS.input_ids.tolist()
    assert not is_taken(cache, "key")


# Of a job


@pytest.fixture
def spec(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FineTuneJobSpec:
    """A job whose rows are no small file, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenization, "SMALL_BYTES", 1)
    shutil.copytree(tiny_model, tmp_path / "model")
    return spec_of(
        tmp_path / "model",
        LORA,
        train_path=write_rows(tmp_path / "train.jsonl", *TURNS, ("Long?", "x " * 600)),
        valid_path=write_rows(tmp_path / "valid.jsonl", TURNS[1], ("New?", "Yes.")),
        task="instruction_tuning",
        context_length=64,
    )


def test_a_job_is_prepared_alike_with_and_without_what_is_cached(
    spec: FineTuneJobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as small:
        small.setattr(tokenization, "SMALL_BYTES", 2**30)
        in_memory = prepare(spec)
    first = prepare(spec)
    monkeypatch.setattr(reading, "encoded", lambda *_: pytest.fail("rows are tokenized again"), raising=True)
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").rename(tmp_path / f"{name}-moved.jsonl")
    moved = {f"{name}_path": str(tmp_path / f"{name}-moved.jsonl") for name in ("train", "valid")}

    again = prepare(spec.model_copy(update=moved))

    assert same(first, in_memory)
    assert again.plan == first.plan
    assert again.fingerprint == first.fingerprint
    assert first.train.directory is not None


def _rows(spec: FineTuneJobSpec, _: pytest.MonkeyPatch) -> dict[str, object]:
    write_rows(Path(spec.data_paths[0]), *reversed(TURNS))
    return {}


def _task(_: FineTuneJobSpec, __: pytest.MonkeyPatch) -> dict[str, object]:
    return {"task": "causal_lm"}


def _template(spec: FineTuneJobSpec, _: pytest.MonkeyPatch) -> dict[str, object]:
    file = Path(spec.model_id) / "chat_template.jinja"
    file.write_text(file.read_text() + "{# another #}")
    return {}


def _version(_: FineTuneJobSpec, patch: pytest.MonkeyPatch) -> dict[str, object]:
    patch.setattr(tokenization, "version", lambda _: "0.0.1")
    return {}


@pytest.mark.parametrize("change", [_rows, _task, _template, _version])
def test_where_what_decides_tokens_has_changed_they_are_made_anew(
    spec: FineTuneJobSpec, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    assert callable(change)
    prepare(spec)
    changed = spec.model_copy(update=change(spec, monkeypatch))
    made: list[str] = []

    def read(path: str, encoder: LineEncoder, writer: RowWriter) -> tuple[FileTokens, str]:
        made.append(path)
        return reading.read_tokens(path, encoder, writer)

    monkeypatch.setattr(tokenization, "read_tokens", read)
    prepare(changed)

    assert made[:1] == [spec.train_path]
