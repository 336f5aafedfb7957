"""The numbers of a run, by hand and by their laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.crds.reading import spec_of
from transformers import get_scheduler

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.numbers import (
    Numbers,
    checkpoint_epochs,
    checkpoint_name,
    default_batch_size,
    default_context_length,
    learning_rate_factor,
    numbers,
    resolved_dtype,
)
from finetune_api.spec import Scheduler

LORA = "lora_config: {}\n"


def numbers_of(
    text: str, *, rows: int = 1000, longest_row: int = 300, model_context_length: int | None = 8192
) -> Numbers:
    return numbers(
        spec_of(LORA + text), rows=rows, longest_row=longest_row, model_context_length=model_context_length
    )


def problems_of(text: str, *, rows: int = 1000, model_context_length: int | None = 8192) -> tuple[str, ...]:
    with pytest.raises(FineTuneError) as raised:
        numbers_of(text, rows=rows, model_context_length=model_context_length)
    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    return raised.value.problems


def test_24_steps_an_epoch_are_5_epochs_for_at_least_100_steps() -> None:
    run = numbers_of("num_devices: 8\ntrain_batch_size_per_device: 16", rows=24 * 16 * 8)

    assert (run.steps_per_epoch, run.total_epochs, run.total_steps) == (24, 5, 120)


def test_16_rows_on_each_of_8_devices_are_128_a_step() -> None:
    assert numbers_of("num_devices: 8\ntrain_batch_size_per_device: 16").effective_batch_size == 128


def test_the_blocks_of_llmforges_guide_together() -> None:
    guide = """
num_devices: 8
learning_rate: 1e-4
lr_scheduler_type: cosine
num_warmup_steps: 10
train_batch_size_per_device: 16
eval_batch_size_per_device: 16
num_epochs: 10
min_update_steps: 100
checkpoint_every_n_epochs: 5
max_num_checkpoints: 10
"""

    assert numbers_of(guide, rows=1000, longest_row=300) == Numbers(
        rows=1000,
        context_length=512,
        num_devices=8,
        train_batch_size_per_device=16,
        eval_batch_size_per_device=16,
        gradient_accumulation_steps=1,
        effective_batch_size=128,
        micro_batches_per_epoch=8,  # 125 rows on each device, in sixteens
        steps_per_epoch=8,
        total_epochs=10,
        total_steps=80,
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        num_warmup_steps=10,
        checkpoint_epochs=(4, 9),
    )


def test_all_that_is_left_out_is_derived() -> None:
    assert numbers_of("", rows=1000, longest_row=700) == Numbers(
        rows=1000,
        context_length=1024,
        num_devices=1,
        train_batch_size_per_device=8,
        eval_batch_size_per_device=8,
        gradient_accumulation_steps=1,
        effective_batch_size=8,
        micro_batches_per_epoch=125,
        steps_per_epoch=125,
        total_epochs=1,
        total_steps=125,
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        num_warmup_steps=10,
        checkpoint_epochs=(0,),
    )


@pytest.mark.parametrize(
    ("text", "rows", "micro_batches", "steps"),
    [
        ("train_batch_size_per_device: 4", 8, 2, 2),
        ("train_batch_size_per_device: 4", 9, 3, 3),
        ("train_batch_size_per_device: 4\nnum_devices: 2", 9, 2, 2),
        ("train_batch_size_per_device: 16\nnum_devices: 2", 500, 16, 16),
        ("train_batch_size_per_device: 4\ngradient_accumulation_steps: 2", 20, 5, 3),
        ("train_batch_size_per_device: 4\nnum_devices: 3\ngradient_accumulation_steps: 4", 100, 9, 3),
        ("train_batch_size_per_device: 64\nnum_devices: 4\ngradient_accumulation_steps: 8", 1, 1, 1),
    ],
)
def test_the_last_partial_batch_and_the_last_partial_step_count(
    text: str, rows: int, micro_batches: int, steps: int
) -> None:
    run = numbers_of(text, rows=rows)

    assert (run.micro_batches_per_epoch, run.steps_per_epoch) == (micro_batches, steps)


@given(
    rows=st.integers(1, 10**6),
    devices=st.integers(1, 64),
    batch=st.integers(1, 64),
    accumulation=st.integers(1, 16),
)
def test_a_step_is_as_many_rows_as_the_effective_batch_and_no_row_is_dropped(
    rows: int, devices: int, batch: int, accumulation: int
) -> None:
    text = (
        f"num_devices: {devices}\ntrain_batch_size_per_device: {batch}\ngradient_accumulation_steps:"
        f" {accumulation}\nnum_warmup_steps: 0"
    )
    run = numbers_of(text, rows=rows)

    assert run.steps_per_epoch == math.ceil(rows / run.effective_batch_size)
    assert (
        (run.steps_per_epoch - 1) * run.effective_batch_size
        < rows
        <= run.steps_per_epoch * run.effective_batch_size
    )


@given(rows=st.integers(1, 10**5), minimum=st.integers(1, 10**5), batch=st.integers(1, 64))
def test_a_run_without_epochs_has_the_fewest_that_reach_the_least_number_of_steps(
    rows: int, minimum: int, batch: int
) -> None:
    run = numbers_of(
        f"min_update_steps: {minimum}\ntrain_batch_size_per_device: {batch}\nnum_warmup_steps: 0", rows=rows
    )

    assert run.total_steps == run.total_epochs * run.steps_per_epoch
    assert run.total_steps - run.steps_per_epoch < minimum <= run.total_steps


@pytest.mark.parametrize(
    ("text", "epochs"), [("num_epochs: 3\nmin_update_steps: 500", 3), ("min_num_update_steps: 30", 2)]
)
def test_epochs_come_before_steps_and_steps_have_two_spellings(text: str, epochs: int) -> None:
    assert numbers_of(f"{text}\ntrain_batch_size_per_device: 50", rows=1000).total_epochs == epochs


@pytest.mark.parametrize(
    ("longest_row", "most", "context_length"),
    [
        (1, None, 512),
        (512, None, 512),
        (513, None, 1024),
        (1024, 8192, 1024),
        (5000, 8192, 8192),
        (9000, 8192, 8192),
        (9000, None, 16384),
        (100, 300, 300),
        (3000, 3000, 3000),
    ],
)
def test_the_context_is_the_smallest_power_of_two_that_holds_the_longest_row_and_the_model_takes(
    longest_row: int, most: int | None, context_length: int
) -> None:
    assert default_context_length(longest_row, most) == context_length
    assert numbers_of("", longest_row=longest_row, model_context_length=most).context_length == context_length


@given(longest_row=st.integers(1, 10**6))
def test_the_context_holds_the_row_and_half_of_it_would_not(longest_row: int) -> None:
    length = default_context_length(longest_row, None)

    assert length & (length - 1) == 0
    assert length >= longest_row
    assert length == 512 or length // 2 < longest_row


@pytest.mark.parametrize(
    ("context_length", "batch"),
    [(8, 16), (512, 16), (513, 15), (1024, 8), (4096, 2), (8192, 1), (100_000, 1)],
)
def test_a_micro_batch_has_8192_tokens_in_1_to_16_rows(context_length: int, batch: int) -> None:
    run = numbers_of(f"context_length: {context_length}", model_context_length=None)

    assert default_batch_size(context_length) == batch
    assert (run.train_batch_size_per_device, run.eval_batch_size_per_device) == (batch, batch)


def test_each_batch_size_can_be_set_alone() -> None:
    train_only = numbers_of("train_batch_size_per_device: 3")
    eval_only = numbers_of("eval_batch_size_per_device: 3")

    assert (train_only.train_batch_size_per_device, train_only.eval_batch_size_per_device) == (3, 16)
    assert (eval_only.train_batch_size_per_device, eval_only.eval_batch_size_per_device) == (16, 3)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("lora_config: {}", 1e-4),
        ("", 1e-5),
        ("lora_config: {}\nlearning_rate: 3e-4", 3e-4),
        ("learning_rate: 5e-6", 5e-6),
    ],
)
def test_the_peak_learning_rate_is_ten_times_higher_for_adapters(text: str, rate: float) -> None:
    assert numbers(spec_of(text), rows=1000, longest_row=300, model_context_length=None).learning_rate == rate


@pytest.mark.parametrize(
    ("scheduler", "name"), [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize(
    ("warmup", "total"), [(0, 1), (0, 7), (1, 2), (1, 50), (10, 48), (10, 1000), (49, 50), (50, 50), (99, 50)]
)
def test_the_learning_rate_of_every_update_is_that_of_transformers(
    scheduler: Scheduler, name: str, warmup: int, total: int
) -> None:
    peak = 3e-4
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    rates = []
    for _ in range(total + 1):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()

    assert [
        peak * learning_rate_factor(scheduler, update, warmup, total) for update in range(total + 1)
    ] == rates


def test_the_learning_rate_rises_in_a_line_and_falls_to_nothing() -> None:
    run = numbers_of(
        "learning_rate: 1e-4\nnum_epochs: 12\ntrain_batch_size_per_device: 250\nnum_warmup_steps: 10"
    )

    assert run.total_steps == 48
    assert run.learning_rate_at(0) == 0
    assert run.learning_rate_at(5) == pytest.approx(5e-5)
    assert run.learning_rate_at(10) == 1e-4
    # In a run of LLMForge's with these numbers the log shows 5e-05 after 29 steps.
    assert run.learning_rate_at(29) == pytest.approx(5e-5)
    assert run.learning_rate_at(48) == 0


@given(
    scheduler=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=st.integers(0, 200),
    total=st.integers(1, 2000),
    update=st.integers(0, 2100),
)
def test_the_learning_rate_is_never_below_nothing_nor_above_its_peak(
    scheduler: Scheduler, warmup: int, total: int, update: int
) -> None:
    assert 0 <= learning_rate_factor(scheduler, update, warmup, total) <= 1


@pytest.mark.parametrize(
    ("total", "every", "at_most", "expected"),
    [
        (3, None, None, (0, 1, 2)),
        (5, 5, None, (4,)),
        (10, 5, None, (4, 9)),
        (7, 3, None, (2, 5, 6)),
        (10, 20, None, (9,)),
        (10, None, 3, (3, 7, 9)),
        (10, None, 10, tuple(range(10))),
        (10, None, 20, tuple(range(10))),
        (10, None, 1, (9,)),
        (10, 2, 3, (3, 7, 9)),
        (10, 5, 10, (4, 9)),
        (1, None, None, (0,)),
    ],
)
def test_validation_and_checkpoint_come_every_n_epochs_and_after_the_last(
    total: int, every: int | None, at_most: int | None, expected: tuple[int, ...]
) -> None:
    assert checkpoint_epochs(total, every, at_most) == expected


@given(
    total=st.integers(1, 500), every=st.none() | st.integers(1, 600), at_most=st.none() | st.integers(1, 600)
)
def test_there_are_never_more_checkpoints_than_wished_for_and_always_the_last_one(
    total: int, every: int | None, at_most: int | None
) -> None:
    epochs = checkpoint_epochs(total, every, at_most)

    assert epochs[-1] == total - 1
    assert len(epochs) <= (at_most or total)
    assert list(epochs) == sorted(set(epochs))
    gaps = {later - earlier for earlier, later in zip((-1, *epochs), epochs[:-1], strict=False)}
    assert len(gaps) <= 1
    assert all(gap >= (every or 1) for gap in gaps)


@pytest.mark.parametrize(
    "text",
    [
        "checkpoint_every_n_epochs: 2",
        "checkpoint_and_evaluation_frequency: {frequency: 2}",
        "max_num_checkpoints: 2",
    ],
)
def test_each_way_to_say_how_often_counts(text: str) -> None:
    assert numbers_of(f"num_epochs: 4\n{text}").checkpoint_epochs == (1, 3)


@pytest.mark.parametrize(
    ("max_steps", "epochs", "saved"),
    [
        (1, 1, {1: "epoch-0"}),
        (8, 1, {8: "epoch-0"}),
        (9, 2, {8: "epoch-0", 9: "epoch-1"}),
        (20, 3, {8: "epoch-0", 16: "epoch-1", 20: "epoch-2"}),
        (24, 3, {8: "epoch-0", 16: "epoch-1", 24: "epoch-2"}),
    ],
)
def test_a_run_of_so_many_steps_ends_in_an_epoch_and_its_last_checkpoint_is_called_after_it(
    max_steps: int, epochs: int, saved: dict[int, str]
) -> None:
    run = numbers_of(f"max_steps: {max_steps}\nnum_warmup_steps: 0\ntrain_batch_size_per_device: 125")

    assert (run.steps_per_epoch, run.total_epochs, run.total_steps) == (8, epochs, max_steps)
    assert {step: run.checkpoint_after(step) for step in range(1, max_steps + 1)} == {
        step: saved.get(step) for step in range(1, max_steps + 1)
    }


@pytest.mark.parametrize("epochs", [1, 50])
def test_steps_go_before_epochs_as_in_transformers(epochs: int) -> None:
    run = numbers_of(f"max_steps: 20\nnum_epochs: {epochs}\ntrain_batch_size_per_device: 125")

    assert (run.total_epochs, run.total_steps) == (3, 20)
    assert run.checkpoint_epochs == (0, 1, 2)


def test_the_schedule_of_a_run_that_ends_in_an_epoch_is_as_long_as_the_run() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    theirs = get_scheduler("cosine", optimizer, num_warmup_steps=3, num_training_steps=20)
    rates = []
    for _ in range(20):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    run = numbers_of(
        "max_steps: 20\nlearning_rate: 2e-4\nnum_warmup_steps: 3\ntrain_batch_size_per_device: 125"
    )

    assert [run.learning_rate_at(update) for update in range(20)] == rates


def test_validation_comes_every_n_steps_and_with_every_checkpoint() -> None:
    text = "num_epochs: 3\nnum_warmup_steps: 0\ntrain_batch_size_per_device: 125\neval_steps: 3"
    run = numbers_of(text)

    assert [step for step in range(1, 25) if run.validates_after(step)] == [
        3,
        6,
        8,
        9,
        12,
        15,
        16,
        18,
        21,
        24,
    ]
    assert run == numbers_of(text.replace("eval_steps: 3", "")).model_copy(update={"eval_steps": 3})


def test_steps_that_are_more_epochs_than_a_status_can_hold_are_refused() -> None:
    assert problems_of("train_batch_size_per_device: 1000\nnum_warmup_steps: 0\nmax_steps: 100001") == (
        "spec.max_steps: 100001 steps are 100001 epochs of 1; at most 100000 epochs are possible",
    )


def test_a_checkpoint_has_the_name_that_llmforge_gives_it() -> None:
    assert [checkpoint_name(epoch) for epoch in checkpoint_epochs(5, 5, None)] == ["epoch-4"]


def test_a_context_beyond_the_models_is_refused() -> None:
    assert problems_of("context_length: 10000") == (
        "spec.context_length: 10000 is more than the model takes; at most 8192 is possible",
    )
    assert numbers_of("context_length: 10000", model_context_length=None).context_length == 10000


def test_a_warm_up_as_long_as_the_run_is_refused_when_it_was_wished_for() -> None:
    text = "num_epochs: 2\ntrain_batch_size_per_device: 200"

    assert problems_of(f"{text}\nnum_warmup_steps: 10") == (
        (
            "spec.num_warmup_steps: 10 warm-up steps leave none of the run's 10 for the full learning rate;"
            " at most 9 are possible"
        ),
    )
    assert numbers_of(f"{text}\nnum_warmup_steps: 9").num_warmup_steps == 9


def test_a_warm_up_as_long_as_the_run_is_a_warning_when_it_is_the_default() -> None:
    run = numbers_of("num_epochs: 2\ntrain_batch_size_per_device: 200")

    assert run.num_warmup_steps == 10
    [warning] = run.warnings
    assert warning.startswith(
        "spec.num_warmup_steps is left out, and its default of 10 warm-up steps leave none of the run's 10"
    )
    assert warning.endswith("; set it lower, or train longer")
    assert numbers_of("num_epochs: 11\ntrain_batch_size_per_device: 1000").warnings == ()


def test_more_epochs_than_a_status_can_hold_are_refused() -> None:
    text = "train_batch_size_per_device: 1000\nnum_warmup_steps: 0\nmin_update_steps:"

    assert problems_of(f"{text} 100001") == (
        "spec.min_update_steps: 100001 steps are 100001 epochs of 1; at most 100000 epochs are possible",
    )
    assert numbers_of(f"{text} 100000").total_epochs == 100_000


def test_more_devices_than_rows_are_a_warning() -> None:
    assert numbers_of("num_devices: 4\nnum_warmup_steps: 1", rows=3).warnings == (
        "spec.num_devices is 4, and there are 3 rows: some devices have nothing to do",
    )
    assert numbers_of("num_devices: 4\nnum_warmup_steps: 1", rows=4).warnings == ()


def test_every_problem_is_told_at_once() -> None:
    assert len(problems_of("context_length: 10000\nnum_epochs: 1\nnum_warmup_steps: 2000")) == 2


@pytest.mark.parametrize(
    ("text", "on_gpu", "dtype"),
    [
        ("", True, "bf16"),
        ("", False, "fp32"),
        ("dtype: fp32", True, "fp32"),
        ("dtype: bf16", False, "bf16"),
        ("dtype: auto", True, "bf16"),
    ],
)
def test_the_precision_follows_the_device_unless_said_otherwise(text: str, on_gpu: bool, dtype: str) -> None:
    assert resolved_dtype(spec_of(text), on_gpu=on_gpu) == dtype
