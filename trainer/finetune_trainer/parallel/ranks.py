"""What several devices exchange, whatever each of them holds of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class Ranks:
    """The ranks of a process group, of which this process is one."""

    def __init__(self, rank: int, num_devices: int, device: torch.device) -> None:
        self.rank = rank
        self.num_devices = num_devices
        self.device = device

    def sum(self, values: Sequence[float | torch.Tensor], same: Sequence[torch.Tensor] = ()) -> list[float]:
        """Exchanges a table with a row for each rank, so that all ranks add in the same order."""
        table = torch.zeros(self.num_devices, len(values), dtype=torch.float64, device=self.device)
        known = [0.0 if isinstance(value, torch.Tensor) else value for value in values]
        table[self.rank] = torch.tensor(known, dtype=torch.float64)
        for index, value in enumerate(values):
            if isinstance(value, torch.Tensor):
                table[self.rank, index] = value.detach()
        dist.all_reduce(table)
        own = [value.detach().to(self.device, torch.float64).reshape(1) for value in same]
        numbers: list[float] = torch.cat([table.sum(dim=0), *own]).tolist()
        return numbers

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order."""
        values = [value] * self.num_devices
        dist.all_gather_object(values, value)
        return values
