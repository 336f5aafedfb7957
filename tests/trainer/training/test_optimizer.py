from __future__ import annotations

from pathlib import Path

import torch
from tests.trainer.training_jobs import FULL, LORA, spec_of

from finetune_trainer.model.load import load_model
from finetune_trainer.training.optimizer import adamw, set_learning_rate


def test_weights_decay_and_norms_do_not(tiny_model: Path) -> None:
    spec = spec_of(tiny_model, FULL, weight_decay=0.1)
    model = load_model(spec, dtype="fp32", on_gpu=False)
    optimizer = adamw(model, spec)
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
    optimized = {id(parameter) for group in adamw(model, spec).param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for name, parameter in model.named_parameters() if "lora_" in name}
