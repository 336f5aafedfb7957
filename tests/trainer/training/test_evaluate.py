from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    VALIDATION_ROWS,
    Fields,
    column,
    forward_of,
    job_of,
    rows_of,
    some_rows,
    spec_of,
    train_here,
    train_in_processes,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.data.layout import Padded
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.model.load import load_model
from finetune_trainer.training.evaluate import evaluate, perplexity


def mean_loss(model: PreTrainedModel | PeftModel, rows: TokenizedRows, batch_size: int) -> float:
    """The validation loss on one device, padded to the longest row."""
    return evaluate(forward_of(model), rows, batch_size).loss


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    return loaded


def losses_by_transformers(model: PreTrainedModel, rows: TokenizedRows) -> list[tuple[float, int]]:
    """For each row alone: transformers' own mean loss, and the number of tokens that count in it."""
    losses = []
    for index in range(len(rows)):
        ids, trained = (torch.tensor(part) for part in rows.row(index))
        labels = torch.where(trained, ids.long(), -100)
        with torch.no_grad():
            loss = model(input_ids=ids.long()[None], labels=labels[None]).loss
        losses.append((float(loss), int(trained[1:].sum())))
    return losses


def test_validation_loss_is_the_mean_over_all_trained_tokens_of_what_transformers_gives_each_row(
    model: PreTrainedModel,
) -> None:
    losses = losses_by_transformers(model, VALIDATION_ROWS)
    by_hand = sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses)
    assert mean_loss(model, VALIDATION_ROWS, 3) == pytest.approx(by_hand, abs=1e-6)
    mean_of_means = sum(loss for loss, _ in losses) / len(losses)
    assert abs(mean_of_means - by_hand) > 1e-3


def test_the_first_token_of_a_row_is_never_predicted(model: PreTrainedModel) -> None:
    rows = rows_of([4, 9], share_trained=1.0)
    sums = [loss * tokens for loss, tokens in losses_by_transformers(model, rows)]
    assert mean_loss(model, rows, 2) == pytest.approx(sum(sums) / (3 + 8), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("length", [None, 60, 128])
def test_neither_batch_size_nor_padding_changes_the_validation_loss(
    model: PreTrainedModel, batch_size: int, length: int | None
) -> None:
    padded = forward_of(model, length=length)
    assert evaluate(padded, VALIDATION_ROWS, batch_size).loss == pytest.approx(
        mean_loss(model, VALIDATION_ROWS, 1), abs=1e-6
    )


def test_what_fills_short_rows_does_not_change_the_validation_loss(model: PreTrainedModel) -> None:
    filled = forward_of(model, pad_token_id=17)
    assert evaluate(filled, VALIDATION_ROWS, 7).loss == mean_loss(model, VALIDATION_ROWS, 7)


def test_a_row_does_not_see_the_rows_beside_it(model: PreTrainedModel) -> None:
    rows = rows_of([12, 20, 7])
    together, others_changed = (Padded(3).batch(rows, [0, 1, 2]), Padded(3).batch(rows, [0, 1, 2]))
    others_changed.input_ids[1:] = 5
    with torch.no_grad():
        before = model(input_ids=together.input_ids, attention_mask=together.attention_mask).logits
        after = model(input_ids=others_changed.input_ids, attention_mask=together.attention_mask).logits
    assert torch.equal(before[0], after[0])


def test_dropout_is_off_in_validation_and_on_again_afterwards(tiny_model: Path) -> None:
    adapted = load_model(
        spec_of(tiny_model, LORA, lora_config={"lora_dropout": 0.5}), dtype="fp32", on_gpu=False
    )
    # A new adapter adds nothing until its second matrix has learnt something.
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert mean_loss(adapted, VALIDATION_ROWS, 7) == mean_loss(adapted, VALIDATION_ROWS, 7)
    assert all(module.training for module in adapted.modules())


def test_validation_leaves_no_gradients_behind(tiny_model: Path) -> None:
    adapted = load_model(spec_of(tiny_model, LORA), dtype="fp32", on_gpu=False)
    mean_loss(adapted, VALIDATION_ROWS, 7)
    assert all(parameter.grad is None for parameter in adapted.parameters())


@pytest.mark.parametrize("gradient_checkpointing", [True, False])
def test_a_trained_checkpoint_has_the_validation_loss_that_transformers_gives_it(
    tiny_model: Path, tmp_path: Path, gradient_checkpointing: bool
) -> None:
    train_here(
        job_of(tiny_model, tmp_path, FULL, gradient_checkpointing=gradient_checkpointing, num_epochs=2)
    )
    for epoch, reported in enumerate(column(tmp_path, "evalLoss")):
        trained: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path / f"epoch-{epoch}")
        losses = losses_by_transformers(trained, VALIDATION_ROWS)
        by_hand = sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses)
        assert reported == pytest.approx(by_hand, abs=1e-6)


def test_the_number_of_workers_does_not_change_the_validation_loss(tiny_model: Path, tmp_path: Path) -> None:
    two: Fields = {"num_devices": 2, "eval_first": True, "num_epochs": 1}
    jobs = [
        job_of(tiny_model, tmp_path / str(size), two, eval_batch_size_per_device=size) for size in (1, 3, 16)
    ]
    train_in_processes(*jobs)
    alone: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = mean_loss(alone, VALIDATION_ROWS, 1)
    for job in jobs:
        assert column(job.start.run_directory, "evalLoss")[0] == pytest.approx(expected, abs=1e-6)


def test_a_rank_without_validation_rows_takes_part(tiny_model: Path, tmp_path: Path) -> None:
    two: Fields = {"num_devices": 2, "eval_first": True, "num_epochs": 1}
    one_row = some_rows(1, seed=2)
    train_in_processes(job_of(tiny_model, tmp_path, two, validation=one_row))
    alone: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert column(tmp_path, "evalLoss")[0] == pytest.approx(mean_loss(alone, one_row, 1), abs=1e-6)


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert perplexity(2.0) == math.exp(2.0)
    assert perplexity(1000.0) == math.inf


def test_bf16_arithmetic_is_close_to_fp32_and_its_loss_is_summed_in_fp32(model: PreTrainedModel) -> None:
    loss = evaluate(forward_of(model, dtype="bf16"), VALIDATION_ROWS, 7).loss
    assert loss == pytest.approx(mean_loss(model, VALIDATION_ROWS, 7), abs=0.05)
    assert loss != mean_loss(model, VALIDATION_ROWS, 7)
