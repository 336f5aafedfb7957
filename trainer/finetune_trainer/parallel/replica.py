"""For kinds of parallelism in which every device holds a whole copy of the model."""

from __future__ import annotations

import torch

from finetune_trainer.tasks.objective import Objective


def clip_gradient(objective: Objective, max_norm: float) -> float:
    """Scales the gradient down to an L2 norm of at most `max_norm`, and returns the norm before that."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return float(torch.nn.utils.clip_grad_norm_(trained, max_norm))


def weights_of(objective: Objective) -> dict[str, torch.Tensor]:
    """All weights of the model by name; references, not copies."""
    weights: dict[str, torch.Tensor] = objective.model.state_dict()
    return weights
