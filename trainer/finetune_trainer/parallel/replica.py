"""For kinds of parallelism in which every device holds a whole copy of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from finetune_trainer.checkpoint.parts import by_parameter
from finetune_trainer.tasks.objective import Objective


def clip_gradient(objective: Objective, max_norm: float) -> torch.Tensor:
    """Scales the gradient down to an L2 norm of at most `max_norm`, and returns the norm before that."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return torch.nn.utils.clip_grad_norm_(trained, max_norm)


def read(values: Sequence[float | torch.Tensor]) -> list[float]:
    """The values as numbers. Those of all scalar tensors come from their device in one transfer."""
    tensors = [value.detach().double() for value in values if isinstance(value, torch.Tensor)]
    numbers = iter(torch.stack(tensors).tolist() if tensors else [])
    return [float(next(numbers) if isinstance(value, torch.Tensor) else value) for value in values]


def weights_of(objective: Objective) -> dict[str, torch.Tensor]:
    """All weights of the model by name; references, not copies."""
    weights: dict[str, torch.Tensor] = objective.model.state_dict()
    return weights


def by_index(objective: Objective, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state that was saved in parts, by name, in the form of its `state_dict`."""
    names = {id(parameter): name for name, parameter in objective.model.named_parameters()}
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tables = by_parameter(state)
    indexed = {index: tables.get(names[id(parameter)], {}) for index, parameter in enumerate(trained)}
    return {"state": indexed, "param_groups": optimizer.state_dict()["param_groups"]}
