"""A model together with the loss that it is trained to lower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import peft
import torch
from transformers import PreTrainedModel

from finetune_trainer.data.layout import Batch

Model = PreTrainedModel | peft.PeftModel


@dataclass(frozen=True)
class Loss:
    """What an objective comes to on a batch. Sums, so that batches, micro-batches and devices add up."""

    total: torch.Tensor
    """The loss summed over all that counts in the batch; a scalar in fp32, 0 when nothing counts."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Further sums by name; scalars. An objective gives the same names for every batch, also an empty one."""


@dataclass(frozen=True)
class Mean:
    """Losses summed over many batches, divided by the number of all that counts in them."""

    loss: float
    metrics: dict[str, float] = field(default_factory=dict)


class Objective(torch.nn.Module, ABC):
    """Model and loss in one module.

    Whatever wraps it (DDP, say) sees every forward pass, and how the loss is computed is nobody else's
    business.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """The loss of a batch that is on the model's device."""
