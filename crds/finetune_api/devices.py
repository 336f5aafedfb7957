"""Accelerator types, as profiles of the operator and Ray name them.

What else they are called, how much memory a device has, and which one a job's workers ask for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

NO_DEVICE = "CPU"
"""The type of workers that have no device."""
ACCELERATOR_TYPE = "accelerator_type:"
"""`accelerator_type:A10G`: a device of that type."""
ACCELERATOR_SHAPE = "anyscale/accelerator_shape:"
"""`anyscale/accelerator_shape:4xA10G`: one of the devices of a machine with four."""

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

NAMES = {
    # Sizes and forms, as GPU Feature Discovery, GKE and people write them.
    "A100-40G*": "A100-40G",
    "A100-SXM4-40G*": "A100-40G",
    "A100-PCIE-40G*": "A100-40G",
    "A100-80G*": "A100-80G",
    "A100-SXM4-80G*": "A100-80G",
    "A100-PCIE-80G*": "A100-80G",
    "T4-16G*": "T4",
    "V100-*": "V100",
    "L4-24G*": "L4",
    "L40S-48G*": "L40S",
    "A10G-24G*": "A10G",
    "A10-24G*": "A10",
    "H100-*": "H100",
    "H200-*": "H200",
    "B200-*": "B200",
    # AWS
    "g4dn.*": "T4",
    "p3.*": "V100",
    "p3dn.*": "V100",
    "g5.*": "A10G",
    "g6.*": "L4",
    "g6e.*": "L40S",
    "p4d.*": "A100-40G",
    "p4de.*": "A100-80G",
    "p5.*": "H100",
    "p5e.*": "H200",
    "p5en.*": "H200",
    "p6-b200.*": "B200",
    # Google
    "g2-standard-*": "L4",
    "a2-highgpu-*": "A100-40G",
    "a2-megagpu-*": "A100-40G",
    "a2-ultragpu-*": "A100-80G",
    "a3-edgegpu-*": "H100",
    "a3-highgpu-*": "H100",
    "a3-megagpu-*": "H100",
    "a3-ultragpu-*": "H200",
    "a4-highgpu-*": "B200",
    # Azure
    "Standard_NC*as_T4_v3": "T4",
    "Standard_NC*s_v3": "V100",
    "Standard_ND40rs_v2": "V100",
    "Standard_NV*ads_A10_v5": "A10",
    "Standard_NV*adms_A10_v5": "A10",
    "Standard_NC*ads_A100_v4": "A100-80G",
    "Standard_ND96asr_v4": "A100-40G",
    "Standard_ND96asr_A100_v4": "A100-40G",
    "Standard_ND96amsr_A100_v4": "A100-80G",
    "Standard_NC*ads_H100_v5": "H100",
    "Standard_NC*adis_H100_v5": "H100",
    "Standard_ND96isr_H100_v5": "H100",
    "Standard_ND96isr_H200_v5": "H200",
}
"""Other names of types: machines that have them, and longer spellings. `*` stands for anything."""

_GIB = 2**30
_PREFIX = re.compile(r"^(nvidia-|tesla-)+")
_NO_DEVICES = ("cpu", "memory")
"""Keys of `worker_resources`, in the plain spelling, that are of the worker itself."""
_ANY_DEVICE = ("gpu", "nvidia.com/gpu")
_MACHINE_OR_MODEL = re.compile(
    r"[a-z][a-z0-9-]*\.(metal|[0-9]*[a-z]*(nano|micro|small|medium|large))[a-z0-9-]*"  # AWS
    r"|standard-.+"  # Azure
    r"|[a-z][0-9]+[a-z]?-[a-z]+(-.+)?"  # Google
    r"|[a-z]{1,2}[0-9]{1,4}[a-z]{0,2}(-.+)?"  # H100, MI300X, A6000, GB200
    r"|(rtx|gtx|geforce|quadro|titan|radeon|instinct|gaudi|tpu|trainium|inferentia|accelerator).*"
)
"""What a machine or a device may be called, in the plain spelling."""


def device_memory(accelerator_type: str) -> int | None:
    """Bytes of memory of a device of this type; None of a type that is not known here."""
    gib = MEMORY.get(accelerator_type)
    return None if gib is None else int(gib * _GIB)


class Devices(BaseModel):
    """The accelerator types that there are, and what else they are called."""

    model_config = ConfigDict(frozen=True)

    types: tuple[str, ...]
    """`A10G`; `CPU` is no device."""
    names: Mapping[str, str]
    """Other names; `*` stands for anything, and of several that fit the longest one counts."""

    def type_of(self, name: str) -> str | None:
        """The type of this name, in whatever case, with `_` for `-` or NVIDIA in front of it; else None."""
        if name in self.types:
            return name
        plain = _plain(name)
        fitting = [pattern for pattern in self.names if _fits(plain, pattern)]
        named = self.names[max(fitting, key=len)] if fitting else None
        if named in self.types:
            return named
        return next((each for each in self.types if _plain(each) == plain), None)


KNOWN = Devices(types=(NO_DEVICE, *MEMORY), names=NAMES)
"""What is known without the configuration of an operator, which may know more."""


class WorkerDevice(BaseModel):
    """The device that a job's workers ask for."""

    model_config = ConfigDict(frozen=True)

    type: str | None = None
    """Its type; None where the job names none, or none that is known."""
    amount: int | float | None = None
    """How much of `accelerator_type:X` Ray is to set aside for a worker, where the job says so."""
    taken: Mapping[str, str] = {}
    """Keys that are other names of a type, each with the type."""
    unknown: tuple[str, ...] = ()
    """Keys that seem to name a device or a machine, where the job names no type that is known."""
    unnamed: str | None = None
    """The key that asks for a device without its type, where the job names none."""
    problems: tuple[str, ...] = ()
    """What is wrong with the keys, each with the path of its field."""


def worker_device(resources: Mapping[str, int | float], devices: Devices = KNOWN) -> WorkerDevice:
    """The device that `worker_resources` ask for, in whatever words.

    A type after `accelerator_type:` that is not known is taken as it is: an operator may have its profile.
    """
    asked = {key: name for key in resources if (name := asked_name(key))}
    named = {key: devices.type_of(name) or name for key, name in asked.items()}
    others = {
        key: devices.type_of(key) for key in resources if key not in asked and _plain(key) not in _NO_DEVICES
    }
    machines = {key: found for key, found in others.items() if found is not None}
    types = list(dict.fromkeys([*named.values(), *machines.values()]))
    if len(types) > 1:
        words = " and ".join(f"{each} ({key})" for key, each in {**named, **machines}.items())
        return WorkerDevice(
            problems=(f"spec.worker_resources: must name one accelerator type, names {words}",)
        )
    if types:
        taken = {key: each for key, each in named.items() if each != asked[key]}
        by_type = [resources[key] for key in asked if key.startswith(ACCELERATOR_TYPE)]
        return WorkerDevice(
            type=types[0],
            amount=by_type[0] if by_type else None,
            taken=taken | machines,
        )
    unknown = tuple(key for key in others if _MACHINE_OR_MODEL.fullmatch(_plain(key)) or _is_nvidias(key))
    return WorkerDevice(
        unknown=unknown,
        unnamed=next((key for key in others if _plain(key) in _ANY_DEVICE), None),
        problems=tuple(_unknown(key, devices) for key in unknown),
    )


def asked_name(key: str) -> str | None:
    """The name after `accelerator_type:`, or in a shape after its number; None of any other key."""
    if key.startswith(ACCELERATOR_TYPE):
        return key.removeprefix(ACCELERATOR_TYPE)
    if key.startswith(ACCELERATOR_SHAPE):
        return key.removeprefix(ACCELERATOR_SHAPE).partition("x")[2]
    return None


def _unknown(key: str, devices: Devices) -> str:
    types = sorted(each for each in devices.types if each != NO_DEVICE)
    alike = [name for name in devices.names if _form(name) == _form(key)]
    return (
        f"spec.worker_resources[{key}]: no accelerator of this name is known; known are"
        f" {', '.join([*types, *alike])}; for workers without a device give {ACCELERATOR_TYPE}{NO_DEVICE}"
    )


def _form(name: str) -> str:
    """Whose machine a name may be, by its form; nobody's if empty."""
    plain = _plain(name)
    if plain.startswith("standard-"):
        return "Azure"
    if "." in plain:
        return "AWS"
    return "Google" if re.match(r"[a-z][0-9]-[a-z]", plain) else ""


def _plain(name: str) -> str:
    return _PREFIX.sub("", re.sub(r"[_\s]", "-", name.lower()))


def _is_nvidias(key: str) -> bool:
    return re.match(r"(nvidia|tesla)[-_ ]", key, re.IGNORECASE) is not None


def _fits(plain: str, pattern: str) -> bool:
    return re.fullmatch(re.escape(_plain(pattern)).replace(r"\*", ".*"), plain) is not None
