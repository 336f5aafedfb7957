"""The machine a job runs on, and how a job written for a cluster fits on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec


@dataclass(frozen=True)
class Machine:
    """What there is to train on."""

    cpus: int
    gpus: int
    gpu_name: str | None = None

    @property
    def description(self) -> str:
        """For people: `1 NVIDIA H200` or `CPU (2 cores)`."""
        return f"{self.gpus} {self.gpu_name}" if self.gpus else f"CPU ({self.cpus} cores)"


def this_machine() -> Machine:
    """The machine this process runs on, as far as the process may use it."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Machine(
        cpus=len(os.sched_getaffinity(0)), gpus=gpus, gpu_name=torch.cuda.get_device_name(0) if gpus else None
    )


def fit_to_machine(
    spec: FineTuneJobSpec, machine: Machine, devices: int | None
) -> tuple[FineTuneJobSpec, list[str]]:
    """The job as it can run here, and what a person should know about the difference.

    `devices` is a wish for so many workers and replaces `num_devices`. Without it, as many of `num_devices`
    are used as there are (one, on a CPU), and accumulation takes the place of the others: the rows of each
    optimizer step, and so the result, are the same. Raises FineTuneError (InvalidSpec) when more GPUs are
    wished for than there are.
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
