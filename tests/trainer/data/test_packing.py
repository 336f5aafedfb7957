from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.trainer.model.architectures import model_of
from tests.trainer.training_jobs import rows_of, some_rows

from finetune_trainer.data.layout import EndToEnd
from finetune_trainer.data.packing import PackedRows, best_fit, pack
from finetune_trainer.data.token_files import RowsOnDisk, by_path
from finetune_trainer.data.tokens import IGNORED, RowsInMemory
from finetune_trainer.model.attention import attend_within_rows
from finetune_trainer.tasks.language import LanguageObjective

CAPACITY = 64


def packed(lengths: list[int], capacity: int = CAPACITY) -> PackedRows:
    return pack(rows_of(lengths, vocabulary=97), capacity, RowsInMemory())


def test_the_longest_rows_come_first_and_each_goes_where_it_leaves_the_least_room() -> None:
    # 7 | 6, 4 | 5, 5: the 4 leaves less room beside the 6 than beside a 5, and nothing fits beside the 7.
    assert best_fit(np.array([4, 7, 5, 6, 5]), 10) == [[1], [3, 0], [2, 4]]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_every_row_is_in_one_sequence_and_no_two_sequences_would_fit_into_one(lengths: list[int]) -> None:
    sequences = best_fit(np.array(lengths), 30)

    assert sorted(row for sequence in sequences for row in sequence) == list(range(len(lengths)))
    filled = sorted(sum(lengths[row] for row in sequence) for sequence in sequences)
    assert filled[-1] <= 30
    assert len(filled) == 1 or filled[0] + filled[1] > 30


def test_a_sequence_holds_its_documents_one_after_the_other_and_predicts_no_first_token() -> None:
    rows = some_rows(40, seed=3)
    found = pack(rows, CAPACITY, RowsInMemory())

    assert len(found) < len(rows)
    assert sorted(found.documents.lines) == sorted(rows.lines)
    for index in range(len(found)):
        documents = range(found.first[index], found.first[index + 1])
        ids, trained = found.row(index)
        parts = [found.documents.row(document) for document in documents]
        assert ids.tolist() == [token for each, _ in parts for token in each]
        assert found.laid_out([index])[1].tolist() == list(documents)
        starts = np.cumsum([0, *(len(each) for each, _ in parts)])[:-1]
        labels = found.labels(index)
        assert all(labels[start - 1] == IGNORED for start in starts if start)
        assert int((labels != IGNORED).sum()) == found.predicted[index]
        assert labels[:-1][labels[:-1] != IGNORED].tolist() == ids[1:][labels[:-1] != IGNORED].tolist()
        assert trained.shape == ids.shape
    assert found.predicted.sum() == rows.predicted.sum()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_a_document_is_not_seen_by_the_others_of_its_sequence(name: str) -> None:
    model = model_of(name, "sdpa")
    attend_within_rows(model)
    batch = EndToEnd(0).batch(packed([20, 17, 9, 4, 8]), [0])
    assert batch.bounds is not None
    first, second = batch.bounds.ends[1:3].tolist()
    with torch.no_grad():
        before = model(**batch.inputs, use_cache=False).logits[0]
        batch.input_ids[0, :first] = 5
        after = model(**batch.inputs, use_cache=False).logits[0]

    assert not torch.equal(before[:first], after[:first])
    assert torch.equal(before[first:], after[first:])
    assert batch.bounds.position_ids[0, first:second].tolist() == list(range(second - first))


def test_the_loss_of_sequences_is_that_of_their_rows() -> None:
    model = model_of("llama", "sdpa")
    attend_within_rows(model)
    rows = rows_of([20, 17, 9, 4, 8, 40, 33], vocabulary=97)
    found = pack(rows, CAPACITY, RowsInMemory())
    objective, layout = LanguageObjective(model), EndToEnd(0)
    with torch.no_grad():
        alone = sum(float(objective(layout.batch(rows, [row])).total) for row in range(len(rows)))
        together = float(objective(layout.batch(found, range(len(found)))).total)

    assert len(found) < len(rows)
    assert together == pytest.approx(alone, rel=1e-6)


def test_other_processes_of_the_machine_map_the_documents(tmp_path: Path) -> None:
    found = pack(some_rows(20), CAPACITY, RowsOnDisk(tmp_path))
    pickled = pickle.dumps(by_path(found))
    other = pickle.loads(pickled)

    assert len(pickled) < found.input_ids.nbytes
    assert isinstance(other, PackedRows)
    assert [other.labels(index).tolist() for index in range(len(other))] == [
        found.labels(index).tolist() for index in range(len(found))
    ]
