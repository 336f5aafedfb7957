"""A whole copy of the model on a device."""

from __future__ import annotations

import torch

from finetune_trainer.tasks.objective import Objective


def clip_gradient(objective: Objective, max_norm: float) -> float:
    """Scales the gradient of what is trained to an L2 norm of at most `max_norm`; returns the norm it had."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return float(torch.nn.utils.clip_grad_norm_(trained, max_norm))


def weights_of(objective: Objective) -> dict[str, torch.Tensor]:
    """The model's weights by name."""
    weights: dict[str, torch.Tensor] = objective.model.state_dict()
    return weights
