from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.trainer.model.architectures import config_of
from tests.trainer.model_directories import copy_of
from tests.trainer.training_jobs import FULL, LORA, spec_of

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.plan.prepare import Prepared, prepare


def write_rows(path: Path, *turns: tuple[str, str]) -> str:
    """A row for each question and its answer."""
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in turns
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


TURNS = [("Ping?", "Pong."), ("One?", "Two, and three."), ("Where?", "Here and there and everywhere.")]


def prepared(model: Path, train: str, **fields: JsonValue) -> Prepared:
    return prepare(
        spec_of(
            model, LORA, **{"train_path": train, "valid_path": None, "task": "instruction_tuning", **fields}
        )
    )


def test_the_fingerprint_names_rows_as_tokens(tiny_model: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", *TURNS)
    copied = write_rows(tmp_path / "copied.jsonl", *TURNS)
    turned = write_rows(tmp_path / "turned.jsonl", *reversed(TURNS))
    fingerprint = prepared(tiny_model, train).fingerprint

    assert prepared(tiny_model, copied, learning_rate=1e-2).fingerprint == fingerprint
    assert prepared(tiny_model, turned).fingerprint != fingerprint, "another order"
    assert prepared(tiny_model, train, task="causal_lm").fingerprint != fingerprint, "other tokens count"
    longest = prepared(tiny_model, train).train.longest
    assert prepared(tiny_model, train, context_length=longest - 1).fingerprint != fingerprint, "truncated"


def test_packed_sequences_are_the_rows_of_the_plan_which_says_how_full_they_are(
    tiny_model: Path, tmp_path: Path
) -> None:
    train = write_rows(tmp_path / "train.jsonl", *TURNS * 20)
    plain = prepared(tiny_model, train)
    packed = prepared(tiny_model, train, packing=True, num_warmup_steps=0, train_batch_size_per_device=2)

    tokens = plain.plan.tokens
    assert packed.plan.rows == -(-tokens // 512) < plain.plan.rows == 60
    assert packed.plan.fill == pytest.approx(tokens / (packed.plan.rows * 512), abs=1e-4)
    assert packed.plan.steps_per_epoch == -(-packed.plan.rows // 2)
    assert (packed.plan.tokens, packed.plan.effective_batch_size) == (tokens, 2)
    assert packed.token_statistics == plain.token_statistics
    assert packed.train.predicted.sum() == plain.train.predicted.sum()
    assert packed.fingerprint != plain.fingerprint
    assert plain.plan.fill is None


def test_packing_is_refused_where_rows_would_see_each_other(tiny_model: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", *TURNS)
    mixing = copy_of(tiny_model, tmp_path / "mixing")
    config = config_of("alibi")
    config.vocab_size = 1024
    config.save_pretrained(mixing)

    with pytest.raises(FineTuneError, match=r"spec\.packing: the rows of a sequence would see each other"):
        prepare(spec_of(mixing, FULL, train_path=train, valid_path=None, packing=True), planning=True)


def test_validation_rows_that_are_training_rows_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", *TURNS)
    valid = write_rows(tmp_path / "valid.jsonl", TURNS[1], ("New?", "Yes."))
    assert (
        "1 of 2 validation rows are also training rows: the validation loss flatters"
        in prepared(tiny_model, train, valid_path=valid).warnings
    )


def test_the_longest_validation_row_counts_for_the_context_length(tiny_model: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", *TURNS)
    valid = write_rows(tmp_path / "valid.jsonl", ("Long?", "x " * 600))
    assert prepared(tiny_model, train).numbers.context_length == 512
    job = prepared(tiny_model, train, valid_path=valid)
    assert job.numbers.context_length == 1024
    assert job.plan.truncated_rows == 0


def test_lengths_are_those_before_truncation_and_trained_tokens_those_after(
    tiny_model: Path, tmp_path: Path
) -> None:
    train = write_rows(tmp_path / "train.jsonl", *TURNS)
    whole = prepared(tiny_model, train)
    cut = prepared(
        tiny_model, train, context_length=whole.train.longest - 2
    )  # a line break that does not count, and the end of turn

    assert cut.token_statistics.longest == whole.train.longest
    assert cut.token_statistics.tokens == whole.token_statistics.tokens == len(whole.train.input_ids)
    assert cut.token_statistics.trained_tokens == whole.token_statistics.trained_tokens - 1
    assert cut.plan.tokens == whole.plan.tokens - 2
    assert f"1 rows are longer than {whole.train.longest - 2} tokens and are truncated" in cut.warnings


def test_a_tokenizer_of_another_model_is_found_before_training(tiny_model: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", *TURNS)
    config = json.loads((tiny_model / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_model.iterdir():
        (other / file.name).symlink_to(file)
    (other / "config.json").unlink()
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 64}))

    with pytest.raises(
        FineTuneError, match=r"spec\.model_id: .* the model knows 64; they do not belong together"
    ) as raised:
        prepared(other, train)
    assert raised.value.failure_class is FailureClass.INVALID_SPEC
