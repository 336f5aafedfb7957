from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.tokens import RowsInMemory, TokenizedRows, rows_also_in, trained_tokens, truncate

Masks = Sequence[Sequence[bool]]


def rows_with(masks: Masks) -> TokenizedRows:
    """Rows on the even lines of a file; their tokens are 0, 1, 2 and so on over all rows."""
    return TokenizedRows(
        input_ids=np.arange(sum(map(len, masks)), dtype=np.int32),
        trained=np.array([trained for mask in masks for trained in mask], dtype=np.bool_),
        offsets=np.cumsum([0, *map(len, masks)], dtype=np.int64),
        lines=np.arange(1, len(masks) + 1, dtype=np.int64) * 2,
    )


def mask(text: str) -> list[bool]:
    """The mask as a text: `..TT` is two tokens that do not count and two that do."""
    return [sign == "T" for sign in text]


def masks_of(rows: TokenizedRows) -> list[list[bool]]:
    return [rows.row(index)[1].tolist() for index in range(len(rows))]


def ids_of(rows: TokenizedRows) -> list[list[int]]:
    return [rows.row(index)[0].tolist() for index in range(len(rows))]


def problems_after_truncation(masks: Masks, context_length: int) -> tuple[str, ...]:
    with pytest.raises(FineTuneError) as raised:
        truncate(rows_with(masks), context_length, "s3://bucket/train.jsonl:{}".format, RowsInMemory())
    assert raised.value.failure_class is FailureClass.INVALID_DATA
    return raised.value.problems


# Parts


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), max_size=8), min_size=1, max_size=8), st.integers(1, 12))
def test_rows_in_parts_are_the_rows(masks: list[list[bool]], tokens: int) -> None:
    rows = rows_with(masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_trainer.data.tokens.PART_TOKENS", tokens)
        parts = list(rows.parts())
        together = RowsInMemory()
        for part in parts:
            together.append(part)

        assert ids_of(together.finish()) == ids_of(rows)
        assert masks_of(together.finish()) == masks
        assert together.finish().lines.tolist() == rows.lines.tolist()
        assert rows.predicted.tolist() == [sum(trained[1:]) for trained in masks]
    assert all(len(part) == 1 or len(part.input_ids) <= tokens for part in parts)


# Truncation


def test_rows_keep_their_first_tokens() -> None:
    rows = rows_with([mask(".TTTT"), mask("..T"), mask("TTTTTTT")])

    cut, truncated = truncate(rows, 4, "train.jsonl:{}".format, RowsInMemory())

    assert ids_of(cut) == [[0, 1, 2, 3], [5, 6, 7], [8, 9, 10, 11]]
    assert masks_of(cut) == [mask(".TTT"), mask("..T"), mask("TTTT")]
    assert cut.lines.tolist() == [2, 4, 6]
    assert truncated == 2


def test_a_row_as_long_as_the_context_is_not_truncated() -> None:
    assert truncate(rows_with([mask("..TT")]), 4, "train.jsonl:{}".format, RowsInMemory())[1] == 0
    assert truncate(rows_with([mask("..TT.")]), 4, "train.jsonl:{}".format, RowsInMemory())[1] == 1


def test_every_row_that_truncation_leaves_nothing_of_is_told_with_file_and_line() -> None:
    assert problems_after_truncation([mask("....T"), mask(".T..."), mask("......TT"), mask("..T")], 4) == (
        (
            "s3://bucket/train.jsonl:2: the first 4 of its 5 tokens hold nothing to train on;"
            " raise spec.context_length"
        ),
        (
            "s3://bucket/train.jsonl:6: the first 4 of its 8 tokens hold nothing to train on;"
            " raise spec.context_length"
        ),
    )


def test_a_row_that_holds_nothing_to_train_on_says_so() -> None:
    (problem,) = problems_after_truncation([mask("...TTT"), mask("...")], 6)

    assert problem.startswith("s3://bucket/train.jsonl:4: none of its 3 tokens counts in the loss")
    assert "context_length" not in problem


@pytest.mark.parametrize("only_the_first", ["T", "T..", "T....T"])
def test_the_first_token_of_a_row_is_never_predicted_so_it_alone_is_nothing_to_train_on(
    only_the_first: str,
) -> None:
    (problem,) = problems_after_truncation([mask(only_the_first), mask(".T")], 4)

    assert problem.startswith("s3://bucket/train.jsonl:2: ")


@pytest.mark.parametrize("masks", [["", ".T"], [".T", ""], [".T", "", ".T"]])
def test_a_row_without_tokens_is_told_wherever_it_stands(masks: list[str]) -> None:
    (problem,) = problems_after_truncation([mask(text) for text in masks], 4)

    assert problem.startswith(f"s3://bucket/train.jsonl:{2 * masks.index('') + 2}: none of its 0 tokens")


TRAINABLE = st.lists(st.booleans(), min_size=2, max_size=12).filter(lambda trained: any(trained[1:]))


@given(st.lists(TRAINABLE, min_size=1, max_size=6), st.integers(1, 14))
def test_truncation_cuts_each_row_as_a_slice_would_or_refuses_it(
    masks: list[list[bool]], context_length: int
) -> None:
    rows = rows_with(masks)
    refused = [2 * index + 2 for index, trained in enumerate(masks) if not any(trained[1:context_length])]
    if refused:
        problems = problems_after_truncation(masks, context_length)
        assert [int(problem.split(":")[2]) for problem in problems] == refused
        return

    cut, truncated = truncate(rows, context_length, "train.jsonl:{}".format, RowsInMemory())

    assert ids_of(cut) == [ids[:context_length] for ids in ids_of(rows)]
    assert masks_of(cut) == [trained[:context_length] for trained in masks]
    assert truncated == sum(len(trained) > context_length for trained in masks)
    assert cut.longest <= context_length


def test_a_conversation_that_is_cut_in_an_answer_trains_what_is_left_of_it() -> None:
    whole = rows_with([mask("." * 9 + "T" * 50)])
    first_trained = int(whole.trained.argmax())

    cut, _ = truncate(whole, first_trained + 3, "train.jsonl:{}".format, RowsInMemory())

    assert cut.trained.tolist() == [False] * first_trained + [True] * 3
    with pytest.raises(FineTuneError, match=f"the first {first_trained} of its"):
        truncate(whole, first_trained, "train.jsonl:{}".format, RowsInMemory())


# Counting


def test_tokens_that_count_are_those_that_are_predicted() -> None:
    assert trained_tokens(rows_with([mask("TTT"), mask(".T.T"), mask("..."), mask("T"), mask("")])) == 4


@given(st.lists(st.lists(st.booleans(), max_size=8), min_size=1, max_size=6))
def test_counting_all_rows_is_counting_each_after_its_first_token(masks: list[list[bool]]) -> None:
    assert trained_tokens(rows_with(masks)) == sum(sum(trained[1:]) for trained in masks)


# Rows that are in both


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), max_size=3), max_size=6),
    st.lists(st.lists(st.integers(0, 1), max_size=3), max_size=6),
)
def test_rows_that_are_also_in_others_are_those_with_the_same_tokens(
    train: list[list[int]], rows: list[list[int]]
) -> None:
    assert rows_also_in(tokens(train), tokens(rows)) == sum(row in train for row in rows)


def tokens(rows: list[list[int]]) -> TokenizedRows:
    return TokenizedRows(
        input_ids=np.array([token for row in rows for token in row], dtype=np.int32),
        trained=np.ones(sum(map(len, rows)), dtype=np.bool_),
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        lines=np.arange(1, len(rows) + 1),
    )
