"""Whether a job fits the memory of its devices, and if not, the nearest settings with which it does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pydantic import JsonValue

from finetune_api.consistency import contradictions
from finetune_api.deepspeed import DeepSpeedConfig, asked_sharding
from finetune_api.devices import device_memory, worker_device
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.numbers import (
    SHORTEST_CONTEXT,
    ResolvedPrecision,
    chosen_context_length,
    default_batch_size,
    resolved_dtype,
)
from finetune_api.sharding import Sharding
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.model.load import Shape, check_in_parts, load_config, shape
from finetune_trainer.plan.layer_memory import NO_LAYER, LayerMemory, layer_by_rule, layer_memory
from finetune_trainer.plan.memory import (
    Lengths,
    MemoryEstimate,
    lengths_of,
    memory,
    rows_of_micro_batch,
    step_of,
)
from finetune_trainer.plan.prepare import Prepared
from finetune_trainer.plan.sharding import Device, Resources, choose_sharding, named

GIB = 2**30
LONGEST_TAKEN = 8192
"""Tokens that rows are taken to have at most where they are not read yet and the job does not say."""
MOST_DEVICES = 64
"""As many as are suggested at most."""
_FRAGMENTS = 0.05
"""What the allocator takes on top of what is allocated."""
_LIBRARIES = GIB
"""What the driver, cuBLAS and NCCL take of a device."""
_SURELY = 4
"""How many times what a rule for GPT says a layer takes less than, whatever it is."""
_TO_KEEP_ON_GPUS, _TO_KEEP_ON_CPUS = 0.9, 0.5
"""How much of the memory may be taken where activations are kept though nobody has asked for it."""
_COSTS = {"checkpointing": 1, "halved": 1, "fsdp": 1, "devices": 4, "offload": 5, "nf4": 6}
"""How far a change is from what was asked: what changes speed alone is nearer than what takes more devices,
and farthest is what changes the weights that are trained on."""


@dataclass(frozen=True)
class Job:
    """A job whose memory can be estimated, with whatever settings."""

    spec: FineTuneJobSpec
    shape: Shape
    layer: LayerMemory
    lengths: Lengths
    dtype: ResolvedPrecision
    on_gpu: bool
    file: DeepSpeedConfig | None = None
    """What `deepspeed.config_path` holds, where it could be read."""

    def needs(self, sharding: Sharding, device: Device | None = None) -> MemoryEstimate:
        """The memory of a step with this sharding."""
        return memory(
            step_of(
                self.spec,
                self.shape,
                self.layer,
                self.lengths,
                dtype=self.dtype,
                sharding=sharding,
                on_gpu=self.on_gpu,
                devices_of_a_node=device.of_a_node if device else None,
            )
        )

    def sharding(self, device: Device | None) -> Sharding:
        """How the devices hold the model: as asked, and where that is left open, as it fits."""
        return choose_sharding(
            asked_sharding(self.spec, self.file),
            self.spec.num_devices,
            lambda sharding: required(self.needs(sharding, device)),
            device.memory if device else None,
        )


def job_of(prepared: Prepared, file: DeepSpeedConfig | None, *, on_gpu: bool) -> Job:
    """A job whose rows were read, in the precision that it has on a GPU or without one."""
    spec, dtype = prepared.spec, resolved_dtype(prepared.spec, on_gpu=on_gpu)
    layer = layer_memory(spec, load_config(spec), dtype, on_gpu=on_gpu)
    return Job(spec, prepared.shape, layer, lengths_of(prepared), dtype, on_gpu, file)


def _at_most(prepared: Prepared, file: DeepSpeedConfig | None, *, on_gpu: bool) -> Job:
    """The same with layers that surely take less; counting what they take needs seconds."""
    spec, dtype = prepared.spec, resolved_dtype(prepared.spec, on_gpu=on_gpu)
    rule = layer_by_rule(prepared.shape.hidden_size * _SURELY, dtype)
    return Job(spec, prepared.shape, rule, lengths_of(prepared), dtype, on_gpu, file)


def job_without_rows(spec: FineTuneJobSpec, *, on_gpu: bool, file: DeepSpeedConfig | None = None) -> Job:
    """The same before rows are read: all are taken to be as long as the context, or as the model takes."""
    config, dtype = load_config(spec), resolved_dtype(spec, on_gpu=on_gpu)
    sizes = shape(spec, config)
    longest = spec.context_length or min(sizes.context_length or SHORTEST_CONTEXT, LONGEST_TAKEN)
    lengths = Lengths(longest, longest, padded=False, longest_validated=longest if spec.validates else 0)
    return Job(spec, sizes, layer_memory(spec, config, dtype, on_gpu=on_gpu), lengths, dtype, on_gpu, file)


def device_of(spec: FineTuneJobSpec) -> Device | None:
    """The device that the job's workers ask for; None where it names none, or its memory is not known."""
    asked = worker_device(spec.worker_resources or {}).type
    memory_of_it = device_memory(asked) if asked else None
    if asked is None or memory_of_it is None:
        return None
    return Device(named(asked), memory_of_it)


def required(estimated: MemoryEstimate) -> int:
    """The bytes that a device must have: the estimate, and what allocator and libraries take."""
    return round(estimated.total * (1 + _FRAGMENTS)) + _LIBRARIES


@dataclass(frozen=True)
class Settings:
    """A job with settings that fit."""

    spec: FineTuneJobSpec
    changes: dict[str, JsonValue]
    """The fields of the spec that differ, with their new values."""
    required: int
    """Bytes of a device."""
    distance: int
    """From what was asked; larger is farther."""

    @property
    def words(self) -> str:
        """`with num_devices 32 and cpu_offload it needs 17.0 GiB`."""
        said = [
            name if value is True else f"{name} {str(value).lower() if value is False else value}"
            for name, value in self.changes.items()
        ]
        listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
        return f"with {listed} it needs {self.required / GIB:.1f} GiB"


def check_fits(job: Job, device: Device, sharding: Sharding | None = None) -> None:
    """Raises FineTuneError (InvalidSpec), with the nearest settings that fit, where the job does not fit.

    `sharding` is by default the one that is chosen for the device.
    """
    estimated = job.needs(sharding or job.sharding(device), device)
    if required(estimated) > device.memory:
        raise FineTuneError(FailureClass.INVALID_SPEC, refusal(job, device, estimated))


def check_prepared(
    prepared: Prepared, file: DeepSpeedConfig | None, sharding: Sharding, resources: Resources
) -> list[str]:
    """Whether a job whose rows were read fits what it is trained with, as far as that is known.

    Returns remarks where it may not. Raises FineTuneError (InvalidSpec) where it does not.
    """
    device = resources.device
    if device is None:
        return [] if resources.memory is None else _check_host(prepared, sharding, resources.memory)
    if required(_at_most(prepared, file, on_gpu=True).needs(sharding, device)) > device.memory:
        check_fits(job_of(prepared, file, on_gpu=True), device, sharding)
    return []


def _check_host(prepared: Prepared, sharding: Sharding, memory_of_host: int) -> list[str]:
    """Whether a job that is trained on CPUs fits the machine's memory, as far as that can be told.

    Returns a remark where it may not. Raises FineTuneError (InvalidSpec) where it surely does not: other
    programs come and go, and a machine may have swap.
    """
    spec, dtype = prepared.spec, resolved_dtype(prepared.spec, on_gpu=False)
    lengths, devices = lengths_of(prepared), spec.num_devices
    least = Job(
        spec,
        prepared.shape,
        NO_LAYER,
        replace(lengths, longest=0, counted=0, end_to_end=None),
        dtype,
        on_gpu=False,
    )
    fixed = least.needs(sharding).total * devices
    has = f"this machine has {memory_of_host / GIB:.1f}"
    if fixed > memory_of_host:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"the job needs {fixed / GIB:.1f} GiB for weights, gradients and the optimizer's state, {has}:"
            " train adapters (lora_config), a smaller model, or on a larger machine",
        )
    if fixed < memory_of_host / 4:
        return []
    needed = job_of(prepared, None, on_gpu=False).needs(sharding).total * devices
    if needed <= memory_of_host:
        return []
    return [f"the job may need {needed / GIB:.1f} GiB, and {has}"]


def with_checkpointing(
    prepared: Prepared, file: DeepSpeedConfig | None, sharding: Sharding, resources: Resources
) -> Prepared:
    """The same job, with `gradient_checkpointing` decided in its spec and in its plan.

    What the job says holds. Else activations are recomputed unless there surely is room to keep them: in nine
    tenths of a GPU, or in half of the host's memory for all devices together.
    """
    spec = prepared.spec
    recomputes = spec.recomputes_activations
    if recomputes is None:
        kept = replace(prepared, spec=spec.model_copy(update={"gradient_checkpointing": False}))
        recomputes = not _has_room(kept, file, sharding, resources)
        spec = spec.model_copy(update={"gradient_checkpointing": recomputes})
    plan = prepared.plan.model_copy(update={"gradient_checkpointing": recomputes})
    return replace(prepared, spec=spec, plan=plan)


def _has_room(
    prepared: Prepared, file: DeepSpeedConfig | None, sharding: Sharding, resources: Resources
) -> bool:
    device, on_gpu = resources.device, resources.on_gpu
    if on_gpu:
        room = None if device is None else device.memory * _TO_KEEP_ON_GPUS
    else:
        memory_of_one = None if resources.memory is None else resources.memory / prepared.spec.num_devices
        room = None if memory_of_one is None else memory_of_one * _TO_KEEP_ON_CPUS
    if room is None:
        return False
    jobs = (way(prepared, file, on_gpu=on_gpu) for way in (_at_most, job_of))
    return any(required(job.needs(sharding, device)) <= room for job in jobs)


def with_host_memory(prepared: Prepared, sharding: Sharding, *, on_gpu: bool) -> Prepared:
    """The same job, and on GPUs what training takes of their host in its plan."""
    if not on_gpu:
        return prepared
    dtype = resolved_dtype(prepared.spec, on_gpu=True)
    # Layers keep nothing on the host.
    job = Job(prepared.spec, prepared.shape, NO_LAYER, lengths_of(prepared), dtype, on_gpu=True)
    plan = prepared.plan.model_copy(update={"host_memory": job.needs(sharding).host})
    return replace(prepared, plan=plan)


def fitted(job: Job, device: Device) -> Settings | None:
    """The nearest settings that fit; None where the job fits as it is.

    Raises FineTuneError (InvalidSpec) where no settings do.
    """
    estimated = job.needs(job.sharding(device), device)
    if required(estimated) <= device.memory:
        return None
    found = nearest(job, device)
    if not found:
        raise FineTuneError(FailureClass.INVALID_SPEC, refusal(job, device, estimated))
    return found[0]


def refusal(job: Job, device: Device, estimated: MemoryEstimate) -> str:
    """What to say of a job that does not fit."""
    needs = f"the job needs {required(estimated) / GIB:.1f} GiB a device"
    has = f"{device.name} has {device.memory / GIB:.1f}"
    found = nearest(job, device)
    ways = "; or ".join(each.words for each in found) or (
        f"no settings were found that fit, with up to {MOST_DEVICES} devices; take a larger device, a"
        " smaller model or a shorter spec.context_length"
    )
    return f"{needs}, {has}: {ways}"


def nearest(job: Job, device: Device) -> list[Settings]:
    """The nearest settings that fit; beside it those without more devices, and without NF4, if they differ.

    The rows of an optimizer step stay the same.
    """
    fitting = sorted(_fitting(job, device), key=lambda each: (each.distance, each.required))
    found = [
        next(iter(fitting), None),
        next((each for each in fitting if "num_devices" not in each.changes), None),
        next((each for each in fitting if "quantization" not in each.changes), None),
    ]
    return list({id(each): each for each in found if each is not None}.values())


def _fitting(job: Job, device: Device) -> Iterator[Settings]:
    spec = job.spec
    context = chosen_context_length(spec, job.lengths.longest, job.shape.context_length)
    rows = rows_of_micro_batch(spec, context)
    asked = asked_sharding(spec, job.file)
    shares = [False] if asked.kind == "fsdp" else [False, True]
    for checkpointing, halvings, fsdp, doublings, offload, nf4 in itertools.product(
        [False, True] if spec.recomputes_activations is False else [False],
        range(rows.bit_length()),
        shares,
        range((MOST_DEVICES // spec.num_devices).bit_length() or 1),
        [False] if asked.cpu_offload else [False, True],
        [False, True] if spec.lora_config is not None and spec.quantization is None else [False],
    ):
        changes = _changes(
            spec,
            rows,
            halvings=halvings,
            doublings=doublings,
            checkpointing=checkpointing,
            fsdp=fsdp,
            offload=offload,
            nf4=nf4,
        )
        distance = (
            _COSTS["checkpointing"] * checkpointing
            + _COSTS["halved"] * halvings
            + _COSTS["fsdp"] * fsdp
            + _COSTS["devices"] * doublings
            + _COSTS["offload"] * offload
            + _COSTS["nf4"] * nf4
        )
        if changes is not None:
            yield from _with_validation(job, device, changes, context, distance)


def _with_validation(
    job: Job, device: Device, changes: dict[str, JsonValue], context: int, distance: int
) -> Iterator[Settings]:
    """These settings with the largest batch of validation with which they fit, if they do.

    How many rows are validated at once changes nothing else.
    """
    validated = job.spec.eval_batch_size_per_device or default_batch_size(context)
    for rows in (validated // 2**halvings for halvings in range(validated.bit_length())):
        smaller: dict[str, JsonValue] = {} if rows == validated else {"eval_batch_size_per_device": rows}
        changed = replace(job, spec=job.spec.model_copy(update=changes | smaller))
        if not changes | smaller or any(True for _ in contradictions(changed.spec)):
            continue
        sharding = changed.sharding(device)
        if not _is_possible(changed.spec, sharding):
            return
        estimated = changed.needs(sharding, device)
        needs = required(estimated)
        if needs <= device.memory:
            yield Settings(changed.spec, changes | smaller, needs, distance)
            return
        if estimated.moment != "validation":
            return


def _is_possible(spec: FineTuneJobSpec, sharding: Sharding) -> bool:
    """Whether devices can hold what is trained so."""
    if sharding.kind == "ddp":
        return not spec.cpu_offload
    try:
        check_in_parts(spec)
    except FineTuneError:
        return False
    return True


def _changes(
    spec: FineTuneJobSpec,
    rows: int,
    *,
    halvings: int,
    doublings: int,
    checkpointing: bool,
    fsdp: bool,
    offload: bool,
    nf4: bool,
) -> dict[str, JsonValue] | None:
    """The fields that differ; None where the rows of a step cannot stay the same."""
    divided = _divided(rows, spec.gradient_accumulation_steps, halvings, doublings)
    if divided is None:
        return None
    batch, accumulation = divided
    new: dict[str, JsonValue] = {
        "num_devices": spec.num_devices * 2**doublings,
        "train_batch_size_per_device": batch,
        "gradient_accumulation_steps": accumulation,
    }
    old = {**new, "num_devices": spec.num_devices, "train_batch_size_per_device": rows}
    old["gradient_accumulation_steps"] = spec.gradient_accumulation_steps
    changes = {name: value for name, value in new.items() if value != old[name]}
    if checkpointing:
        # Only one of the two spellings may be there.
        older = spec.no_gradient_checkpoint is not None
        changes |= {"no_gradient_checkpoint": False} if older else {"gradient_checkpointing": True}
    if fsdp:
        changes["parallelism"] = "fsdp"
    if offload:
        changes["cpu_offload"] = True
    if nf4:
        changes["quantization"] = "nf4"
    return changes


def _divided(batch: int, accumulation: int, halvings: int, doublings: int) -> tuple[int, int] | None:
    """Batch and accumulation with which as many rows are in a step; None where there are none."""
    if batch % 2**halvings:
        return None
    batch, accumulation = batch // 2**halvings, accumulation * 2**halvings
    for _ in range(doublings):
        if accumulation % 2 == 0:
            accumulation //= 2
        elif batch % 2 == 0:
            batch //= 2
        else:
            return None
    return batch, accumulation
