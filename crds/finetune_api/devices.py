"""Accelerator types, as profiles of the operator and Ray name them: the memory of one device."""

from __future__ import annotations

MEMORY = {
    "T4": 14.5,
    "V100": 15.7,
    "L4": 22.0,
    "L40S": 44.3,
    "A10G": 22.0,
    "A10": 22.0,
    "A100": 39.4,
    "A100-40G": 39.4,
    "A100-80G": 79.1,
    "H100": 79.1,
    "H200": 139.7,
    "B200": 178.3,
}
"""GiB that CUDA reports of one device, which is less than its name says: `total capacity` in PyTorch's words.
Of a type that there is in two sizes the smaller one."""

_GIB = 2**30


def device_memory(accelerator_type: str) -> int | None:
    """Bytes of memory of a device of this type; None of a type that is not known here."""
    gib = MEMORY.get(accelerator_type)
    return None if gib is None else int(gib * _GIB)
