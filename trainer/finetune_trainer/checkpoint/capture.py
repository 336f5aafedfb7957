"""Copies of what a checkpoint saves, to write from while training goes on, and the memory for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.checkpoint.state import Collected

SHARE_OF_FREE_MEMORY = 0.5
"""Of the memory that is free, as much may go into a copy; the rest is for writing it, and for others."""

_MEMORY = Path("/proc/meminfo")
_GROUPS = Path("/sys/fs/cgroup")


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


def free_memory(memory: Path = _MEMORY, groups: Path = _GROUPS) -> int | None:
    """Bytes that this process can still take of the host, by the system and its group; None if unknown.

    What a group keeps of files that nobody reads is free. Sources: Documentation/admin-guide/cgroup-v2.rst,
    cgroup-v1/memory.rst of Linux.
    """
    found = [_available(memory)]
    for limit, used, statistics, given_back in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        numbers = [_number(groups / limit), _number(groups / used)]
        if numbers[0] is not None and numbers[1] is not None:
            found.append(numbers[0] - numbers[1] + (_table(groups / statistics).get(given_back) or 0))
    known = [each for each in found if each is not None]
    return max(0, min(known)) if known else None


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


def _available(memory: Path) -> int | None:
    kibibytes = _table(memory).get("MemAvailable:")
    return None if kibibytes is None else kibibytes * 1024


def _table(file: Path) -> Mapping[str, int]:
    """The names and numbers at the beginning of a file's lines; empty where it cannot be read."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # `max` is no limit
        return None
