"""Amounts as Kubernetes writes them (`500m`, `16Gi`), for arithmetic."""

from __future__ import annotations

import math
import re
from decimal import Decimal

_FACTORS = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    **{unit: Decimal(1000**power) for power, unit in enumerate("MGTPE", start=2)},
    **{f"{unit}i": Decimal(1024**power) for power, unit in enumerate("KMGTPE", start=1)},
}


def amount(quantity: int | str) -> Decimal:
    """The number that a quantity stands for: bytes, or processors.

    Source: apimachinery's `resource.Quantity`.
    """
    if isinstance(quantity, int):
        return Decimal(quantity)
    parts = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([numkMGTPE]|[KMGTPE]i|)", quantity)
    return Decimal(parts[1]) * _FACTORS[parts[2]] if parts else Decimal(quantity)


def times(quantity: int | str, factor: int) -> int | str:
    """A quantity multiplied by a whole number, in the same unit."""
    if isinstance(quantity, int):
        return quantity * factor
    parts = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(.*)", quantity)
    return f"{Decimal(parts[1]) * factor}{parts[2]}" if parts and factor != 1 else quantity


def whole_processors(quantity: int | str) -> int:
    """Whole processors of a quantity: rounded down, and at least one."""
    return max(1, math.floor(amount(quantity)))


def in_bytes(quantity: int | str) -> int:
    """The bytes of a quantity, rounded up."""
    return math.ceil(amount(quantity))
