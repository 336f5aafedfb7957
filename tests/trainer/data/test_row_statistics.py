from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from finetune_trainer.data.row_statistics import Repeats, histogram, repeats, repeats_of
from finetune_trainer.data.tokens import TokenizedRows, offsets_of


def rows_with(*tokens: Sequence[int], lines: Sequence[int] | None = None) -> TokenizedRows:
    """Rows of these tokens, in lines 1, 2, ... of a file or in those that are given."""
    return TokenizedRows(
        input_ids=np.array([token for row in tokens for token in row], dtype=np.int32),
        trained=np.ones(sum(map(len, tokens)), dtype=np.bool_),
        offsets=offsets_of([len(row) for row in tokens]),
        lines=np.array(lines or range(1, len(tokens) + 1), dtype=np.int64),
    )


def bars(lengths: Sequence[int], most: int = 12) -> list[tuple[int, int, int]]:
    return [(each.shortest, each.longest, each.rows) for each in histogram(np.array(lengths), most)]


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [
        ([7], 12, [(7, 7, 1)]),
        ([3, 4, 4, 6], 12, [(3, 3, 1), (4, 4, 2), (5, 5, 0), (6, 6, 1)]),
        # 10 to 29 in at most 4 bins: widths of 1, 2 and 5 need 20, 10 and 4 of them.
        ([10, 14, 15, 29, 29], 4, [(10, 14, 2), (15, 19, 1), (20, 24, 0), (25, 29, 2)]),
        # In at most 3 the width is 10, and bins begin at its multiples.
        ([12, 19, 20, 29, 29], 3, [(10, 19, 2), (20, 29, 3)]),
        # 150 to 1150 in bins of 100, 11 of them.
        (
            [150, 1150, 1150],
            12,
            [(k * 100, k * 100 + 99, 1 if k == 1 else 2 if k == 11 else 0) for k in range(1, 12)],
        ),
    ],
)
def test_lengths_are_counted_in_bins_of_a_round_width(
    lengths: list[int], most: int, expected: list[tuple[int, int, int]]
) -> None:
    assert bars(lengths, most) == expected


def test_a_few_rows_that_are_far_longer_share_the_last_bin() -> None:
    lengths = [10] * 150 + [19] * 149 + [5000]

    assert bars(lengths, 2) == [(10, 14, 150), (15, 19, 149), (20, 5000, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_one_bin_which_has_its_length(seed: int) -> None:
    lengths = np.random.default_rng(seed).geometric(0.01, 500)

    bins = histogram(lengths)

    assert [each.rows for each in bins] == [
        sum(each.shortest <= length <= each.longest for length in lengths) for each in bins
    ]
    assert sum(each.rows for each in bins) == 500
    assert len(bins) <= 13


def test_rows_that_repeat_an_earlier_one_are_counted_and_the_first_is_named() -> None:
    rows = rows_with([1, 2], [3], [1, 2, 3], [3], [1, 2], [3], lines=[10, 11, 14, 15, 16, 17])

    assert repeats(rows) == Repeats(rows=3, line=15, of_line=11)
    assert repeats(rows_with([1, 2], [2, 1], [1], [2])) is None


def test_a_pair_is_repeated_when_both_of_its_answers_are() -> None:
    one_answer = rows_with([1], [2], [1], [3], lines=[1, 1, 2, 2])
    other_way = rows_with([1], [2], [2], [1], lines=[1, 1, 2, 2])
    both = rows_with([1], [2], [1], [3], [1], [2], lines=[1, 1, 2, 2, 3, 3])

    assert repeats(one_answer, 2) is None
    assert repeats(other_way, 2) is None
    assert repeats(both, 2) == Repeats(rows=1, line=3, of_line=1)


def test_rows_that_are_training_rows_are_counted_each_and_the_first_is_named() -> None:
    train = rows_with([1, 2], [3], [3], [4])

    assert repeats_of(train, rows_with([9], [3], [1, 2], [3], [2, 1])) == Repeats(rows=3, line=2, of_line=2)
    assert repeats_of(train, rows_with([9], [255], [0])) is None
    assert repeats_of(train, rows_with([9], [8], [3], [4], lines=[5, 5, 6, 6]), 2) == Repeats(
        rows=1, line=6, of_line=3
    )
