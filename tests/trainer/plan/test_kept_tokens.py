"""Tokens that are kept in a run directory are used where they are those of the rows, and there alone."""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue
from tests.trainer.plan.test_prepare import TURNS, write_rows
from tests.trainer.training_jobs import LORA, spec_of

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.token_files import ARRAYS, DESCRIPTION
from finetune_trainer.plan import tokenization
from finetune_trainer.plan.kept_tokens import TokensToKeep, tokens_of
from finetune_trainer.plan.prepare import Prepared, prepare
from finetune_trainer.plan.tokenization import Tokenization, Tokens
from finetune_trainer.storage.run_directory import RunDirectory

ARRAY_FILES = [f"{name}.npy" for name in ARRAYS]
SAID = "the tokens of the rows are those in "


@pytest.fixture
def spec(tiny_model: Path, tmp_path: Path) -> FineTuneJobSpec:
    """A job with a remark about its rows, and a row that is truncated."""
    train = write_rows(tmp_path / "train.jsonl", *TURNS, ("Long?", "x " * 600))
    with Path(train).open("a") as rows:
        rows.write(
            '{"id": 7, "messages": [{"role": "user", "content": "a"},'
            ' {"role": "assistant", "content": "b"}]}\n'
        )
    valid = write_rows(tmp_path / "valid.jsonl", TURNS[1], ("New?", "Yes."))
    return spec_of(
        tiny_model, LORA, train_path=train, valid_path=valid, task="instruction_tuning", context_length=64
    )


def keep(spec: FineTuneJobSpec, run: RunDirectory) -> Prepared:
    tokens = TokensToKeep()
    prepared = prepare(spec, tokens.tokenize)
    run.claim("kind: FineTuneJob", "a test")
    tokens.keep(run)
    return prepared


def again(spec: FineTuneJobSpec, run: RunDirectory) -> tuple[Prepared, list[str]]:
    """What an attempt prepares, and what it says."""
    said: list[str] = []
    return prepare(spec, partial(tokens_of, run=run, say=said.append)), said


def as_plain(value: object) -> object:
    """A document without arrays, which do not compare."""
    match value:
        case np.ndarray():
            return (value.dtype.str, value.shape, value.tobytes())
        case Path():
            return None
        case dict():
            return {key: as_plain(each) for key, each in value.items()}
        case _:
            return value


def same(one: Prepared, other: Prepared) -> bool:
    return as_plain(dataclasses.asdict(one)) == as_plain(dataclasses.asdict(other))


def test_what_is_prepared_of_them_is_what_is_prepared_of_the_rows_to_the_bit(
    spec: FineTuneJobSpec, storage_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.open(storage_path)
    kept = keep(spec, run)
    monkeypatch.setattr(Tokenization, "tokenize", lambda _: pytest.fail("rows are tokenized again"))

    found, said = again(spec, RunDirectory.open(storage_path))

    assert same(found, kept)
    assert said == [f"{SAID}{run.prepared().path}"]  # type: ignore[union-attr]
    assert any("id is ignored" in warning for warning in found.warnings)
    assert found.plan.truncated_rows == 1
    assert found.validation is not None


def test_a_job_without_validation_rows_keeps_those_of_training_alone(
    spec: FineTuneJobSpec, tmp_path: Path
) -> None:
    alone = spec.model_copy(update={"valid_path": None})
    run = RunDirectory.open(str(tmp_path / "run"))
    kept = keep(alone, run)
    found, said = again(alone, run)
    assert same(found, kept)
    assert len(said) == 1
    assert said[0].startswith(SAID)


def test_nothing_is_said_where_nothing_is_kept(spec: FineTuneJobSpec, tmp_path: Path) -> None:
    found, said = again(spec, RunDirectory.open(str(tmp_path / "run")))
    assert said == []
    assert same(found, prepare(spec))


def _rows_are_others(spec: FineTuneJobSpec, _: pytest.MonkeyPatch) -> dict[str, JsonValue]:
    write_rows(Path(spec.data_paths[0]), *reversed(TURNS))
    return {}


def _validation_rows_are_others(spec: FineTuneJobSpec, _: pytest.MonkeyPatch) -> dict[str, JsonValue]:
    write_rows(Path(str(spec.valid_path)), ("Other?", "Yes."))
    return {}


def _prompt_format_is_another(_: FineTuneJobSpec, __: pytest.MonkeyPatch) -> dict[str, JsonValue]:
    return {
        "generation_config": {
            "prompt_format": {
                "system": "{instruction}",
                "user": "Q: {instruction}",
                "assistant": "A: {instruction}",
            }
        }
    }


def _other_tokens_count(_: FineTuneJobSpec, __: pytest.MonkeyPatch) -> dict[str, JsonValue]:
    return {"task": "causal_lm"}


def _tokenizer_is_another(spec: FineTuneJobSpec, _: pytest.MonkeyPatch) -> dict[str, JsonValue]:
    file = Path(spec.model_id) / "chat_template.jinja"
    file.write_text(file.read_text() + "{# another #}")
    return {}


def _library_is_another(_: FineTuneJobSpec, monkeypatch: pytest.MonkeyPatch) -> dict[str, JsonValue]:
    monkeypatch.setattr(tokenization, "version", lambda _: "0.0.1")
    return {}


@pytest.mark.parametrize(
    "change",
    [
        _rows_are_others,
        _validation_rows_are_others,
        _prompt_format_is_another,
        _other_tokens_count,
        _tokenizer_is_another,
        _library_is_another,
    ],
)
def test_where_what_decides_them_has_changed_the_rows_are_tokenized_as_if_there_were_none(
    spec: FineTuneJobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    assert callable(change)
    own = tmp_path / "model"
    shutil.copytree(spec.model_id, own)
    spec = spec.model_copy(update={"model_id": str(own)})
    run = RunDirectory.open(str(tmp_path / "run"))
    keep(spec, run)
    changed = spec_of(
        own, LORA, **{**spec.model_dump(mode="json", exclude_unset=True), **change(spec, monkeypatch)}
    )

    found, said = again(changed, run)

    assert same(found, prepare(changed))
    assert len(said) == 1
    assert "the rows are tokenized again" in said[0]


def test_fields_that_do_not_decide_them_change_nothing(spec: FineTuneJobSpec, tmp_path: Path) -> None:
    run = RunDirectory.open(str(tmp_path / "run"))
    keep(spec, run)
    others = {"learning_rate": 0.5, "num_epochs": 5, "context_length": 48, "num_devices": 2}
    changed = spec.model_copy(update=others)

    found, said = again(changed, run)

    assert said[0].startswith(SAID)
    assert same(found, prepare(changed))


def test_files_that_are_damaged_are_not_used(spec: FineTuneJobSpec, tmp_path: Path) -> None:
    run = RunDirectory.open(str(tmp_path / "run"))
    kept = keep(spec, run)
    names = [f"{file}/{name}" for file in ("train", "validation") for name in (*ARRAY_FILES, DESCRIPTION)]
    for name in (*names, "complete.json"):
        damaged = tmp_path / "run/prepared" / name
        content = damaged.read_bytes()
        place = -1 if name.endswith(".npy") else len(content) // 2
        place %= len(content)
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])

        found, said = again(spec, run)

        damaged.write_bytes(content)
        assert same(found, kept), name
        assert not any(each.startswith(SAID) for each in said), name


def test_files_of_which_one_is_missing_or_cut_off_are_not_used(spec: FineTuneJobSpec, tmp_path: Path) -> None:
    run = RunDirectory.open(str(tmp_path / "run"))
    keep(spec, run)
    file = tmp_path / "run/prepared/train/input_ids.npy"
    file.write_bytes(file.read_bytes()[:-1])
    assert run.prepared() is None
    file.unlink()
    assert run.prepared() is None


def test_rows_that_are_gone_are_an_error_though_their_tokens_are_kept(
    spec: FineTuneJobSpec, tmp_path: Path
) -> None:
    run = RunDirectory.open(str(tmp_path / "run"))
    keep(spec, run)
    Path(spec.data_paths[0]).unlink()
    Path(str(spec.valid_path)).unlink()

    with pytest.raises(FineTuneError) as caught:
        again(spec, run)

    assert caught.value.failure_class is FailureClass.INVALID_DATA
    assert len(caught.value.problems) == 2


def test_rows_that_change_while_they_are_read_are_not_taken_for_those_that_were(
    spec: FineTuneJobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.open(str(tmp_path / "run"))
    tokenize = Tokenization.tokenize

    def change(job: Tokenization) -> Tokens:
        tokens = tokenize(job)
        write_rows(Path(job.spec.data_paths[0]), *reversed(TURNS))
        return tokens

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Tokenization, "tokenize", change)
        keep(spec, run)

    found, said = again(spec, run)

    assert "tokenized again" in said[0]
    assert same(found, prepare(spec))


def test_what_is_kept_later_takes_the_place_of_what_was(spec: FineTuneJobSpec, storage_path: str) -> None:
    run = RunDirectory.open(storage_path)
    keep(spec, run)
    write_rows(Path(spec.data_paths[0]), *reversed(TURNS))
    kept = keep(spec, run)

    found, said = again(spec, run)

    assert said[0].startswith(SAID)
    assert same(found, kept)
