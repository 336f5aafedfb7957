"""`spec.worker_resources`: which accelerator each worker asks for, in Ray's and Anyscale's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from finetune_api.fields import VALIDATIONS, Amount

ACCELERATOR_TYPE = "accelerator_type:"
"""`accelerator_type:A10G`: a device of that type."""
ACCELERATOR_SHAPE = "anyscale/accelerator_shape:"
"""`anyscale/accelerator_shape:4xA10G`: one of the devices of a machine with four."""

_SHAPE = r"[1-9][0-9]*x.+"
_AMOUNT = (
    "an accelerator's amount must be more than 0 and at most 1,"
    " since each worker gets one device whatever it says"
)
_NAME = f"must name a type, as in {ACCELERATOR_TYPE}A10G or {ACCELERATOR_SHAPE}4xA10G"
_ONE = "must name one accelerator type"

ResourceAmounts = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=256)], Annotated[Amount, Field(gt=0, le=2**53)]],
    Field(max_length=32),
]
"""Amounts of Ray resources; memory in bytes."""


def accelerator_types(resources: Mapping[str, int | float]) -> list[str]:
    """The accelerator types that resources name, each once: `["A10G"]`."""
    names = [key.removeprefix(ACCELERATOR_TYPE) for key in resources if key.startswith(ACCELERATOR_TYPE)]
    names += [
        key.removeprefix(ACCELERATOR_SHAPE).partition("x")[2]
        for key in resources
        if key.startswith(ACCELERATOR_SHAPE)
    ]
    return list(dict.fromkeys(names))


def _check(resources: dict[str, int | float]) -> dict[str, int | float]:
    devices = {
        key: amount
        for key, amount in resources.items()
        if key.startswith((ACCELERATOR_TYPE, ACCELERATOR_SHAPE))
    }
    unnamed = [
        key for key in devices if not re.fullmatch(f"{ACCELERATOR_TYPE}.+|{ACCELERATOR_SHAPE}{_SHAPE}", key)
    ]
    types = accelerator_types(resources)

    problems = [f"{_NAME}; {key} does not" for key in unnamed]
    problems += [f"{_AMOUNT}; {key} is {amount:g}" for key, amount in devices.items() if amount > 1]
    if len(types) > 1 and not unnamed:
        problems.append(f"{_ONE}, names {' and '.join(types)}")
    if problems:
        raise ValueError("; ".join(problems))
    return resources


_IS_DEVICE = f"(k.startsWith('{ACCELERATOR_TYPE}') || k.startsWith('{ACCELERATOR_SHAPE}'))"
_CEL = [
    {"rule": f"self.all(k, !{_IS_DEVICE} || self[k] <= 1.0)", "message": _AMOUNT},
    {
        "rule": (
            f"self.all(k, !{_IS_DEVICE} ||"
            f" k.matches(r'^({ACCELERATOR_TYPE}.+|{ACCELERATOR_SHAPE}{_SHAPE})$'))"
        ),
        "message": _NAME,
    },
    # Whether a type and a shape name the same accelerator is more than the cost limit of CEL allows to find
    # out.
    {"rule": f"self.filter(k, k.startsWith('{ACCELERATOR_TYPE}')).size() <= 1", "message": _ONE},
    {"rule": f"self.filter(k, k.startsWith('{ACCELERATOR_SHAPE}')).size() <= 1", "message": _ONE},
]

WorkerResources = Annotated[
    ResourceAmounts, Field(json_schema_extra={VALIDATIONS: _CEL}), AfterValidator(_check)
]
"""What each worker asks for; at most one accelerator type."""
