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

    def sum(self, values: Sequence[float]) -> list[float]:
        """Exchanges a table with a row for each rank, so that all ranks add in the same order."""
        table = torch.zeros(self.num_devices, len(values), dtype=torch.float64, device=self.device)
        table[self.rank] = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(table)
        return [float(value) for value in table.sum(dim=0)]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order."""
        values = [value] * self.num_devices
        dist.all_gather_object(values, value)
        return values
