"""A model together with the loss that training lowers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from torch.utils._pytree import register_dataclass
from transformers import PreTrainedModel

from finetune_trainer.data.layout import Batch
from finetune_trainer.data.tokens import TokenizedRows

Model = PreTrainedModel | peft.PeftModel

T = TypeVar("T")


def base_of(model: Model) -> PreTrainedModel:
    """The model without what adapters add around it."""
    return cast("PreTrainedModel", model.get_base_model()) if isinstance(model, peft.PeftModel) else model


@dataclass(frozen=True)
class Loss:
    """The loss of a batch. All values are sums, so that those of micro-batches and devices can be added."""

    total: torch.Tensor
    """The sum over all tokens of the batch that count; a scalar in fp32, 0 when none does."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Further sums by name; scalars. The names are the same for every batch, also for an empty one."""
    documents: torch.Tensor | None = None
    """What was found for each document, where that is wanted: its log-probability, or the probability of each
    label; shape (documents,) or (documents, labels)."""


# FSDP finds the tensors of an output in it, from which the backward pass begins.
register_dataclass(Loss)


class Judge(Protocol):
    """Measures documents that were validated."""

    def __call__(self, rows: TokenizedRows, found: NDArray[np.float32]) -> dict[str, float]:
        """Metrics by name. `found` is `Loss.documents` of all documents of the rows, in their order."""


@dataclass(frozen=True)
class Mean:
    """The losses of many batches, divided by the number of tokens in them that count."""

    loss: float
    metrics: dict[str, float] = field(default_factory=dict)


class Objective(torch.nn.Module, ABC):
    """Model and loss in one module.

    So a wrapper such as DDP sees every forward pass, and no other code depends on how the loss is computed.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def run(self, work: Callable[[], T]) -> T:
        """Calls `work`, which has the model compute in other ways than `forward`, as to generate.

        Where devices hold parts of the model, all must call this: what no layer has is gathered meanwhile.
        `work` should not raise there, since then it stays so until the next forward pass.
        """
        return work()

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """Computes the loss of a batch, which is on the model's device."""
