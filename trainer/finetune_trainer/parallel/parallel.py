"""The interface through which the training loop uses one device or several."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch

from finetune_api.sharding import COPIES, Sharding
from finetune_trainer.checkpoint.state import Collected
from finetune_trainer.parallel.ddp import DataParallel
from finetune_trainer.parallel.fsdp import FullySharded
from finetune_trainer.parallel.one_device import OneDevice
from finetune_trainer.tasks.objective import Objective

T = TypeVar("T")


class Parallel(Protocol):
    """A kind of parallelism.

    All ranks must call the same methods in the same order, because a method may exchange data between them. A
    rank that leaves a call out makes the others hang.
    """

    rank: int
    num_devices: int
    device: torch.device
    in_parts: bool
    """Whether a rank holds a part of the model, not a whole copy. Then all ranks write what is saved."""

    def place(self, objective: Objective) -> torch.nn.Module:
        """Puts an objective on the devices, and returns the module to call for its forward passes."""

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """A context for the forward and backward pass of one micro-batch of a step.

        Gradients are complete only after the micro-batch for which `last` is true.
        """

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of a loss. The whole loss is the sum of what all devices pass in."""

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scales the gradient down to an L2 norm of at most `max_norm`, and returns the norm before that.

        The norm is a scalar on a device, the same on all ranks; nothing is waited for.
        """

    def sum(self, values: Sequence[float | torch.Tensor], same: Sequence[torch.Tensor] = ()) -> list[float]:
        """Sums each value over all ranks, in fp64. Every rank gets the same sums, and after them `same`.

        Tensors are scalars; `same` are those that are the same on all ranks. All come from the device
        together, which is the one time in a step that it is waited for.
        """

    def gather(self, value: T) -> list[T]:
        """The values that the ranks pass in, in order. Every rank gets all of them."""

    def collect(self, optimizer: torch.optim.Optimizer) -> Collected:
        """Collects what a checkpoint saves: weights, optimizer state, random states.

        Complete on rank 0, or, where `in_parts`, a part on each rank.
        """

    def restore(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Loads the optimizer state of a checkpoint, as any kind of parallelism collected it."""


def parallel_of(rank: int, num_devices: int, device: torch.device, sharding: Sharding = COPIES) -> Parallel:
    """The kind of parallelism of a run. With several devices the process group must be initialised."""
    if sharding.kind == "fsdp":
        return FullySharded(rank, num_devices, device, sharding)
    return OneDevice(device) if num_devices == 1 else DataParallel(rank, num_devices, device)
