"""What the fields of a spec say together: contradictions, things that are not built, and things that change nothing here."""

from __future__ import annotations

import re
from collections.abc import Iterator

from finetune_api.spec import ACCELERATOR_SHAPE, ACCELERATOR_TYPE, FineTuneJobSpec, LoggerConfig

TASK_BLOCKS = {
    "classifier_config": "classification",
    "preference_tuning_config": "preference_tuning",
    "vision_language_config": "vision_language_tuning",
}
"""Task blocks and the task that each implies."""

WITHOUT_EFFECT = {
    "liger_kernel": "the trainer uses PyTorch's own kernels",
    "output_dir": "storage.path decides where runs are written",
    "num_data_blocks_per_device": "rows are tokenized once and held in memory, not streamed in blocks",
    "dataset_size_scaling_factor": "data sets have no size limit here",
    "deepspeed": "DeepSpeed is not used; parallelism decides how devices share the work",
}
"""LLMForge's fields that are read and change nothing, with what happens instead."""

WANDB_KEYS = ("project", "group", "name", "tags")

_SHAPE = re.compile(r"[1-9]\d*x.+")
_PASSED_RESOURCES = ("memory", "CPU", "GPU")


def contradictions(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    """Pairs of a field's path below `spec` and what is wrong with it."""
    yield from _aliases(spec)
    yield from _tasks(spec)
    yield from _accelerators(spec)
    yield from _not_built(spec)
    yield from _lora(spec)
    yield from _logger(spec)


def warnings(spec: FineTuneJobSpec) -> Iterator[str]:
    """What a person should know about fields that are accepted: which change nothing, and what happens instead."""
    for field, instead in WITHOUT_EFFECT.items():
        if field in spec.model_fields_set and getattr(spec, field) is not None:
            yield f"spec.{field} has no effect: {instead}"
    for group in ("worker_resources", "trainer_resources"):
        for key in getattr(spec, group) or {}:
            if not key.startswith((ACCELERATOR_TYPE, ACCELERATOR_SHAPE)) and key not in _PASSED_RESOURCES:
                yield f"spec.{group}[{key}] has no effect: accelerator_type:TYPE, {ACCELERATOR_SHAPE}NxTYPE and memory are understood"
    if spec.lora_config is None:
        yield "spec.lora_config is absent: every parameter of the model is trained; add `lora_config: {}` for LoRA"


def _aliases(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    pairs = [
        ("min_num_update_steps", "min_update_steps"),
        ("no_gradient_checkpoint", "gradient_checkpointing"),
        ("checkpoint_every_n_epochs", "checkpoint_and_evaluation_frequency"),
    ]
    for older, newer in pairs:
        if getattr(spec, older) is not None and getattr(spec, newer) is not None:
            yield older, f"means the same as spec.{newer}, which is set as well; keep one of them"


def _tasks(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    if spec.task not in (None, "causal_lm", "instruction_tuning"):
        yield "task", f"{spec.task} is not supported yet; causal_lm and instruction_tuning are"
    for block, task in TASK_BLOCKS.items():
        if getattr(spec, block) is not None:
            yield block, f"asks for the task {task}, which is not supported yet; causal_lm and instruction_tuning are"


def _accelerators(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    for key, amount in (spec.worker_resources or {}).items():
        if key.startswith((ACCELERATOR_TYPE, ACCELERATOR_SHAPE)) and amount > 1:
            yield (
                f"worker_resources[{key}]",
                f"must be more than 0 and at most 1, is {amount:g}; each worker gets one device whatever it says",
            )
        if key.startswith(ACCELERATOR_SHAPE) and not _SHAPE.fullmatch(key.removeprefix(ACCELERATOR_SHAPE)):
            yield f"worker_resources[{key}]", f"must be {ACCELERATOR_SHAPE}NxTYPE, as in {ACCELERATOR_SHAPE}4xA10G"
        if key == ACCELERATOR_TYPE:
            yield f"worker_resources[{key}]", "must name a type, as in accelerator_type:A10G"
    if len(spec.accelerator_types) > 1:
        yield "worker_resources", f"names {len(spec.accelerator_types)} accelerator types ({', '.join(spec.accelerator_types)}); name one"


def _not_built(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    if spec.packing:
        yield "packing", "is not supported yet; leave it out"
    if spec.parallelism == "fsdp":
        yield "parallelism", "fsdp is not supported yet; auto and ddp are"


def _lora(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    if spec.lora_config is None:
        if spec.initial_adapter_model_ckpt_path is not None:
            yield "initial_adapter_model_ckpt_path", "needs spec.lora_config; without it every parameter is trained and there is no adapter"
        return
    lora = spec.lora_config
    init = lora.init_lora_weights
    if not isinstance(init, bool | str):
        yield "lora_config.init_lora_weights", "must be true, false or the name of an initialisation"
    elif init in ("eva", "corda", "lora_ga"):
        yield "lora_config.init_lora_weights", f"{init} needs a pass over the data before training, which is not supported; leave it out"
    elif init == "loftq":
        yield "lora_config.init_lora_weights", "loftq needs a quantized base model, which is not supported; leave it out"
    if lora.megatron_config is not None:
        yield "lora_config.megatron_config", "Megatron models are not supported; leave it out"
    if lora.use_qalora:
        yield "lora_config.use_qalora", "needs a quantized base model, which is not supported; leave it out"
    if not _is_index(lora.layers_to_transform):
        yield "lora_config.layers_to_transform", "must be a layer's index or a list of them"


def _is_index(value: object) -> bool:
    indices = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(index, int) and not isinstance(index, bool) and index >= 0 for index in indices)


def _logger(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    if spec.logger is None:
        return
    for key in LoggerConfig.model_fields:
        of_wandb = key in WANDB_KEYS
        if getattr(spec.logger.provider_config, key) is not None and of_wandb != (spec.logger.provider == "wandb"):
            yield f"logger.provider_config.{key}", f"belongs to {'wandb' if of_wandb else 'mlflow'}; the provider is {spec.logger.provider}"
