"""Which rows are taken and which are held out depends on rows and seed alone."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.trainer.training_jobs import some_rows

from finetune_trainer.data.mixing import Taken, exactly, held_out, repeated, together
from finetune_trainer.data.places import numbered
from finetune_trainer.data.tokens import RowsInMemory

SEED = (7, 0)


@given(st.integers(1, 200), st.integers(1, 1000))
def test_as_many_rows_as_asked_for_are_there_each_as_often_as_the_others_but_for_one(
    rows: int, count: int
) -> None:
    taken = exactly(np.arange(rows), count, SEED)

    times = np.bincount(taken, minlength=rows)
    assert len(taken) == count == times.sum()
    assert times.max() - times.min() <= 1
    assert taken.tolist() == exactly(np.arange(rows), count, SEED).tolist()


def test_a_weight_is_how_often_each_row_is_taken() -> None:
    rows = np.arange(10)

    assert repeated(rows, 2, SEED).tolist() == [*range(10), *range(10)]
    assert repeated(rows, 1, SEED).tolist() == [*range(10)]
    assert len(half := repeated(rows, 0.5, SEED)) == 5
    assert len(set(half.tolist())) == 5
    assert half.tolist() != repeated(rows, 0.5, (8, 0)).tolist(), "another seed"
    assert len(repeated(rows, 0.001, SEED)) == 1


def test_a_hash_of_the_tokens_decides_what_is_held_out() -> None:
    rows = some_rows(200)
    by_hand = []
    for index in range(len(rows)):
        ids = rows.row(index)[0].tolist()
        content = struct.pack(f"<q{len(ids)}i", len(ids), *ids)
        number = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
        by_hand.append(number < 0.25 * 2**64)

    assert held_out(rows, 1, 0.25).tolist() == by_hand
    assert 30 < sum(by_hand) < 70


def test_documents_of_a_row_are_held_out_together() -> None:
    documents = some_rows(200)

    found = held_out(documents, 2, 0.5)

    assert found.shape == (100,)
    assert 30 < found.sum() < 70


def test_what_is_taken_keeps_its_tokens_and_says_where_it_is_from() -> None:
    first, second = some_rows(2100, seed=1), some_rows(4, seed=2)
    rows = np.arange(1050)[::-1]

    found = together([Taken(first, rows), Taken(second, np.array([1, 1]), first_file=3)], 2, RowsInMemory())

    documents = [*(2 * row + each for row in rows for each in (0, 1))]
    for index, document in enumerate(documents):
        assert found.row(index)[0].tolist() == first.row(document)[0].tolist()
        assert found.row(index)[1].tolist() == first.row(document)[1].tolist()
    assert found.lines[: len(documents)].tolist() == [document + 1 for document in documents]
    assert found.lines[-4:].tolist() == [numbered(3, 3), numbered(3, 4)] * 2
    assert found.row(len(found) - 1)[0].tolist() == second.row(3)[0].tolist()
