from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from pydantic import JsonValue
from tests.trainer.model_directories import copy_of
from tests.trainer.tokenizers_for_tests import CHATML_TAGGED
from tests.trainer.training_jobs import LORA, spec_of
from transformers import AutoModelForCausalLM, AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.data.shown_rows import ShownRow
from finetune_trainer.plan.inspection import Inspection, RepeatedRows, inspect

Turns = list[dict[str, str]]


def talk(*contents: str, system: str | None = None) -> Turns:
    """A conversation of questions and answers by turns."""
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return [*first, *({"role": roles[at % 2], "content": text} for at, text in enumerate(contents))]


CONVERSATIONS = [
    talk("Ping?", "Pong."),
    talk("Ping?", "Pong.", "And you?", "Me too.\n\nReally: é 👋🏽", system="Be brief."),
    talk("Write a line.", "One\nTwo\n", "More", " blanks around "),
]


def write(file: Path, rows: Sequence[JsonValue]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def conversations(file: Path, rows: Sequence[Turns]) -> str:
    return write(file, [{"messages": [dict[str, JsonValue](turn) for turn in turns]} for turns in rows])


def inspected(model: Path, train: str, valid: str | None = None, **fields: JsonValue) -> Inspection:
    chosen: dict[str, JsonValue] = {"task": "instruction_tuning", "num_warmup_steps": 0, **fields}
    return inspect(spec_of(model, LORA, train_path=train, valid_path=valid, **chosen))


def mask_of(row: ShownRow) -> tuple[list[int], list[bool]]:
    return [each.id for each in row.tokens], [each.trained for each in row.tokens]


def text_of(row: ShownRow) -> str:
    return "".join(each.token for each in row.tokens)


def trained_text_of(row: ShownRow) -> str:
    return "".join(each.token for each in row.tokens if each.trained)


@pytest.fixture(scope="module")
def tagged_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with a chat template that marks the answers, as transformers and TRL want it."""
    model = copy_of(tiny_model, tmp_path_factory.mktemp("models") / "tagged")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{{ bos_token }}" + CHATML_TAGGED
    tokenizer.save_pretrained(model)
    return model


@pytest.fixture(params=["as published", "with marks"])
def model(request: pytest.FixtureRequest, tiny_model: Path, tagged_model: Path) -> Path:
    return tiny_model if request.param == "as published" else tagged_model


# Rows


def test_masks_are_those_of_transformers(model: Path, tagged_model: Path, tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tagged_model)
    rows = inspected(model, conversations(tmp_path / "rows.jsonl", CONVERSATIONS)).first_rows(9)

    assert len(rows) == len(CONVERSATIONS)
    for row, turns in zip(rows, CONVERSATIONS, strict=True):
        theirs = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
        assert isinstance(theirs, BatchEncoding)
        assert mask_of(row) == (theirs["input_ids"], [mark == 1 for mark in theirs["assistant_masks"]])
        assert text_of(row) == tokenizer.apply_chat_template(turns, tokenize=False)


def test_masks_are_those_of_trl(model: Path, tagged_model: Path, tmp_path: Path) -> None:
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tagged_model),
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"),
            assistant_only_loss=True,
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"messages": turns} for turns in CONVERSATIONS]),
        processing_class=AutoTokenizer.from_pretrained(tagged_model),
    )
    rows = inspected(model, conversations(tmp_path / "rows.jsonl", CONVERSATIONS)).first_rows(9)

    assert isinstance(trainer.train_dataset, Dataset)
    theirs = [trainer.train_dataset[index] for index in range(len(CONVERSATIONS))]
    assert [mask_of(row) for row in rows] == [
        (each["input_ids"], [label != -100 for label in each["labels"]]) for each in theirs
    ]


def test_all_of_continued_pretraining_is_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    file = conversations(tmp_path / "rows.jsonl", CONVERSATIONS[:1])
    [row] = inspected(tiny_model, file, task="causal_lm").first_rows(1)

    assert trained_text_of(row) == text_of(row)


def test_of_a_pair_both_answers_are_shown(tiny_model: Path, tmp_path: Path) -> None:
    pairs: list[JsonValue] = [
        {"prompt": "Ping?", "chosen": "Pong.", "rejected": "No."},
        {"prompt": "Well?", "chosen": "Yes.", "rejected": "Never, ever."},
    ]
    shown = inspected(
        tiny_model, write(tmp_path / "pairs.jsonl", pairs), task="preference_tuning"
    ).first_rows(2)

    assert [(row.place.rpartition("/")[2], row.answer, trained_text_of(row)) for row in shown] == [
        ("pairs.jsonl:1", "chosen", "Pong.<|im_end|>"),
        ("pairs.jsonl:1", "rejected", "No.<|im_end|>"),
        ("pairs.jsonl:2", "chosen", "Yes.<|im_end|>"),
        ("pairs.jsonl:2", "rejected", "Never, ever.<|im_end|>"),
    ]


def test_a_classifiers_rows_end_with_their_label_which_is_counted(tiny_model: Path, tmp_path: Path) -> None:
    file = conversations(
        tmp_path / "rows.jsonl",
        [talk("Rain?", "[[weather]]"), talk("Goal!", "[[sport]]"), talk("Sun?", "[[weather]]")],
    )
    labels: JsonValue = {"label_tokens": ["[[sport]]", "[[weather]]", "[[science]]"]}
    inspection = inspected(tiny_model, file, task=None, classifier_config=labels)

    assert [(row.label, trained_text_of(row)) for row in inspection.first_rows(2)] == [
        ("[[weather]]", "[[weather]]"),
        ("[[sport]]", "[[sport]]"),
    ]
    [statistics] = inspection.files()
    assert statistics.labels == {"[[sport]]": 1, "[[weather]]": 2, "[[science]]": 0}
    assert statistics.trained_tokens == 3


def test_rows_are_shown_as_they_are_cut(tiny_model: Path, tmp_path: Path) -> None:
    file = conversations(tmp_path / "rows.jsonl", [talk("Ping?", "Pong. " * 50), talk("Ping?", "Pong.")])
    inspection = inspected(tiny_model, file, context_length=40)
    [whole, _] = inspected(tiny_model, file).first_rows(2)
    [long, short] = inspection.first_rows(2)
    [statistics] = inspection.files()

    assert (len(long.tokens), long.length) == (40, len(whole.tokens))
    assert long.tokens == whole.tokens[:40]
    assert len(short.tokens) == short.length < 40
    assert (statistics.truncated_rows, statistics.longest) == (1, len(whole.tokens))
    assert statistics.trained_tokens == sum(each.trained for each in (*long.tokens, *short.tokens))


def test_packed_rows_are_shown_in_the_order_of_their_file(tiny_model: Path, tmp_path: Path) -> None:
    file = conversations(tmp_path / "rows.jsonl", CONVERSATIONS)

    plain, packed = inspected(tiny_model, file), inspected(tiny_model, file, packing=True)

    assert packed.first_rows(3) == plain.first_rows(3)
    assert packed.files() == plain.files()


# Statistics


def test_statistics_are_those_of_the_tokens(tiny_model: Path, tmp_path: Path) -> None:
    train = conversations(tmp_path / "train.jsonl", [*CONVERSATIONS, CONVERSATIONS[1]])
    valid = conversations(tmp_path / "valid.jsonl", [talk("Other?", "Other."), CONVERSATIONS[2]])
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model)

    of_train, of_valid = inspected(tiny_model, train, valid).files()

    lengths = [
        len(tokenizer.apply_chat_template(turns, return_dict=False))
        for turns in [*CONVERSATIONS, CONVERSATIONS[1]]
    ]
    assert (of_train.path, of_train.rows, of_train.tokens) == (train, 4, sum(lengths))
    assert (of_train.shortest, of_train.longest) == (min(lengths), max(lengths))
    assert of_train.median == int(np.median(lengths))
    assert sum(each.rows for each in of_train.lengths) == 4
    assert (of_train.truncated_rows, of_train.labels) == (0, None)
    assert (of_train.duplicates, of_train.in_training) == (
        RepeatedRows(rows=1, at="line 4", of="line 2"),
        None,
    )
    assert (of_valid.path, of_valid.rows) == (valid, 2)
    assert (of_valid.duplicates, of_valid.in_training) == (
        None,
        RepeatedRows(rows=1, at="line 2", of="line 3"),
    )


def test_pairs_are_counted_as_pairs_and_their_conversations_measured(
    tiny_model: Path, tmp_path: Path
) -> None:
    pair: JsonValue = {"prompt": "Ping?", "chosen": "Pong.", "rejected": "No. " * 30}
    other: JsonValue = {"prompt": "Ping?", "chosen": "Pong.", "rejected": "Never."}
    file = write(tmp_path / "pairs.jsonl", [pair, other, pair])

    inspection = inspected(tiny_model, file, task="preference_tuning")
    [statistics] = inspection.files()

    assert statistics.rows == 3
    assert sum(each.rows for each in statistics.lengths) == 6
    assert statistics.tokens == sum(row.length for row in inspection.first_rows(3))
    assert statistics.duplicates == RepeatedRows(rows=1, at="line 3", of="line 1")


def test_rows_of_several_files_are_shown_as_they_are_mixed_and_held_out(
    tiny_model: Path, tmp_path: Path
) -> None:
    table = Dataset.from_list(
        [{"instruction": f"Ping {number}?", "output": f"Pong {number}."} for number in range(40)]
    )
    table.to_parquet(f"{tmp_path}/a.parquet")
    lines = conversations(tmp_path / "b.jsonl", CONVERSATIONS)
    sources: list[JsonValue] = [{"path": f"{tmp_path}/a.parquet", "weight": 2}, {"path": lines, "rows": 1}]
    spec = spec_of(
        tiny_model,
        LORA,
        train_path=sources,
        valid_path=None,
        valid_fraction=0.3,
        task="instruction_tuning",
    )

    inspection = inspect(spec)
    of_train, of_valid = inspection.files()
    shown = inspection.first_rows(of_train.rows)

    assert of_train.path == f"{tmp_path}/a.parquet, {lines}"
    assert of_valid.path == f"{of_train.path}, held out"
    assert of_train.rows == inspection.prepared.plan.rows == len(shown)
    assert of_valid.rows == inspection.prepared.plan.validation_rows
    assert of_valid.in_training is None
    assert of_train.duplicates is not None
    assert of_train.duplicates.rows == (of_train.rows - 1) // 2, "all of a.parquet are there twice"
    (first, *_) = shown
    number = int(first.place.removeprefix(f"{tmp_path}/a.parquet: row ")) - 1
    assert trained_text_of(first) == f"Pong {number}.<|im_end|>"
