from __future__ import annotations

import pytest
import torch
from tests.trainer.training_jobs import rows_of

from finetune_trainer.data.layout import Padded
from finetune_trainer.data.tokens import IGNORED


def test_a_micro_batch_is_padded_on_the_right_to_its_longest_row() -> None:
    rows = rows_of([3, 5], share_trained=1.0)
    batch = Padded(99).batch(rows, [1, 0])
    assert batch.input_ids.tolist() == [rows.row(1)[0].tolist(), [*rows.row(0)[0].tolist(), 99, 99]]
    assert batch.attention_mask.tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    (_, first, second), (_, *rest) = rows.row(0)[0].tolist(), rows.row(1)[0].tolist()
    assert batch.labels.tolist() == [[*rest, IGNORED], [first, second, IGNORED, IGNORED, IGNORED]]


def test_a_padding_token_inside_a_row_counts_like_any_other() -> None:
    rows = rows_of([4], share_trained=1.0)
    batch = Padded(int(rows.input_ids[3])).batch(rows, [0])
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1]]
    assert batch.labels.tolist() == [[*rows.input_ids[1:].tolist(), IGNORED]]


def test_a_micro_batch_is_padded_to_the_length_that_is_asked_for() -> None:
    batch = Padded(99, length=8).batch(rows_of([3, 5]), [0, 1])
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.labels.shape == (2, 8)
    assert batch.attention_mask.sum(dim=1).tolist() == [3, 5]


@pytest.mark.parametrize("length", [None, 8])
def test_an_empty_micro_batch_has_one_token_to_attend_to_and_none_that_counts(length: int | None) -> None:
    batch = Padded(99, length).batch(rows_of([3]), [])
    assert batch.input_ids.shape == (1, length or 1)
    assert batch.attention_mask.sum() == 1
    assert torch.all(batch.labels == IGNORED)


def test_labels_are_the_next_tokens_where_those_count() -> None:
    rows = rows_of([4], share_trained=1.0)
    rows.trained[:] = [True, False, True, True]
    ids = rows.input_ids.tolist()
    assert Padded(99).batch(rows, [0]).labels.tolist() == [[IGNORED, ids[2], ids[3], IGNORED]]


def test_as_many_labels_count_as_the_rows_say() -> None:
    rows = rows_of([7, 1, 12])
    batch = Padded(99).batch(rows, [0, 1, 2])
    assert (batch.labels != IGNORED).sum(dim=1).tolist() == rows.predicted.tolist()
