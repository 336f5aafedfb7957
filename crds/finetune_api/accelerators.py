"""`spec.worker_resources`: which accelerator each worker asks for, in Ray's and Anyscale's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from finetune_api.devices import ACCELERATOR_SHAPE, ACCELERATOR_TYPE, KNOWN, asked_name
from finetune_api.fields import VALIDATIONS, Amount

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
    """The accelerator types that resources name, as they are written, each once: `["A10G"]`."""
    return list(dict.fromkeys(name for key in resources if (name := asked_name(key))))


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
    different = {KNOWN.type_of(each) or each for each in types}

    problems = [f"{_NAME}; {key} does not" for key in unnamed]
    problems += [f"{_AMOUNT}; {key} is {amount:g}" for key, amount in devices.items() if amount > 1]
    if len(different) > 1 and not unnamed:
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
