"""The interface through which the training loop uses one device or several."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from finetune_trainer.checkpoint.state import Collected
from finetune_trainer.parallel.ddp import DataParallel
from finetune_trainer.parallel.one_device import OneDevice
from finetune_trainer.tasks.objective import Objective


class Parallel(Protocol):
    """A kind of parallelism.

    All ranks must call the same methods in the same order, because a method may exchange data between them. A
    rank that leaves a call out makes the others hang.
    """

    rank: int
    num_devices: int
    device: torch.device

    def place(self, objective: Objective) -> torch.nn.Module:
        """Puts an objective on the devices, and returns the module to call for its forward passes."""

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """A context for the forward and backward pass of one micro-batch of a step.

        Gradients are complete only after the micro-batch for which `last` is true.
        """

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of a loss. The whole loss is the sum of what all devices pass in."""

    def clip(self, max_norm: float) -> float:
        """Scales the gradient down to an L2 norm of at most `max_norm`, and returns the norm before that."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums each value over all ranks, in fp64. Every rank gets the same sums."""

    def collect(self, optimizer: torch.optim.Optimizer) -> Collected:
        """Collects what a checkpoint saves: weights, optimizer state, random states. Complete on rank 0."""

    def restore(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Loads the optimizer state of a checkpoint, as `collect` returned it, into the optimizer."""


def parallel_of(rank: int, num_devices: int, device: torch.device) -> Parallel:
    """The kind of parallelism of a run. With several devices the process group must be initialised."""
    return OneDevice(device) if num_devices == 1 else DataParallel(rank, num_devices, device)
