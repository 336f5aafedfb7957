"""Pairs of answers: which rows are pairs, what is wrong with others, and what they are as tokens."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from tests.trainer.training_jobs import rows_of

from finetune_api.failure import FineTuneError
from finetune_trainer.data.pairs import PairRows, parse_pairs, truncate_pairs
from finetune_trainer.data.rows import Lines, Row
from finetune_trainer.data.tokens import RowsInMemory, TokenizedRows

USER = {"role": "user", "content": "Ping?"}
GOOD = {"role": "assistant", "content": "Pong."}
BAD = {"role": "assistant", "content": "What?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def parsed(row: object) -> tuple[list[str], list[list[tuple[str, str, bool]]]]:
    """The problems of a row, and the roles, contents and masks of its conversations."""
    found = parse_pairs(Lines(7, [json.dumps(row).encode()]))
    conversations = [each for pair in found.rows for each in (pair.chosen, pair.rejected)]
    return found.problems, [turns(each) for each in conversations]


def turns(row: Row) -> list[tuple[str, str, bool]]:
    assert row.line == 7
    return [(message.role, message.content, message.trained) for message in row.messages]


PONG = [("user", "Ping?", False), ("assistant", "Pong.", True)]
WHAT = [("user", "Ping?", False), ("assistant", "What?", True)]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Ping?", "chosen": "Pong.", "rejected": "What?"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "Pong.", "rejected": "What?"},
        {"prompt": "Ping?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
    ids=["LLMForge's", "texts", "TRL's", "a conversation and texts", "the hub's, where answers repeat it"],
)
def test_a_pair_is_two_conversations_of_which_the_answers_count(row: object) -> None:
    assert parsed(row) == ([], [PONG, WHAT])


def test_a_system_message_is_part_of_the_prompt_wherever_it_stands() -> None:
    problems, [chosen, rejected] = parsed({"chosen": [USER, SYSTEM, GOOD], "rejected": [SYSTEM, USER, BAD]})
    assert problems == []
    assert chosen == [("system", "Be brief.", False), *PONG]
    assert rejected == [("system", "Be brief.", False), *WHAT]


def test_earlier_answers_that_both_have_do_not_count() -> None:
    again = {"role": "user", "content": "Again?"}
    problems, [chosen, _] = parsed(
        {"chosen": [USER, GOOD, again, GOOD], "rejected": [USER, GOOD, again, BAD]}
    )
    assert problems == []
    assert [counts for _, _, counts in chosen] == [False, False, False, True]


@pytest.mark.parametrize(
    ("row", "problems"),
    [
        ({"messages": [USER, GOOD]}, ["chosen: is missing", "rejected: is missing"]),
        ([], ["must be an object"]),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, ["chosen and rejected: are equal"]),
        (
            {"chosen": [USER, GOOD], "rejected": [{**USER, "content": "Pang?"}, BAD]},
            ["chosen and rejected: begin with different questions"],
        ),
        ({"chosen": "Pong.", "rejected": "What?"}, ["prompt: is missing"]),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, ["rejected: is how the other one begins"]),
        (
            {"chosen": [USER, GOOD], "rejected": [USER, USER, BAD]},
            ["rejected: differs from the other one in a user message"],
        ),
        ({"chosen": [USER, GOOD, USER], "rejected": [USER, BAD]}, ["chosen: ends with a user message"]),
        ({"prompt": "Ping?", "chosen": "", "rejected": 3}, ["chosen: must be a text", "rejected: must be"]),
        (
            {"chosen": [USER, {"role": "robot", "content": ""}], "rejected": []},
            ["chosen[1].role: must be", "chosen[1].content: is empty", "rejected: must be a list"],
        ),
    ],
    ids=[
        "a conversation",
        "no object",
        "equal answers",
        "other questions",
        "no question",
        "no answer",
        "another question before the answer",
        "no answer at the end",
        "no texts",
        "several at once",
    ],
)
def test_what_is_wrong_with_a_pair_is_said_by_line(row: object, problems: list[str]) -> None:
    found, pairs = parsed(row)
    assert pairs == []
    assert len(found) == len(problems)
    assert all(problem.startswith("7: ") for problem in found)
    for problem in problems:
        assert any(problem in each for each in found), found


def documents(*lengths: tuple[int, int]) -> TokenizedRows:
    """Documents of a prompt and an answer of so many tokens each."""
    rows = rows_of([prompt + answer for prompt, answer in lengths])
    trained = np.concatenate([np.repeat([False, True], each) for each in lengths])
    return TokenizedRows(
        rows.input_ids, trained, rows.offsets, np.repeat(np.arange(1, len(lengths) // 2 + 1), 2)
    )


def test_prompts_are_cut_at_their_beginning_by_as_much_for_both_answers() -> None:
    whole = documents((10, 5), (10, 8), (3, 2), (3, 1))

    found, longer = truncate_pairs(whole, 14, "train.jsonl:{}".format, RowsInMemory())

    assert longer == 1
    assert found.documents.lengths.tolist() == [11, 14, 5, 4]
    for index in range(4):
        ids, trained = found.documents.row(index)
        assert ids.tolist() == whole.row(index)[0][-len(ids) :].tolist()
        assert trained.sum() == whole.row(index)[1].sum()


def test_pairs_that_fit_stay_as_they_are() -> None:
    whole = documents((10, 5), (10, 8))
    found, longer = truncate_pairs(whole, 18, "train.jsonl:{}".format, RowsInMemory())
    assert (longer, found.documents) == (0, whole)


def test_answers_that_do_not_fit_are_errors_with_their_line() -> None:
    whole = documents((4, 2), (4, 3), (4, 20), (4, 12), (4, 2), (4, 20))
    with pytest.raises(FineTuneError) as raised:
        truncate_pairs(whole, 12, "train.jsonl:{}".format, RowsInMemory())
    what = "which with a prompt do not fit into 12; raise spec.context_length"
    assert raised.value.problems == (
        f"train.jsonl:2: chosen: its answer has 20 tokens, {what}",
        f"train.jsonl:2: rejected: its answer has 12 tokens, {what}",
        f"train.jsonl:3: rejected: its answer has 20 tokens, {what}",
    )


def test_pairs_are_the_same_in_another_process() -> None:
    rows = PairRows(documents((10, 5), (10, 8)), np.array([-1.5, -2.5], dtype=np.float32))
    found = pickle.loads(pickle.dumps(rows))
    assert isinstance(found, PairRows)
    assert found.reference is not None
    assert found.reference.tolist() == [-1.5, -2.5]
    assert found.documents.input_ids.tolist() == rows.documents.input_ids.tolist()
    assert len(found) == 1
