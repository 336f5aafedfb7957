"""The machine that `finetune run` trains on, and how a job written for a cluster is fitted to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.limits import usable_memory, usable_processors
from finetune_trainer.plan.sharding import Device, Resources


@dataclass(frozen=True)
class Machine:
    """The processors and the memory of a machine."""

    cpus: int
    gpus: int
    gpu_name: str | None = None
    memory: int | None = None
    """Bytes of the host's memory that this process may use; None where that is not known."""
    gpu_memory: int | None = None
    """Bytes of the first GPU's."""

    @property
    def description(self) -> str:
        """The machine in words: `1 NVIDIA H200` or `CPU (2 cores)`."""
        return f"{self.gpus} {self.gpu_name}" if self.gpus else f"CPU ({self.cpus} cores)"

    @property
    def resources(self) -> Resources:
        """What a job has here."""
        if self.gpu_memory is None:
            return Resources(on_gpu=self.gpus > 0, memory=self.memory)
        device = Device(f"a {self.gpu_name} here", self.gpu_memory, of_a_node=self.gpus)
        return Resources(on_gpu=True, device=device, memory=self.memory)


def this_machine() -> Machine:
    """The processors of this machine that this process may use."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Machine(
        cpus=usable_processors(),
        gpus=gpus,
        gpu_name=torch.cuda.get_device_name(0) if gpus else None,
        memory=usable_memory(),
        gpu_memory=torch.cuda.mem_get_info(0)[1] if gpus else None,
    )


def fit_to_machine(
    spec: FineTuneJobSpec, machine: Machine, devices: int | None
) -> tuple[FineTuneJobSpec, list[str]]:
    """Fits a job to a machine, and returns it with warnings about what is different.

    `devices`, if given, replaces `num_devices`. By default as many of `num_devices` are used as the
    machine has (one, on a CPU), and gradient accumulation replaces the others: the rows of each optimizer
    step, and so the result, stay the same. Raises FineTuneError (InvalidSpec) when `devices` is more than
    the machine's GPUs.
    """
    warnings = list(_cluster_only(spec))
    if devices is not None:
        if machine.gpus and devices > machine.gpus:
            raise FineTuneError(
                FailureClass.INVALID_SPEC, f"--devices {devices}: this machine has {machine.gpus} GPU(s)"
            )
        return spec.model_copy(update={"num_devices": devices}), warnings
    used = max(count for count in range(1, max(1, machine.gpus) + 1) if spec.num_devices % count == 0)
    if used == spec.num_devices:
        return spec, warnings
    accumulation = spec.gradient_accumulation_steps * spec.num_devices // used
    warnings.append(
        f"spec.num_devices is {spec.num_devices}, here it is {used}, and gradient_accumulation_steps"
        f" {accumulation} instead of {spec.gradient_accumulation_steps}: the optimizer steps, and the result,"
        " stay the same"
    )
    return (
        spec.model_copy(update={"num_devices": used, "gradient_accumulation_steps": accumulation}),
        warnings,
    )


def _cluster_only(spec: FineTuneJobSpec) -> Iterator[str]:
    for field in ("worker_resources", "trainer_resources", "cluster"):
        if getattr(spec, field):
            yield f"spec.{field} is for clusters and changes nothing here"
    if spec.storage is not None:
        yield "spec.storage is for clusters; --storage decides where this run goes"
