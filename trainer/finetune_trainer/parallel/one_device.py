"""One device does all of the work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

from finetune_trainer.checkpoint.state import Collected, random_state
from finetune_trainer.parallel.replica import by_index, clip_gradient, read, weights_of
from finetune_trainer.tasks.objective import Objective

T = TypeVar("T")


class OneDevice:
    """A single device, which has nothing to exchange.

    Implements `finetune_trainer.parallel.parallel.Parallel`.
    """

    rank = 0
    num_devices = 1
    in_parts = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def place(self, objective: Objective) -> torch.nn.Module:
        """Moves the objective to the device, and returns it."""
        self._objective = objective.to(self.device)
        return self._objective

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002 - as in the protocol
        """Does nothing."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of the loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self, max_norm: float) -> torch.Tensor:
        """Clips the gradient of all trained parameters."""
        return clip_gradient(self._objective, max_norm)

    def sum(self, values: Sequence[float | torch.Tensor], same: Sequence[torch.Tensor] = ()) -> list[float]:
        """Returns the values."""
        return read([*values, *same])

    def gather(self, value: T) -> list[T]:
        """Returns the value."""
        return [value]

    def collect(self, optimizer: torch.optim.Optimizer) -> Collected:
        """Returns references to weights and optimizer state, not copies."""
        return Collected(weights_of(self._objective), optimizer.state_dict(), [random_state(self.device)])

    def restore(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Loads the state."""
        whole = state if "param_groups" in state else by_index(self._objective, optimizer, state)
        optimizer.load_state_dict(whole)
