"""Compares the estimate with the tensors that a training step really holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.trainer.training_jobs import FULL, LORA, Fields, forward_of, spec_of

from finetune_api.numbers import ResolvedPrecision
from finetune_trainer.data.batches import row_order, step_rows
from finetune_trainer.model.load import load_model
from finetune_trainer.plan.memory import MemoryEstimate, estimate
from finetune_trainer.plan.prepare import Prepared, prepare
from finetune_trainer.training.optimizer import adamw
from finetune_trainer.training.step import backward


def prepared_job(model: Path, rows: Path, way: Fields, **fields: JsonValue) -> Prepared:
    return prepare(spec_of(model, way, train_path=str(rows), valid_path=None, **fields))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_weights_gradients_and_optimizer_take_what_the_estimate_says(
    tiny_model: Path, tiny_rows: Path, way: Fields, dtype: ResolvedPrecision
) -> None:
    prepared = prepared_job(tiny_model, tiny_rows, way)
    model = load_model(prepared.spec, dtype=dtype, on_gpu=False)
    optimizer = adamw(model, prepared.spec, fused=False)
    rows = step_rows(row_order(0, 0, len(prepared.train)), 0, 4)
    backward(forward_of(model, dtype=dtype, pad_token_id=0), prepared.train, rows, 4)
    optimizer.step()

    expected = estimate(prepared, dtype)
    parameters = list(model.parameters())
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    # PEFT trains what it adds to a bf16 model in fp32, and so does full training: `weights` must
    # know of both.
    assert sum(parameter.nbytes for parameter in parameters) == expected.weights
    assert (
        sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None)
        == expected.gradients
    )
    assert sum(moment.nbytes for moment in moments) == expected.optimizer


def test_the_sum_is_in_the_total(tiny_model: Path, tiny_rows: Path) -> None:
    parts = estimate(prepared_job(tiny_model, tiny_rows, LORA), "fp32").model_dump()
    total = parts.pop("total")
    assert total == sum(parts.values())
    assert all(part > 0 for part in parts.values())


def test_activations_and_logits_grow_with_the_tokens_of_a_micro_batch(
    tiny_model: Path, tiny_rows: Path
) -> None:
    def of_batch(rows: int, **fields: JsonValue) -> MemoryEstimate:
        return estimate(
            prepared_job(tiny_model, tiny_rows, LORA, train_batch_size_per_device=rows, **fields), "fp32"
        )

    one, four = of_batch(1), of_batch(4)
    assert (four.activations, four.logits) == (4 * one.activations, 4 * one.logits)
    assert of_batch(1, gradient_checkpointing=False).activations > one.activations
    assert of_batch(1, padding="max_length", context_length=1024).logits > one.logits
