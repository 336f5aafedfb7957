"""What the training loop asks of the devices that share its work."""

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
    """A kind of parallelism. All ranks call the same methods in the same order, those that write nothing too."""

    rank: int
    num_devices: int
    device: torch.device

    def place(self, objective: Objective) -> torch.nn.Module:
        """Puts an objective on the devices, and returns the module that all its forward passes go through."""

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """Holds a forward and a backward pass of a step; gradients are complete after the `last` one."""

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of the loss, of which every device has computed a summand."""

    def clip(self, max_norm: float) -> float:
        """Scales the gradient down to an L2 norm of at most `max_norm`, and returns the norm it had."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks, the same on every rank; in fp64."""

    def collect(self, optimizer: torch.optim.Optimizer) -> Collected:
        """Weights, optimizer state and random states; complete on rank 0, which writes them."""

    def restore(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Puts the optimizer state of a checkpoint back, as `collect` gave it."""


def parallel_of(rank: int, num_devices: int, device: torch.device) -> Parallel:
    """The kind of parallelism of a run; with several devices their process group must be there."""
    return OneDevice(device) if num_devices == 1 else DataParallel(rank, num_devices, device)
