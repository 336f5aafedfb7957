"""Rows on disk are the rows, and other processes map them too."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from tests.trainer.training_jobs import rows_of, some_rows

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.token_files import ARRAYS, RowsOnDisk, by_path, map_rows, write_rows
from finetune_trainer.data.tokens import TokenizedRows


def are_the_same(one: TokenizedRows, other: TokenizedRows) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ARRAYS]
    return all(left.dtype == right.dtype and np.array_equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("rows", [some_rows(20), rows_of([3]), rows_of([2, 0, 5])], ids=["20", "1", "empty"])
def test_rows_are_mapped_as_they_were_written(tmp_path: Path, rows: TokenizedRows) -> None:
    write_rows(rows, tmp_path)

    assert are_the_same(map_rows(tmp_path), rows)
    for name in ARRAYS:
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), getattr(rows, name)), "a file of NumPy's"


def test_parts_are_put_one_after_the_other(tmp_path: Path) -> None:
    writer = RowsOnDisk(tmp_path)
    parts = [some_rows(3), some_rows(4, seed=1), some_rows(1, seed=2)]
    for part in parts:
        writer.append(part)

    together = writer.finish()

    rows = [part.row(index) for part in parts for index in range(len(part))]
    assert [together.row(index)[0].tolist() for index in range(8)] == [ids.tolist() for ids, _ in rows]
    assert [together.row(index)[1].tolist() for index in range(8)] == [counts.tolist() for _, counts in rows]
    assert together.lines.tolist() == [1, 2, 3, 1, 2, 3, 4, 1]


def test_for_other_processes_of_the_machine_rows_are_their_path(tmp_path: Path) -> None:
    rows = some_rows(200)
    write_rows(rows, tmp_path)

    sent = pickle.dumps(by_path(map_rows(tmp_path)))

    received = pickle.loads(sent)
    assert len(sent) < 500
    assert received.directory == tmp_path
    assert are_the_same(received, rows)
    assert by_path(rows) is rows, "those in memory are sent as they are"


def test_for_other_machines_tokens_are_buffers_that_nobody_copies_to_pickle_them(tmp_path: Path) -> None:
    rows = some_rows(200)
    write_rows(rows, tmp_path)
    buffers: list[pickle.PickleBuffer] = []

    sent = pickle.dumps(map_rows(tmp_path), protocol=5, buffer_callback=buffers.append)

    assert len(sent) < 1500
    assert are_the_same(pickle.loads(sent, buffers=buffers), rows)


def test_a_directory_that_is_gone_is_said(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    writer = RowsOnDisk(tmp_path / "tokens")
    for file in (tmp_path / "tokens").iterdir():
        file.unlink()
    (tmp_path / "tokens").rmdir()

    with pytest.raises(FineTuneError, match="No such file or directory") as raised:
        writer.append(some_rows(2))

    assert raised.value.failure_class is FailureClass.STORAGE_ERROR
