"""Copies of what a checkpoint saves, to write from while training goes on, and the memory for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from copy import copy
from dataclasses import replace
from typing import Any

import torch

from finetune_trainer.checkpoint.state import Collected

SHARE_OF_FREE_MEMORY = 0.5
"""Of the memory that is free, as much may go into a copy; the rest is for writing it, and for others."""


def frozen_weights(model: torch.nn.Module) -> set[str]:
    """The names of weights that training does not change."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in parameters if not parameter.requires_grad}


def copy_bytes(collected: Collected, frozen: AbstractSet[str]) -> int:
    """How much memory `captured` takes, in bytes."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in _copied(collected, frozen)
    }
    return sum(storages.values())


def fits(size: int, free: int | None) -> bool:
    """Whether a copy of `size` bytes may be made; it may not where nobody knows how much memory is free."""
    return free is not None and size <= SHARE_OF_FREE_MEMORY * free


def captured(collected: Collected, frozen: AbstractSet[str]) -> Collected:
    """The same values in the host's memory, which training does not change any more.

    `frozen` weights, which it never does, are not copied. Tensors that share memory still do, so the files
    are those that would be written at once, to the byte.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in storages:
            host = torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()
            storages[key] = host.copy_(storage)
        new = torch.empty(0, dtype=tensor.dtype)
        return new.set_(storages[key], tensor.storage_offset(), tensor.shape, tensor.stride())

    with torch.no_grad():
        weights = copy(collected.weights)  # with what torch notes beside them
        weights |= {name: copied(weight) for name, weight in weights.items() if name not in frozen}
        return replace(collected, weights=weights, optimizer=_mapped(collected.optimizer, copied))


def _copied(collected: Collected, frozen: AbstractSet[str]) -> Iterable[torch.Tensor]:
    yield from (weight for name, weight in collected.weights.items() if name not in frozen)
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    _mapped(collected.optimizer, note)
    yield from found


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:  # noqa: ANN401 - torch's state
    """An optimizer's `state_dict`, with every tensor in it changed; torch puts none into tuples."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [_mapped(each, change) for each in value]
    return value
