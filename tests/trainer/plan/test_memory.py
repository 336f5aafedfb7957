"""The estimate beside what is allocated, and beside PyTorch's own tracker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.model_shapes import SIZES
from bench.peak_memory import SMALL, Case, measured
from bench.tracked_memory import CASES, estimated_for, tracked
from pydantic import JsonValue
from tests.trainer.training_jobs import FULL, LORA, Fields, forward_of, some_rows, spec_of

from finetune_api.numbers import ResolvedPrecision
from finetune_api.sharding import COPIES, Sharding
from finetune_trainer.data.batches import evaluation_batches, row_order, step_rows
from finetune_trainer.data.layout import EndToEnd
from finetune_trainer.model.load import load_model
from finetune_trainer.model.sizes import Parameters, Sizes
from finetune_trainer.plan import memory as memory_module
from finetune_trainer.plan.layer_memory import LayerMemory
from finetune_trainer.plan.memory import RowLengths, Step, estimate, memory
from finetune_trainer.plan.prepare import prepare
from finetune_trainer.training.optimizer import adamw
from finetune_trainer.training.step import backward


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_weights_and_optimizer_take_what_the_estimate_says(
    tiny_model: Path, tiny_rows: Path, way: Fields, dtype: ResolvedPrecision
) -> None:
    prepared = prepare(spec_of(tiny_model, way, train_path=str(tiny_rows), valid_path=None))
    model = load_model(prepared.spec, dtype=dtype, on_gpu=False)
    optimizer = adamw(model, prepared.spec)
    rows = step_rows(row_order(0, 0, len(prepared.train)), 0, 4)
    backward(forward_of(model, dtype=dtype, pad_token_id=0), prepared.train, rows, 4)
    optimizer.step()

    expected = estimate(prepared, dtype)
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    # PEFT trains what it adds to a bf16 model in fp32, and so does full training: `weights` must
    # know of both.
    assert sum(parameter.nbytes for parameter in model.parameters()) == expected.weights
    assert sum(moment.nbytes for moment in moments) == expected.optimizer


@pytest.mark.parametrize(
    "case",
    [
        Case("llama-3-8b", 4, 256, LORA),
        Case("llama-3.2-1b", 4, 128, FULL, {"dtype": "bf16", "gradient_checkpointing": False}),
    ],
    ids=["lora in fp32, recomputed", "full in bf16, kept"],
)
def test_the_peak_of_real_steps_is_within_15_percent(case: Case, tmp_path: Path) -> None:
    result = measured(replace(case, sizes=SMALL), tmp_path, torch.device("cpu"))

    assert result.peak is not None
    assert result.estimated.total == pytest.approx(result.peak, rel=0.15)


@pytest.mark.parametrize("name", ["llama-2-7b full fsdp", "llama-3-8b lora fsdp", "mistral-7b full ddp"])
def test_the_estimate_is_within_10_percent_of_pytorchs_tracker(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    # bench/tracked_memory.py has all layers, and the models of 70 billion parameters.
    monkeypatch.setitem(SIZES[case.model], "num_hidden_layers", 3)

    assert estimated_for(case).total == pytest.approx(tracked(case), rel=0.10)


GIB = 2**30
LAYERS, LAYER, EMBEDDING = 32, 200_000_000, 130_000_000
STEP = Step(
    sizes=Sizes(
        layers=LAYERS,
        layer=Parameters(trained=LAYER, matrices=LAYER),
        all_layers=Parameters(trained=LAYERS * LAYER, matrices=LAYERS * LAYER),
        embedding=Parameters(trained=EMBEDDING),
        rest=Parameters(trained=EMBEDDING, matrices=EMBEDDING),
        largest=EMBEDDING,
        largest_frozen=0,
    ),
    layer=LayerMemory(
        kept=240_000,
        entered=16_000,
        working=80_000,
        working_again=280_000,
        evaluated=130_000,
        ends=50_000,
        kept_whatever=2 * LAYER,
        working_whatever=0,
        expanded=0,
    ),
    vocabulary=32_000,
    hidden_size=4096,
    dtype="bf16",
    sharding=COPIES,
    devices=8,
    sharers=8,
    rows=2,
    length=2048,
    counted=4096,
    accumulates=False,
    recomputes=True,
)
"""A Llama of 6.7 billion parameters, trained in full, in round numbers."""
PARTS = Sharding(kind="fsdp")


def test_the_parts_add_up_to_the_total() -> None:
    for step in (STEP, replace(STEP, sharding=PARTS), replace(STEP, recomputes=False, length=8192)):
        estimated = memory(step)
        parts = estimated.model_dump(exclude={"total", "moment", "host"})
        assert estimated.total == sum(parts.values())


def test_a_copy_takes_20_bytes_a_parameter_on_each_device_and_a_part_16_bytes_of_its_share() -> None:
    parameters = LAYERS * LAYER + 2 * EMBEDDING
    copy, part = memory(STEP), memory(replace(STEP, sharding=PARTS))

    assert (copy.weights, copy.optimizer) == (4 * parameters, 8 * parameters)
    # Weights, gradients, two moments, and DDP's buckets.
    assert copy.total > 20 * parameters - 4 * (LAYER + EMBEDDING)
    assert (part.weights, part.optimizer) == (4 * parameters / 8, 8 * parameters / 8)
    assert part.total < copy.total / 4


def test_offload_leaves_what_a_layer_needs_on_the_device_and_puts_the_rest_on_the_host() -> None:
    part = memory(replace(STEP, sharding=PARTS))
    offloaded = memory(replace(STEP, sharding=PARTS.model_copy(update={"cpu_offload": True})))

    parameters = LAYERS * LAYER + 2 * EMBEDDING
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (0, 0, 0)
    assert offloaded.total < part.total
    assert offloaded.host - part.host == 12 * parameters / 8


def test_weights_that_are_kept_gathered_are_whole_on_each_device() -> None:
    gathered = memory(replace(STEP, sharding=PARTS.model_copy(update={"reshard": False})))

    assert gathered.copies > 4 * LAYERS * LAYER


def test_frozen_weights_in_4_bits_take_a_quarter() -> None:
    frozen = replace(
        STEP,
        sizes=replace(
            STEP.sizes,
            layer=Parameters(frozen=LAYER, quantizable=LAYER),
            all_layers=Parameters(frozen=LAYERS * LAYER, quantizable=LAYERS * LAYER),
            embedding=Parameters(frozen=EMBEDDING),
            rest=Parameters(frozen=EMBEDDING),
            largest=0,
            largest_frozen=LAYER // 4,
        ),
    )
    plain, quantized = memory(frozen), memory(replace(frozen, quantized=True))

    # 4.127 bits, by QLoRA's section 3.
    assert plain.weights - quantized.weights == pytest.approx(LAYERS * LAYER * (2 - 4.127 / 8), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "grows"),
    [
        ({"length": 4096}, True),
        ({"recomputes": False, "length": 8192}, True),
        ({"padded": True, "rows": 8, "length": 4096}, True),
        ({"evaluated_rows": 64, "evaluated_length": 4096}, True),
        ({"counted": 0, "length": 16_384, "rows": 1}, True),
    ],
    ids=["longer rows", "kept activations", "padding", "validation", "rows whose tokens do not count"],
)
def test_what_takes_more(change: dict[str, JsonValue], grows: bool) -> None:
    shared = replace(STEP, sharding=PARTS)
    assert (memory(replace(shared, **change)).total > memory(shared).total) is grows  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "accumulation"), [(4, 1, 1), (2, 3, 1), (8, 2, 1), (2, 2, 3), (1, 2, 11)]
)
def test_the_largest_micro_batch_is_that_of_the_rows_as_they_are_dealt(
    batch_size: int, num_devices: int, accumulation: int
) -> None:
    rows, epochs = some_rows(21), 3
    step = batch_size * num_devices * accumulation
    lengths = RowLengths(rows.lengths, rows.predicted, rows.lengths, seed=7, epochs=epochs)
    dealt = [
        micro_batch
        for epoch in range(epochs)
        for start in range(0, len(rows), step)
        for rank in range(num_devices)
        for micro_batch in EndToEnd(0).deal(
            rows,
            row_order(7, epoch, len(rows))[start : start + step],
            rank=rank,
            num_devices=num_devices,
            batch_size=batch_size,
        )
    ]
    assert lengths.most(batch_size, num_devices, accumulation) == (
        max(int(rows.lengths[each].sum()) for each in dealt),
        max(int(rows.predicted[each].sum()) for each in dealt),
    )
    validated = [
        int(rows.lengths[each].sum())
        for rank in range(num_devices)
        for each in evaluation_batches(
            rows.lengths, rank=rank, num_devices=num_devices, batch_size=batch_size
        )
    ]
    assert lengths.most_validated(batch_size, num_devices) == max(validated)


def test_of_more_rows_than_are_looked_at_the_longest_are_taken_to_come_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_module, "MOST_ROWS_LOOKED_AT", 5)
    tokens, counted = np.array([3, 9, 4, 8, 1, 1]), np.array([1, 2, 3, 1, 1, 1])
    assert RowLengths(tokens, counted, None, seed=0, epochs=1).most(2, 1, 1) == (17, 5)


def test_scores_take_no_more_for_a_larger_vocabulary() -> None:
    chunked = replace(STEP, in_chunks=True)
    small, large = (
        memory_module._of_scores(replace(chunked, vocabulary=each, sizes=Sizes()), 0)
        for each in (32_000, 256_000)
    )
    assert large == pytest.approx(small, rel=1e-3)
    whole = replace(chunked, vocabulary=256_000, in_chunks=False)
    assert memory_module._of_scores(whole, 0)[0] > 10 * large[0]


def test_the_estimate_is_of_tokens_without_padding() -> None:
    end_to_end = replace(STEP, end_to_end=1000, length=4096)
    assert memory(end_to_end).total == memory(replace(STEP, rows=1, length=1000)).total
