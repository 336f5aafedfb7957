from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.trainer.training_jobs import forward_of, some_rows
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.parallel.one_device import OneDevice
from finetune_trainer.parallel.replica import clip_gradient, norm_of
from finetune_trainer.tasks.language import LanguageObjective


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    """With the gradient of some rows."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = some_rows(4, seed=3)
    loss = forward_of(loaded)(rows, range(len(rows))).total / int(rows.predicted.sum())
    loss.backward()  # type: ignore[no-untyped-call]
    return loaded


def test_clipping_returns_the_norm_and_scales_the_gradient_down_to_the_limit(model: PreTrainedModel) -> None:
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


def test_the_norm_of_a_large_gradient_is_as_right_as_that_of_a_small_one() -> None:
    """PyTorch's own is wrong in the third digit of this one, which is as large as SmolLM2's embedding."""
    torch.manual_seed(0)
    gradient = torch.randn(49152, 576) * torch.rand(49152, 1) ** 4
    small = torch.randn(7)
    exact = math.hypot(float(gradient.double().norm()), float(small.double().norm()))

    assert float(norm_of([gradient, small])) == pytest.approx(exact, rel=1e-6)
    assert float(norm_of([])) == 0


def test_clipping_and_adding_up_wait_for_no_value_but_read_all_together(model: PreTrainedModel) -> None:
    device = OneDevice(torch.device("cpu"))
    device.place(LanguageObjective(model))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        norm = device.clip(0.1)
        summed = device.sum([torch.tensor(0.1), True, torch.tensor(2)], [norm])
    assert "aten::item" not in {event.name for event in seen.events()}
    assert summed == [float(torch.tensor(0.1)), 1.0, 2.0, float(norm)]


def test_clipping_leaves_a_small_gradient_as_it_is(model: PreTrainedModel) -> None:
    before = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    clip_gradient(LanguageObjective(model), 1000.0)
    assert all(
        torch.equal(parameter.grad, before[name])
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    )
