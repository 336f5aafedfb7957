from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tests.trainer.training_jobs import FULL, LORA, forward_of, rows_of, some_rows, spec_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.model.load import load_model
from finetune_trainer.parallel.replica import clip_gradient
from finetune_trainer.tasks.language import LanguageObjective
from finetune_trainer.training.optimizer import adamw, set_learning_rate
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
    loss = backward(forward_of(model), rows, np.arange(len(rows)), batch_size).loss
    return loss, {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def largest_difference(left: Gradients, right: Gradients) -> float:
    return max(float((left[name] - right[name]).abs().max()) for name in left)


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
    kept, recomputed = (
        gradients_of(
            load_model(spec_of(tiny_model, FULL, gradient_checkpointing=chosen), dtype="fp32", on_gpu=False),
            ROWS,
            4,
        )
        for chosen in (False, True)
    )
    assert kept[0] == recomputed[0]
    assert largest_difference(kept[1], recomputed[1]) == 0


def test_clipping_returns_the_norm_and_scales_the_gradient_down_to_the_limit(model: PreTrainedModel) -> None:
    gradients_of(model, ROWS, 4)
    before = torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )
    assert clip_gradient(LanguageObjective(model), 0.1) == pytest.approx(
        float(before.double().norm()), rel=1e-5
    )
    after = torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )
    assert float(after.norm()) == pytest.approx(0.1, rel=1e-4)


def test_clipping_leaves_a_small_gradient_as_it_is(model: PreTrainedModel) -> None:
    _, before = gradients_of(model, ROWS, 4)
    clip_gradient(LanguageObjective(model), 1000.0)
    assert all(
        torch.equal(parameter.grad, before[name])
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    )


def test_weights_decay_and_norms_do_not(tiny_model: Path) -> None:
    spec = spec_of(tiny_model, FULL, weight_decay=0.1)
    model = load_model(spec, dtype="fp32", on_gpu=False)
    optimizer = adamw(model, spec, fused=False)
    set_learning_rate(optimizer, 0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        # AdamW multiplies by 1 - learning rate x weight decay, whatever the gradient.
        torch.testing.assert_close(parameter.detach(), before[name] * (1.0 if "norm" in name else 0.95))


def test_only_what_is_trained_is_optimized(tiny_model: Path) -> None:
    spec = spec_of(tiny_model, LORA)
    model = load_model(spec, dtype="fp32", on_gpu=False)
    optimized = {
        id(parameter)
        for group in adamw(model, spec, fused=False).param_groups
        for parameter in group["params"]
    }
    assert optimized == {id(parameter) for name, parameter in model.named_parameters() if "lora_" in name}
