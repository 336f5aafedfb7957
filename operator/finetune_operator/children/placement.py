"""Where the workers of a job go: the accelerator's profile, how many pods, and how many devices in each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from finetune_api.devices import ACCELERATOR_SHAPE, ACCELERATOR_TYPE, worker_device
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.settings.accelerator_profiles import AcceleratorProfile
from finetune_operator.settings.configuration import Configuration


@dataclass(frozen=True)
class Placement:
    """How the workers of a job are spread over pods, which are all alike."""

    accelerator_type: str
    """As Ray spells it: `A10G`; `CPU` where there is no device."""
    profile: AcceleratorProfile
    devices_per_pod: int
    """1, or the number of devices on a machine of the shape that was asked for."""
    pods: int
    """ceil(num_devices / devices_per_pod)."""
    amount: float
    """How much of `accelerator_type:X` Ray sets aside for a worker; a pod has 1 for each device."""


def placement(spec: FineTuneJobSpec, configuration: Configuration) -> Placement:
    """Where the workers of a job with this spec go.

    Raises FineTuneError (InvalidSpec) for an accelerator that no profile knows, by type or by another name.
    """
    resources = spec.worker_resources or {}
    device = worker_device(resources, configuration.devices)
    if device.problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *device.problems)
    accelerator_type = device.type or configuration.default_accelerator
    profile = configuration.profiles.get(accelerator_type)
    known = ", ".join(sorted(configuration.profiles))
    if profile is None:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            "spec.worker_resources: no profile of this operator knows the accelerator type"
            f" {accelerator_type}; known are {known}",
        )
    if device.unnamed is not None and not profile.has_device:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"spec.worker_resources[{device.unnamed}]: says no type, and jobs that name none get no device"
            f" from this operator; give {ACCELERATOR_TYPE}TYPE, where known are {known}",
        )
    devices = _devices_of_shape(resources)
    return Placement(
        accelerator_type=accelerator_type,
        profile=profile,
        devices_per_pod=devices,
        pods=math.ceil(spec.num_devices / devices),
        amount=0.001 if device.amount is None else float(device.amount),
    )


def held_devices(spec: Mapping[str, JsonValue]) -> int:
    """How many devices the pods of a job with this spec hold: for a shape, those of whole machines."""
    devices, resources = spec.get("num_devices", 1), spec.get("worker_resources")
    each = _devices_of_shape(resources) if isinstance(resources, dict) else 1
    return math.ceil(devices / each) * each if isinstance(devices, int) else 0


def _devices_of_shape(resources: Mapping[str, object]) -> int:
    for key in resources:
        shape = re.fullmatch(rf"{re.escape(ACCELERATOR_SHAPE)}([1-9][0-9]*)x.+", key)
        if shape:
            return int(shape[1])
    return 1
