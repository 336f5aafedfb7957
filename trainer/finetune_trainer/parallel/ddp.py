"""Data parallelism by PyTorch's DDP: every device has a copy of the model and a part of each step's rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch.nn.parallel import DistributedDataParallel

from finetune_trainer.checkpoint.state import Collected, RandomState, random_state
from finetune_trainer.parallel.ranks import Ranks
from finetune_trainer.parallel.replica import by_index, clip_gradient, weights_of
from finetune_trainer.tasks.objective import Objective


class DataParallel(Ranks):
    """Several devices with a copy of the model each. Needs an initialised process group.

    Implements `finetune_trainer.parallel.parallel.Parallel`.
    """

    in_parts = False

    def place(self, objective: Objective) -> torch.nn.Module:
        """Moves the objective to the device, and wraps it in DDP."""
        self._objective = objective.to(self.device)
        device_ids = [self.device] if self.device.type == "cuda" else None
        self._module = DistributedDataParallel(self._objective, device_ids=device_ids)
        return self._module

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """Delays the exchange of gradients to the last micro-batch of a step.

        The forward pass has to be inside `no_sync` too: there DDP decides whether to exchange.
        """
        return nullcontext() if last else cast("AbstractContextManager[None]", self._module.no_sync())

    def backward(self, loss: torch.Tensor) -> None:
        """Computes gradients. DDP averages them over the devices, but the loss is a sum: hence the factor."""
        (loss * self.num_devices).backward()  # type: ignore[no-untyped-call]

    def clip(self, max_norm: float) -> torch.Tensor:
        """Clips the gradient, of which every device has all."""
        return clip_gradient(self._objective, max_norm)

    def collect(self, optimizer: torch.optim.Optimizer) -> Collected:
        """Exchanges the random states. Weights and optimizer state are the same on all ranks."""
        everyone: list[RandomState] = self.gather(random_state(self.device))
        return Collected(weights_of(self._objective), optimizer.state_dict(), everyone)

    def restore(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Loads the state, of which every rank has all."""
        whole = state if "param_groups" in state else by_index(self._objective, optimizer, state)
        optimizer.load_state_dict(whole)
