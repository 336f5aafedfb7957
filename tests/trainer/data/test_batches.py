from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.trainer.training_jobs import FULL, spec_of

from finetune_api.numbers import numbers
from finetune_trainer.data.batches import (
    Indices,
    deal,
    deal_evenly,
    evaluation_batches,
    row_order,
    step_rows,
)

COUNTS = st.integers(min_value=1, max_value=40)
SIZES = st.integers(min_value=1, max_value=5)


@given(rows=COUNTS, seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 9))
def test_an_epoch_has_every_row_once(rows: int, seed: int, epoch: int) -> None:
    assert sorted(row_order(seed, epoch, rows)) == list(range(rows))


def test_seed_and_epoch_alone_decide_the_order() -> None:
    order = row_order(seed=1, epoch=0, rows=20)
    assert row_order(seed=1, epoch=0, rows=20).tolist() == order.tolist()
    assert row_order(seed=1, epoch=1, rows=20).tolist() != order.tolist()
    assert row_order(seed=2, epoch=0, rows=20).tolist() != order.tolist()


@given(rows=COUNTS, devices=SIZES, batch_size=SIZES, accumulation=SIZES)
def test_the_steps_of_an_epoch_share_its_rows_out(
    rows: int, devices: int, batch_size: int, accumulation: int
) -> None:
    spec = spec_of(
        Path("model"),
        FULL,
        num_devices=devices,
        train_batch_size_per_device=batch_size,
        gradient_accumulation_steps=accumulation,
        num_warmup_steps=0,
    )
    computed = numbers(spec, rows=rows, longest_row=9, model_context_length=None)
    order = row_order(seed=0, epoch=0, rows=rows)
    steps = [
        step_rows(order, step, computed.effective_batch_size) for step in range(computed.steps_per_epoch)
    ]
    assert np.concatenate(steps).tolist() == order.tolist()
    assert all(len(step) == computed.effective_batch_size for step in steps[:-1])
    assert 0 < len(steps[-1]) <= computed.effective_batch_size


def in_order(rows: Indices, *, rank: int, num_devices: int, batch_size: int) -> list[Indices]:
    return deal(rows, rank=rank, num_devices=num_devices, batch_size=batch_size)


def evenly(rows: Indices, *, rank: int, num_devices: int, batch_size: int) -> list[Indices]:
    tokens = np.random.default_rng(len(rows)).integers(2, 500, len(rows))
    return deal_evenly(rows, tokens, rank=rank, num_devices=num_devices, batch_size=batch_size)


@pytest.mark.parametrize("way", [in_order, evenly])
@given(rows=COUNTS, devices=SIZES, batch_size=SIZES)
def test_the_devices_share_the_rows_of_a_step_in_equally_many_micro_batches(
    way: Callable[..., list[Indices]], rows: int, devices: int, batch_size: int
) -> None:
    dealt = [
        way(np.arange(rows), rank=rank, num_devices=devices, batch_size=batch_size) for rank in range(devices)
    ]
    assert len({len(micro_batches) for micro_batches in dealt}) == 1
    assert all(len(micro_batch) <= batch_size for micro_batches in dealt for micro_batch in micro_batches)
    assert sorted(np.concatenate([np.concatenate(micro_batches) for micro_batches in dealt])) == list(
        range(rows)
    )


@given(tokens=st.lists(st.integers(2, 500), min_size=1, max_size=40), devices=SIZES, batch_size=SIZES)
def test_dealt_evenly_no_micro_batch_has_more_tokens_than_another_and_the_longest_row(
    tokens: list[int], devices: int, batch_size: int
) -> None:
    lengths = np.array(tokens)
    sums = [
        int(lengths[micro_batch].sum())
        for rank in range(devices)
        for micro_batch in deal_evenly(
            np.arange(len(lengths)), lengths, rank=rank, num_devices=devices, batch_size=batch_size
        )
    ]
    assert max(sums) - min(sums) <= max(tokens)


def test_dealt_evenly_long_rows_are_apart_and_rows_keep_their_order() -> None:
    tokens = np.array([10, 90, 20, 80, 70, 30])

    dealt = [deal_evenly(np.arange(6), tokens, rank=rank, num_devices=2, batch_size=2) for rank in range(2)]

    # Longest first, to and fro: 90, 80, 70 and 30, then 20 to the one that has 30, and 10 to that with 70.
    assert [[each.tolist() for each in micro_batches] for micro_batches in dealt] == [
        [[1], [0, 4]],
        [[3], [2, 5]],
    ]


def test_a_micro_batch_of_all_rows_is_as_it_was() -> None:
    tokens = np.array([10, 90, 20])
    [whole] = deal_evenly(np.array([7, 3, 5]), tokens, rank=0, num_devices=1, batch_size=4)
    assert whole.tolist() == [7, 3, 5]


def test_a_step_with_fewer_rows_than_devices_leaves_some_of_them_an_empty_micro_batch() -> None:
    dealt = [deal(np.arange(3), rank=rank, num_devices=2, batch_size=1) for rank in range(2)]
    assert [[len(micro_batch) for micro_batch in micro_batches] for micro_batches in dealt] == [
        [1, 1],
        [1, 0],
    ]


@given(lengths=st.lists(st.integers(2, 50), min_size=1, max_size=30), devices=SIZES, batch_size=SIZES)
def test_validation_sees_every_row_once_whatever_the_devices_and_the_batch_size(
    lengths: list[int], devices: int, batch_size: int
) -> None:
    dealt = [
        evaluation_batches(np.array(lengths), rank=rank, num_devices=devices, batch_size=batch_size)
        for rank in range(devices)
    ]
    batches = [batch for batches in dealt for batch in batches]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for batch in batches)


@given(lengths=st.lists(st.integers(2, 50), min_size=1, max_size=30), devices=SIZES, batch_size=SIZES)
def test_all_devices_have_equally_many_validation_batches_also_one_without_rows(
    lengths: list[int], devices: int, batch_size: int
) -> None:
    counts = {
        len(evaluation_batches(np.array(lengths), rank=rank, num_devices=devices, batch_size=batch_size))
        for rank in range(devices)
    }
    longest_share = math.ceil(len(lengths) / devices)
    assert counts == {math.ceil(longest_share / batch_size)}


def test_validation_puts_rows_of_like_length_together() -> None:
    batches = evaluation_batches(np.array([5, 50, 6, 49]), rank=0, num_devices=1, batch_size=2)
    assert [batch.tolist() for batch in batches] == [[1, 3], [2, 0]]
