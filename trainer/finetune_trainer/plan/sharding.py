"""Chooses how the devices of a job hold the model, where the job leaves it open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.deepspeed import Asked
from finetune_api.sharding import COPIES, Sharding


@dataclass(frozen=True)
class Device:
    """What a job runs on."""

    name: str
    """`an A10G`, as in a sentence."""
    memory: int
    """Bytes."""
    of_a_node: int | None = None
    """How many of them a node has, where that is known."""


@dataclass(frozen=True)
class Resources:
    """What a job is trained with."""

    on_gpu: bool
    device: Device | None = None
    """A GPU, where its memory is known."""
    memory: int | None = None
    """Bytes of the host's memory, where that is known and the job trains on its CPUs."""


def named(accelerator_type: str | None) -> str:
    """A device of this type, as in a sentence: `an A10G`."""
    if accelerator_type is None:
        return "a device"
    return f"{'an' if accelerator_type[0] in 'AHL' else 'a'} {accelerator_type}"


def is_open(asked: Asked, num_devices: int) -> bool:
    """Whether the choice depends on what fits."""
    return (asked.kind == "auto" and num_devices > 1) or (asked.kind == "fsdp" and asked.cpu_offload is None)


def choose_sharding(
    asked: Asked, num_devices: int, needed: Callable[[Sharding], int], device_memory: int | None
) -> Sharding:
    """How the devices hold the model.

    `auto` is a copy on each where that fits, and where nothing is known of the devices; else each has a part.
    What asks for `cpu_offload` only where nothing else fits gets it there. `needed` gives the bytes that a
    device needs, and is asked only where the choice depends on them.
    """

    def fits(sharding: Sharding) -> bool:
        return device_memory is None or needed(sharding) <= device_memory

    kind = asked.kind
    if kind == "auto":
        kind = "ddp" if num_devices == 1 or fits(COPIES) else "fsdp"
    if kind == "ddp":
        return COPIES
    parts = Sharding(kind="fsdp", reshard=asked.reshard, within_nodes=asked.within_nodes)
    offloads = not fits(parts) if asked.cpu_offload is None else asked.cpu_offload
    return parts.model_copy(update={"cpu_offload": offloads})
