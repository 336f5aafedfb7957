from __future__ import annotations

import pytest
import torch
from tests.trainer.training_jobs import rows_of

from finetune_trainer.data.layout import Batch, EndToEnd, Padded
from finetune_trainer.data.tokens import IGNORED


def mask_of(batch: Batch) -> torch.Tensor:
    assert batch.attention_mask is not None
    return batch.attention_mask


def test_a_micro_batch_is_padded_on_the_right_to_its_longest_row() -> None:
    rows = rows_of([3, 5], share_trained=1.0)
    batch = Padded(99).batch(rows, [1, 0])
    assert batch.input_ids.tolist() == [rows.row(1)[0].tolist(), [*rows.row(0)[0].tolist(), 99, 99]]
    assert mask_of(batch).tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    (_, first, second), (_, *rest) = rows.row(0)[0].tolist(), rows.row(1)[0].tolist()
    assert batch.labels.tolist() == [[*rest, IGNORED], [first, second, IGNORED, IGNORED, IGNORED]]


def test_a_padding_token_inside_a_row_counts_like_any_other() -> None:
    rows = rows_of([4], share_trained=1.0)
    batch = Padded(int(rows.input_ids[3])).batch(rows, [0])
    assert mask_of(batch).tolist() == [[1, 1, 1, 1]]
    assert batch.labels.tolist() == [[*rows.input_ids[1:].tolist(), IGNORED]]


def test_a_micro_batch_is_padded_to_the_length_that_is_asked_for() -> None:
    batch = Padded(99, length=8).batch(rows_of([3, 5]), [0, 1])
    assert batch.input_ids.shape == mask_of(batch).shape == batch.labels.shape == (2, 8)
    assert mask_of(batch).sum(dim=1).tolist() == [3, 5]


@pytest.mark.parametrize("length", [None, 8])
def test_an_empty_micro_batch_has_one_token_to_attend_to_and_none_that_counts(length: int | None) -> None:
    batch = Padded(99, length).batch(rows_of([3]), [])
    assert batch.input_ids.shape == (1, length or 1)
    assert mask_of(batch).sum() == 1
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


def test_rows_are_laid_end_to_end_without_padding() -> None:
    rows = rows_of([3, 5], share_trained=1.0)
    batch = EndToEnd(99).batch(rows, [1, 0])
    first, second = (rows.row(index)[0].tolist() for index in (1, 0))
    assert batch.input_ids.tolist() == [[*first, *second]]
    assert batch.labels.tolist() == [[*first[1:], IGNORED, *second[1:], IGNORED]]
    assert "attention_mask" not in batch.inputs
    assert batch.inputs["max_length_q"] == 5
    bounds = batch.bounds
    assert bounds is not None
    assert bounds.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert (bounds.ends.tolist(), bounds.ends.dtype) == ([0, 5, 8], torch.int32)


def test_no_rows_end_to_end_are_one_token_that_predicts_nothing() -> None:
    batch = EndToEnd(99).batch(rows_of([3]), [])
    assert (batch.input_ids.tolist(), batch.labels.tolist()) == ([[99]], [[IGNORED]])
    assert len(batch.counted) == 0


def test_the_positions_that_count_are_those_with_labels() -> None:
    rows = rows_of([7, 1, 12])
    for layout in (Padded(99), Padded(99, 16), EndToEnd(99)):
        batch = layout.batch(rows, [0, 1, 2])
        assert (batch.labels.flatten()[batch.counted] != IGNORED).all()
        assert len(batch.counted) == (batch.labels != IGNORED).sum() == rows.predicted.sum()
