"""Rows that end with a label: which ones are, what is wrong with others, and what they are as tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from tests.trainer.tokenizers_for_tests import CHATML, CHATML_TOKENS, byte_level, sentencepiece
from tests.trainer.training_jobs import rows_of
from transformers import PreTrainedTokenizerFast

from finetune_api.failure import FineTuneError
from finetune_api.generation import GenerationConfig
from finetune_trainer.data.chat import chat_format
from finetune_trainer.data.encoding import EncodedLines, LabelEncoder
from finetune_trainer.data.label_tokens import add_labels, label_tokens
from finetune_trainer.data.labels import labels_of, parse_labelled, remarks_on_labels, truncate_before
from finetune_trainer.data.rows import Lines
from finetune_trainer.data.tokens import RowsInMemory

LABELS = ["[[yes]]", "[[no]]"]
USER = {"role": "user", "content": "Ping?"}
YES = {"role": "assistant", "content": "[[yes]]"}
NO = {"role": "assistant", "content": "[[no]]"}


def parsed(*messages: object) -> tuple[list[str], list[list[tuple[str, str, bool]]]]:
    """The problems of a row, and roles, contents and masks of its messages."""
    found = parse_labelled(Lines(7, [json.dumps({"messages": messages}).encode()]), LABELS)
    assert all(row.line == 7 for row in found.rows)
    return found.problems, [
        [(each.role, each.content, each.trained) for each in row.messages] for row in found.rows
    ]


def test_the_last_answer_is_the_label_and_alone_counts() -> None:
    assert parsed(USER, YES, USER, NO) == (
        [],
        [
            [
                ("user", "Ping?", False),
                ("assistant", "[[yes]]", False),
                ("user", "Ping?", False),
                ("assistant", "[[no]]", True),
            ]
        ],
    )


def test_what_is_said_after_the_label_is_left_out_and_so_is_space_around_it() -> None:
    spaced = {**YES, "content": " [[yes]]\n"}
    assert parsed(USER, spaced, USER) == (
        [],
        [[("user", "Ping?", False), ("assistant", "[[yes]]", True)]],
    )


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (
            [USER, {**YES, "content": "[[maybe]]"}],
            (
                "7: the last assistant message: must be one of spec.classifier_config.label_tokens, [[yes]],"
                " [[no]]; is '[[maybe]]'"
            ),
        ),
        (
            [USER, {**YES, "content": "It is [[yes]]"}],
            (
                "7: the last assistant message: must be one of spec.classifier_config.label_tokens, [[yes]],"
                " [[no]]; is 'It is [[yes]]'"
            ),
        ),
        ([USER], "7: messages: has no assistant message; the last one is the label"),
    ],
    ids=["another label", "a label in a sentence", "no answer"],
)
def test_a_row_without_a_label_is_told_with_its_line(messages: list[object], problem: str) -> None:
    assert parsed(*messages) == ([problem], [])


def encoded(
    tokenizer: PreTrainedTokenizerFast,
    labels: list[str],
    *rows: tuple[str, str],
    assistant: str | None = None,
) -> EncodedLines:
    """Questions with labels as tokens; with `assistant`, by a prompt_format that writes answers so."""
    config = None
    if assistant is not None:
        form = {"system": "{instruction}", "user": "{instruction}", "assistant": assistant}
        config = GenerationConfig.model_validate({"prompt_format": form})
    add_labels(tokenizer, labels)
    chat = chat_format(tokenizer, config, "instruction_tuning", "org/model")
    turns = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": label}]}
        for asked, label in rows
    ]
    encoder = LabelEncoder(label_tokens(tokenizer, labels), chat)
    return encoder.encode(Lines(1, [json.dumps(each).encode() for each in turns]))


@pytest.mark.parametrize(
    "make",
    [byte_level, partial(sentencepiece, CHATML_TOKENS, template=CHATML)],
    ids=["byte_level", "sentencepiece"],
)
def test_a_row_is_the_prompt_and_then_the_token_of_its_label(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    tokenizer = make()
    found = encoded(tokenizer, LABELS, ("Is it [[no]]?", "[[yes]]"), ("A longer question", "[[no]]"))

    assert (found.unreadable, found.refused) == ([], [])
    for index, (asked, label) in enumerate((("Is it [[no]]?", "[[yes]]"), ("A longer question", "[[no]]"))):
        ids, trained = found.rows.row(index)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, return_dict=False
        )
        assert ids.tolist() == [*prompt, tokenizer.convert_tokens_to_ids(label)]
        assert trained.tolist() == [False] * len(prompt) + [True]


def test_a_label_that_the_text_does_not_set_apart_is_told_with_its_line() -> None:
    found = encoded(
        byte_level(),
        ["yes", "nonono"],
        ("a", "yes"),
        ("b", "nonono"),
        assistant="Label{instruction}<|im_end|>",
    )

    assert len(found.refused) == 2
    assert found.refused[1].startswith(
        "2: the last assistant message: the label 'nonono' is not one token where"
    )
    assert found.refused[1].endswith("put brackets around it, as in '[[nonono]]'")


def test_a_long_row_keeps_its_end() -> None:
    rows = rows_of([5, 12, 8])
    rows.trained[:] = False
    rows.trained[rows.offsets[1:] - 1] = True

    cut, longer = truncate_before(rows, 8, RowsInMemory())

    assert longer == 1
    assert cut.lengths.tolist() == [5, 8, 8]
    assert cut.row(1)[0].tolist() == rows.row(1)[0][-8:].tolist()
    assert cut.predicted.tolist() == [1, 1, 1]
    assert truncate_before(rows, 12, RowsInMemory()) == (rows, 0)


def test_labels_of_rows_are_found_and_those_that_none_has_are_remarked() -> None:
    rows = rows_of([3, 4, 2])
    last = rows.offsets[1:] - 1
    rows.trained[:] = False
    rows.trained[last] = True
    rows.input_ids[last] = [11, 10, 11]
    ids = {"a": 10, "b": 11, "c": 12}

    assert np.array_equal(labels_of(rows, list(ids.values())), [1, 0, 1])
    assert remarks_on_labels(rows, ids) == [
        "spec.classifier_config.label_tokens: c is the label of no training row, and cannot be learnt"
    ]
    assert remarks_on_labels(rows, {"a": 10, "b": 11}) == []


def test_labels_that_are_tokens_stay_what_they_are_and_others_are_added() -> None:
    tokenizer = byte_level()
    known = len(tokenizer)
    written = tokenizer("[[good]]", add_special_tokens=False)["input_ids"]

    new = add_labels(tokenizer, ["a", "[[good]]"])

    assert [(each.token, list(each.written)) for each in new] == [(known, written)]
    assert label_tokens(tokenizer, ["a", "[[good]]"]) == {"a": tokenizer.get_vocab()["a"], "[[good]]": known}
    assert tokenizer.decode([known], skip_special_tokens=True) == "[[good]]"


def test_a_label_is_no_part_of_another_word() -> None:
    tokenizer = byte_level()
    before = tokenizer("The department", add_special_tokens=False)["input_ids"]
    add_labels(tokenizer, ["part", "depart"])
    assert tokenizer("The department", add_special_tokens=False)["input_ids"] == before


def test_labels_that_cannot_be_one_token_are_refused() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens = lambda *_, **__: 0  # type: ignore[method-assign]
    with pytest.raises(FineTuneError) as refused:
        add_labels(tokenizer, ["[[yes]]", "a", "[[no]]"])
    assert [problem.partition(" is ")[0] for problem in refused.value.problems] == [
        "spec.classifier_config.label_tokens: '[[yes]]'",
        "spec.classifier_config.label_tokens: '[[no]]'",
    ]
