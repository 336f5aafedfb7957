"""Data parallelism (PyTorch's DDP): every device has a copy of the model and computes a part of each step's rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from finetune_trainer.checkpoint.state import Collected, RandomState, random_state
from finetune_trainer.parallel.replica import clip_gradient, weights_of
from finetune_trainer.tasks.objective import Objective


class DataParallel:
    """See `finetune_trainer.parallel.parallel.Parallel`. The process group must be there."""

    def __init__(self, rank: int, num_devices: int, device: torch.device) -> None:
        self.rank = rank
        self.num_devices = num_devices
        self.device = device

    def place(self, objective: Objective) -> torch.nn.Module:
        """The objective in DDP."""
        self._objective = objective.to(self.device)
        device_ids = [self.device] if self.device.type == "cuda" else None
        self._module = DistributedDataParallel(self._objective, device_ids=device_ids)
        return self._module

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """Gradients are summed over the devices once in a step.

        Both passes belong inside no_sync: wrapping the backward pass alone saves nothing.
        """
        return nullcontext() if last else cast("AbstractContextManager[None]", self._module.no_sync())

    def backward(self, loss: torch.Tensor) -> None:
        """DDP averages gradients over the devices, but the loss is a sum over them."""
        (loss * self.num_devices).backward()  # type: ignore[no-untyped-call]

    def clip(self, max_norm: float) -> float:
        """Every device has the whole gradient."""
        return clip_gradient(self._objective, max_norm)

    def sum(self, values: Sequence[float]) -> list[float]:
        """A row for each rank: one exchange gives everybody's numbers, and all add them in the same order."""
        table = torch.zeros(self.num_devices, len(values), dtype=torch.float64, device=self.device)
        table[self.rank] = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(table)
        return [float(value) for value in table.sum(dim=0)]

    def collect(self, optimizer: torch.optim.Optimizer) -> Collected:
        """Weights and optimizer are the same on all ranks; only the random states are exchanged."""
        mine = random_state(self.device)
        everyone: list[RandomState] = [mine] * self.num_devices
        dist.all_gather_object(everyone, mine)
        return Collected(weights_of(self._objective), optimizer.state_dict(), everyone)

    def restore(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Every rank has all of it."""
        optimizer.load_state_dict(state)
