"""`spec.deepspeed`: what a DeepSpeed configuration asks for, in terms of what is built here.

DeepSpeed itself is not used. ZeRO's stages 2 and 3 are FSDP that keeps a layer's weights gathered between its
forward and its backward pass, or gives them back; offload is FSDP's to the host's memory; hpZ is sharing
within nodes. Keys and defaults are those of DeepSpeed's reference (deepspeed.ai/docs/config-json), the
published files those of Anyscale's and Ray's templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from finetune_api.explain import explain
from finetune_api.fields import Flag, Integer, JsonObject, Number
from finetune_api.spec import FineTuneJobSpec

Device = Literal["none", "cpu", "nvme"]


class Asked(BaseModel):
    """What a job asks of sharding, before it is known what fits."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["auto", "ddp", "fsdp"] = "auto"
    """`auto`: copies where they fit."""
    reshard: bool = True
    """With `fsdp`: give the gathered weights of a layer back after its forward pass."""
    cpu_offload: bool | None = False
    """With `fsdp`: keep weights and optimizer state in the host's memory. None: where nothing else fits."""
    within_nodes: bool = False
    """With `fsdp`: share within each node only."""
    remarks: tuple[str, ...] = ()
    """What was taken and why, for a person."""


def _unless_auto(value: object) -> object:
    return None if value == "auto" else value


_Count = Annotated[Integer | None, BeforeValidator(_unless_auto)]
"""`auto` is what transformers fills in from its own arguments."""


class _Part(BaseModel):
    # DeepSpeed has many more keys, which say how it does things.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Offload(_Part):
    """`offload_optimizer` and `offload_param`."""

    device: Device = "none"
    """Where it goes."""


class ZeroOptimization(_Part):
    """ZeRO: what the devices share, and where it is."""

    stage: Annotated[Integer, Field(ge=0, le=3)] = 0
    """1: the optimizer's state is shared, 2: gradients too, 3: parameters too."""
    offload_optimizer: Offload | None = None
    """Where the optimizer's state is, from stage 1 on."""
    offload_param: Offload | None = None
    """Where the parameters are, at stage 3."""
    cpu_offload: Flag = False
    """The older spelling of `offload_optimizer: {device: cpu}`."""
    cpu_offload_params: Flag = False
    """The older spelling of `offload_param: {device: cpu}`."""
    zero_hpz_partition_size: Integer = 1
    """ZeRO++: so many devices, those of a node, hold a second partition of the parameters, at stage 3."""
    mics_shard_size: Integer = -1
    """MiCS: so many devices, those of a node, share the parameters, at stage 3."""

    @property
    def offloaded(self) -> dict[str, Device]:
        """What is not on the device, and where it is: `{"optimizer's state": "cpu"}`."""
        places = {}
        if self.stage > 0:
            places["optimizer's state"] = _place(self.offload_optimizer, self.cpu_offload)
        if self.stage == 3:
            places["parameters"] = _place(self.offload_param, self.cpu_offload_params)
        return {what: place for what, place in places.items() if place != "none"}

    @property
    def within_nodes(self) -> bool:
        """Whether the parameters that a step needs are within each node."""
        return self.stage == 3 and max(self.zero_hpz_partition_size, self.mics_shard_size) > 1


class HalfPrecision(_Part):
    """`fp16`."""

    enabled: Annotated[Flag | None, BeforeValidator(_unless_auto)] = False
    """Whether training is in half precision."""


class Pipeline(_Part):
    """`pipeline`: groups of layers on different devices."""

    stages: _Count = None
    """How many groups."""


class TensorParallel(_Part):
    """`tensor_parallel`: parts of each layer on different devices."""

    autotp_size: _Count = None
    """How many parts."""


class DeepSpeedConfig(_Part):
    """What matters of a DeepSpeed configuration."""

    zero_optimization: ZeroOptimization = ZeroOptimization()
    """What the devices share."""
    pipeline: Pipeline = Pipeline()
    """Groups of layers on different devices."""
    tensor_parallel: TensorParallel = TensorParallel()
    """Parts of each layer on different devices."""
    sequence_parallel_size: _Count = None
    """So many devices share a sequence."""
    fp16: HalfPrecision = HalfPrecision()
    """Half precision."""
    gradient_clipping: Annotated[Number | None, BeforeValidator(_unless_auto)] = None
    """The largest L2 norm of gradients."""
    gradient_accumulation_steps: _Count = None
    """Micro-batches of an optimizer step."""
    train_micro_batch_size_per_gpu: _Count = None
    """Rows of a micro-batch."""
    optimizer: JsonObject | None = None
    """An optimizer of DeepSpeed's."""
    scheduler: JsonObject | None = None
    """A learning-rate schedule of DeepSpeed's."""


def _place(offload: Offload | None, older: bool) -> Device:
    if offload is not None:
        return offload.device
    return "cpu" if older else "none"


def _published(
    stage: int, *, optimizer: Device = "none", parameters: Device = "none", hpz: int = 1
) -> DeepSpeedConfig:
    zero = ZeroOptimization(
        stage=stage,
        offload_optimizer=Offload(device=optimizer),
        offload_param=Offload(device=parameters),
        zero_hpz_partition_size=hpz,
    )
    return DeepSpeedConfig(zero_optimization=zero)


_BOTH = _published(3, optimizer="cpu", parameters="cpu")
PUBLISHED = {
    "zero_2": _published(2),
    "zero_3": _published(3),
    "zero_3_hpz": _published(3, hpz=8),
    "zero_3_offload_optim": _published(3, optimizer="cpu"),
    "zero_3_offload_optim+param": _BOTH,
    "zero_3_llama_2_7b": _BOTH,
    "zero_3_llama_2_13b": _BOTH,
    "zero_3_mistral_7b": _BOTH,
    "zero_3_llama_2_70b": _published(3, optimizer="cpu"),
    "zero_3_llama_2_70b_nvme_offload": _published(3, optimizer="nvme"),
}
"""What the published files hold, by their names without `.json`; of some the name does not tell."""

_STAGE = re.compile(r"(?<![a-z])(?:zero|stage|z)[-_. ]*([0-3])(?![0-9])", re.IGNORECASE)
"""`zero_3`, `zero2`, `ds_z3`, `zero_stage_1`."""


def read_deepspeed_config(text: str) -> DeepSpeedConfig:
    """What matters of a DeepSpeed configuration's JSON.

    Raises ValueError with all that is wrong, or that nothing here is equivalent to, joined by `; `.
    """
    try:
        document: JsonValue = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("is no DeepSpeed configuration: it is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("is no DeepSpeed configuration: it must be an object")
    try:
        config = DeepSpeedConfig.model_validate(document)
    except ValidationError as error:
        problems = [line.removeprefix(".") for line in explain(error, DeepSpeedConfig, document, "")]
        raise ValueError("; ".join(problems)) from error
    problems = list(_without_equivalent(config))
    if problems:
        raise ValueError("; ".join(problems))
    return config


def asked_sharding(spec: FineTuneJobSpec, file: DeepSpeedConfig | None = None) -> Asked:
    """What a job asks of sharding: its `parallelism` and `cpu_offload`, else what its DeepSpeed file says.

    `file` is what `deepspeed.config_path` holds, where that could be read; else the file's name says it.
    """
    by_file = Asked() if spec.deepspeed is None else _by_file(spec, spec.deepspeed.config_path, file)
    kind = by_file.kind if spec.parallelism == "auto" else spec.parallelism
    offload = by_file.cpu_offload if spec.cpu_offload is None else spec.cpu_offload
    remarks = [*by_file.remarks, *_wins(spec, by_file)]
    if spec.parallelism == "auto" and spec.cpu_offload and kind != "fsdp":
        kind = "fsdp"
        remarks.append("spec.cpu_offload: true goes with fsdp alone, so parallelism is fsdp")
    if spec.parallelism == "auto" and spec.num_devices == 1 and kind == "fsdp" and not offload:
        kind = "auto"
        remarks.append("spec.num_devices is 1, so there is nobody to share with")
    return Asked(
        kind=kind,
        reshard=by_file.reshard,
        cpu_offload=False if kind == "ddp" else offload,
        within_nodes=by_file.within_nodes and kind != "ddp",
        remarks=tuple(remarks),
    )


def _by_file(spec: FineTuneJobSpec, path: str, file: DeepSpeedConfig | None) -> Asked:
    name = PurePosixPath(path).name
    config = file or PUBLISHED.get(name.removesuffix(".json"))
    if config is not None:
        is_it = "is" if file is None else "was read, and is"
        asked = _by_zero(config.zero_optimization, f"spec.deepspeed: {name} {is_it}")
        return asked.model_copy(update={"remarks": (*asked.remarks, *_decided_by_spec(spec, config, name))})
    said = _STAGE.search(name)
    if said is None:
        remark = (
            f"spec.deepspeed: {name} is not one of the published files, and its name says no stage of ZeRO;"
            " parallelism and cpu_offload are what fits, unless spec says them"
        )
        return Asked(cpu_offload=None, remarks=(remark,))
    asked = _by_zero(ZeroOptimization(stage=int(said[1])), f"spec.deepspeed: {name} is, by its name,")
    if asked.kind == "ddp":
        return asked
    remark = f"{asked.remarks[0]}; with cpu_offload where nothing else fits, since a name may not tell"
    return asked.model_copy(update={"cpu_offload": None, "remarks": (remark,)})


def _by_zero(zero: ZeroOptimization, subject: str) -> Asked:
    offloaded = zero.offloaded
    theirs = f"{subject} ZeRO stage {zero.stage}"
    if zero.within_nodes:
        theirs += " within each node"
    if offloaded:
        theirs += f" with {' and '.join(offloaded)} off the device"
    if zero.stage < 2 and not offloaded:
        ours = "parallelism: ddp, where each device has all of the model and of the optimizer's state"
        return Asked(kind="ddp", remarks=(f"{theirs}; here that is {ours}",))
    ours = "parallelism: fsdp"
    if zero.within_nodes:
        ours += " within each node, with a copy on each node"
    if zero.stage < 3:
        ours += " that keeps weights gathered from forward to backward pass"
    if offloaded:
        ours += " with cpu_offload: true, weights and optimizer's state in the host's memory"
    if "nvme" in offloaded.values():
        ours += ", not on NVMe"
    return Asked(
        kind="fsdp",
        reshard=zero.stage == 3,
        cpu_offload=bool(offloaded),
        within_nodes=zero.within_nodes,
        remarks=(f"{theirs}; here that is {ours}",),
    )


def _wins(spec: FineTuneJobSpec, by_file: Asked) -> Iterator[str]:
    """What the spec says otherwise than its DeepSpeed file."""
    if spec.deepspeed is None:
        return
    if spec.parallelism != "auto" and by_file.kind not in ("auto", spec.parallelism):
        yield f"spec.parallelism: {spec.parallelism} wins over spec.deepspeed"
    if spec.cpu_offload is not None and by_file.cpu_offload not in (None, spec.cpu_offload):
        yield f"spec.cpu_offload: {str(spec.cpu_offload).lower()} wins over spec.deepspeed"


def _decided_by_spec(spec: FineTuneJobSpec, config: DeepSpeedConfig, name: str) -> Iterator[str]:
    """Keys of the file that ask for something else than the spec does, which decides."""
    numbers = (
        ("gradient_clipping", config.gradient_clipping, "max_grad_norm", spec.max_grad_norm),
        (
            "gradient_accumulation_steps",
            config.gradient_accumulation_steps,
            "gradient_accumulation_steps",
            spec.gradient_accumulation_steps,
        ),
        (
            "train_micro_batch_size_per_gpu",
            config.train_micro_batch_size_per_gpu,
            "train_batch_size_per_device",
            spec.train_batch_size_per_device,
        ),
    )
    for key, asked, field, given in numbers:
        if asked is not None and asked != given:
            yield f"{key} of {name} has no effect: spec.{field} decides"
    if config.fp16.enabled:
        yield f"fp16 of {name} has no effect: spec.dtype decides, and bf16 takes the place of fp16"
    if config.optimizer is not None:
        yield f"optimizer of {name} has no effect: it is AdamW, and spec has learning_rate and weight_decay"
    if config.scheduler is not None:
        yield f"scheduler of {name} has no effect: spec.lr_scheduler_type and num_warmup_steps decide"


def _without_equivalent(config: DeepSpeedConfig) -> Iterator[str]:
    """What is asked for and not built."""
    for key, devices, what in (
        ("pipeline.stages", config.pipeline.stages, "pipeline parallelism"),
        ("tensor_parallel.autotp_size", config.tensor_parallel.autotp_size, "tensor parallelism"),
        ("sequence_parallel_size", config.sequence_parallel_size, "sequence parallelism"),
    ):
        if devices is not None and devices > 1:
            yield f"{key}: {what} has no equivalent here, is {devices}; take it out, ZeRO is there"


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    """A JSON object without keys that are null; DeepSpeed refuses those that are there twice, too."""
    keys = [key for key, _ in pairs]
    doubles = {key for key in keys if keys.count(key) > 1}
    if doubles:
        raise ValueError(f"{', '.join(sorted(doubles))}: is there twice; keep one")
    return {key: value for key, value in pairs if value is not None}
