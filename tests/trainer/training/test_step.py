from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tests.trainer.training_jobs import FULL, forward_of, largest_difference, rows_of, some_rows, spec_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.model.load import load_model
from finetune_trainer.training.step import backward

ROWS = some_rows(11, seed=3)

Gradients = dict[str, torch.Tensor]


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    loaded.train()
    return loaded


def gradients_of(
    model: PreTrainedModel | PeftModel, rows: TokenizedRows, batch_size: int
) -> tuple[float, Gradients]:
    model.zero_grad()
    loss = backward(forward_of(model), rows, np.arange(len(rows)), batch_size).total.item()
    return loss, {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 10])
def test_loss_and_gradients_of_a_step_do_not_depend_on_its_micro_batches(
    model: PreTrainedModel, batch_size: int
) -> None:
    loss, gradients = gradients_of(model, ROWS, batch_size)
    loss_at_once, gradients_at_once = gradients_of(model, ROWS, len(ROWS))
    assert loss == pytest.approx(loss_at_once, abs=1e-5)
    assert largest_difference(gradients, gradients_at_once) < 1e-6


def test_the_loss_of_a_step_is_the_mean_over_its_trained_tokens_and_not_a_mean_of_means(
    model: PreTrainedModel,
) -> None:
    forward = forward_of(model)
    sums = [forward(ROWS, [row]).total.item() for row in range(len(ROWS))]
    counts = [int(ROWS.row(row)[1][1:].sum()) for row in range(len(ROWS))]
    loss, _ = gradients_of(model, ROWS, batch_size=1)
    assert loss == pytest.approx(sum(sums) / sum(counts), abs=1e-5)
    mean_of_means = sum(part / count for part, count in zip(sums, counts, strict=True)) / len(sums)
    assert abs(loss - mean_of_means) > 1e-3


def test_a_first_token_that_counts_changes_nothing(model: PreTrainedModel) -> None:
    without = rows_of([6, 9], share_trained=0.5)
    with_first = TokenizedRows(without.input_ids, without.trained.copy(), without.offsets, without.lines)
    without.trained[without.offsets[:-1]] = False
    with_first.trained[with_first.offsets[:-1]] = True
    (loss, gradients), (loss_with_first, gradients_with_first) = (
        gradients_of(model, without, 2),
        gradients_of(model, with_first, 2),
    )
    assert loss == loss_with_first
    assert largest_difference(gradients, gradients_with_first) == 0


@pytest.mark.parametrize("batch_size", [1, 2])
def test_rows_in_which_nothing_counts_change_nothing(model: PreTrainedModel, batch_size: int) -> None:
    useful = rows_of([8, 12])
    silent = rows_of([8, 12, 20], share_trained=0.0)
    silent.trained[:] = np.concatenate([useful.trained, np.zeros(20, dtype=np.bool_)])
    silent.input_ids[:20] = useful.input_ids
    loss, gradients = gradients_of(model, silent, batch_size)
    expected_loss, expected_gradients = gradients_of(model, useful, batch_size)
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert largest_difference(gradients, expected_gradients) < 1e-7


def test_recomputed_activations_give_the_same_gradients(tiny_model: Path) -> None:
    model = load_model(spec_of(tiny_model, FULL), dtype="fp32", on_gpu=False)
    assert isinstance(model, PreTrainedModel)
    kept = gradients_of(model, ROWS, 4)
    model.activation_checkpointing_enable()
    recomputed = gradients_of(model, ROWS, 4)
    assert kept[0] == recomputed[0]
    assert largest_difference(kept[1], recomputed[1]) == 0
