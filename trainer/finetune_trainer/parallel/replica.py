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
    norm = norm_of([parameter.grad for parameter in trained if parameter.grad is not None]).float()
    torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    return norm


def norm_of(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The L2 norm of all of them together; in fp64 on CPUs.

    There PyTorch adds the squares of a tensor one after another. Of the 28 million of SmolLM2's embedding, in
    fp32, that is off by 2e-5 and more, so no more of them are added so than a row has.
    """
    if not gradients or any(each.device.type != "cpu" for each in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    rows = [torch.linalg.vector_norm(each, dim=-1) if each.ndim > 1 else each for each in gradients]
    norms = [torch.linalg.vector_norm(each.double()) for each in rows]
    together: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return together


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
