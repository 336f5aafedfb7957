"""Checks across the fields of a spec: contradictions, features that are not built, and fields without effect.

What a single field can say is checked by its type in `spec`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel, JsonValue

from finetune_api.deepspeed import asked_sharding
from finetune_api.devices import ACCELERATOR_SHAPE, ACCELERATOR_TYPE, KNOWN, Devices, worker_device
from finetune_api.lora import (
    INITIALISATIONS_IN_FOUR_BITS,
    NOT_IN_FOUR_BITS,
    QUANTIZES,
    LoraConfig,
    unbuilt_initialisation,
)
from finetune_api.row_forms import FORMS, PAIR
from finetune_api.rules import RENAMED, RULES, UNBUILT_TASK_BLOCKS
from finetune_api.spec import DataColumns, FineTuneJobSpec

WITHOUT_EFFECT = {
    "output_dir": "storage.path decides where runs are written",
    "num_data_blocks_per_device": "rows are tokenized once and held in memory, not streamed in blocks",
    "dataset_size_scaling_factor": "data sets have no size limit here",
    "forward_checkpoint_config": (
        "storage.path decides where checkpoints are written, custom_model_tag what trackers call the run"
    ),
    "webhook_config": "nothing is registered with Anyscale; the status says where the checkpoints are",
}
"""LLMForge's fields that are read and change nothing, with what happens instead."""

WITHOUT_EFFECT_ON_PREFERENCES = {
    "logprob_processor_scaling_config": (
        "the log-probabilities of the model as it was are computed once, by the workers that train"
    )
}
"""The same of `preference_tuning_config`."""

LIGER_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
"""Those of Liger's kernels that have nothing to replace here."""

_RESOURCES = {"worker_resources": ("memory", "CPU"), "trainer_resources": ("memory",)}
"""Keys that have an effect there besides accelerators; rank 0 has the processors of its worker."""


def effect(field: str) -> str:
    """The remark for a field below `spec` that has no effect or is not supported yet; else empty."""
    if field in WITHOUT_EFFECT:
        return f"No effect: {WITHOUT_EFFECT[field]}."
    if field in UNBUILT_TASK_BLOCKS:
        return f"Not supported yet: the task {UNBUILT_TASK_BLOCKS[field]}."
    return ""


def decides_nothing(place: Sequence[str]) -> bool:
    """Whether what is at these keys of a FineTuneJob, or of a bare LLMForge YAML, has no effect."""
    match place[1:] if place[:1] == ("spec",) else place:
        case ["preference_tuning_config", field, *_]:
            return field in WITHOUT_EFFECT_ON_PREFERENCES
        case [field, *_]:
            return field in WITHOUT_EFFECT
        case _:
            return False


def contradictions(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    """Pairs of a field's path below `spec` and what is wrong with it."""
    for rule in RULES:
        if rule.broken(spec):
            yield rule.field, rule.problem
    for index, source in enumerate(spec.sources):
        if source.weight is not None and source.rows is not None:
            yield f"train_path[{index}].rows", "is one way to say how many rows and weight another; keep one"
    if spec.data_columns is not None:
        yield from _columns(spec.data_columns, spec.trained_task)
    # Not a rule, since CEL does not see a field that is a list or a number.
    if isinstance(spec.sample_prompts, int) and not spec.validates and spec.eval_path is None:
        yield (
            "sample_prompts",
            "as a number needs spec.valid_path or spec.valid_fraction; or list the prompts",
        )
    if spec.lora_config is not None:
        yield from _lora(spec.lora_config)
        if spec.quantization is not None:
            yield from _in_four_bits(spec.lora_config)
        if spec.classifier_config is not None and spec.lora_config.trainable_token_indices is not None:
            yield (
                "lora_config.trainable_token_indices",
                "is for tokens that spec.classifier_config chooses; leave it out",
            )
    elif spec.initial_adapter_model_ckpt_path is not None:
        yield (
            "initial_adapter_model_ckpt_path",
            "needs spec.lora_config; without it every parameter is trained and there is no adapter",
        )


def _columns(columns: DataColumns, task: str) -> Iterator[tuple[str, str]]:
    """What is wrong with names of columns: they are of one form, and its task is the job's."""
    named = columns.model_dump(exclude_none=True)
    forms = (PAIR,) if task == "preference_tuning" else FORMS
    if not any(named.keys() <= set(form.keys) for form in forms):
        words = "; ".join(", ".join(key for key in form.keys if key != "history") for form in forms)
        given = ", ".join(named)
        yield (
            "data_columns",
            f"has {given}, which are not of one form of rows for the task {task}; those are {words}",
        )
    twice = sorted({column for column in named.values() if [*named.values()].count(column) > 1})
    if twice:
        yield "data_columns", f"gives {', '.join(twice)} to two keys; give each a column of its own"


def early_names(document: Mapping[str, JsonValue]) -> Iterator[str]:
    """Warnings about fields of a spec, as it was written, that have an early name, with today's."""
    for early, today in RENAMED.items():
        if document.get(early) is not None:
            yield f"spec.{early} is taken as {today}, its name today; write that"


def warnings(spec: FineTuneJobSpec, devices: Devices = KNOWN) -> Iterator[str]:
    """Warnings about fields that are accepted but have no effect, or another, with what happens instead.

    `devices` are those that the names in `worker_resources` may mean.
    """
    yield from _without_effect("spec", spec, WITHOUT_EFFECT)
    if spec.preference_tuning_config is not None:
        block = spec.preference_tuning_config
        yield from _without_effect("spec.preference_tuning_config", block, WITHOUT_EFFECT_ON_PREFERENCES)
    yield from _kernels(spec)
    yield from asked_sharding(spec).remarks
    taken = worker_device(spec.worker_resources or {}, devices).taken
    for key, accelerator_type in taken.items():
        yield f"spec.worker_resources[{key}] is taken as {ACCELERATOR_TYPE}{accelerator_type}"
    for group, understood in _RESOURCES.items():
        for key in getattr(spec, group) or {}:
            is_accelerator = key.startswith((ACCELERATOR_TYPE, ACCELERATOR_SHAPE)) or key in taken
            if not is_accelerator and key not in understood:
                known = f"{ACCELERATOR_TYPE}TYPE, {ACCELERATOR_SHAPE}NxTYPE, {', '.join(understood)}"
                yield f"spec.{group}[{key}] has no effect: what is understood there is {known}"
    yield from _another_length(spec)
    for field in ("eval_first", "eval_steps"):
        if getattr(spec, field) and not spec.validates:
            yield f"spec.{field} has no effect: there is no valid_path to evaluate on"
    if spec.sample_prompts is None and spec.sample_max_tokens is not None:
        yield "spec.sample_max_tokens has no effect: there are no sample_prompts to answer"
    if spec.export_dtype != "auto" and spec.lora_config is not None:
        yield "spec.export_dtype has no effect: adapters are saved in fp32, as they are trained"
    if spec.lora_config is None:
        yield (
            "spec.lora_config is absent: every parameter of the model is trained;"
            " add `lora_config: {}` for LoRA"
        )


def _another_length(spec: FineTuneJobSpec) -> Iterator[str]:
    for field in ("min_update_steps", "min_num_update_steps"):
        if spec.num_epochs is not None and getattr(spec, field) is not None:
            yield f"spec.{field} has no effect: num_epochs is set, and decides how long the run is"
    if spec.num_epochs is not None and spec.max_steps is not None:
        yield "spec.num_epochs has no effect: max_steps is set, and decides how long the run is"


def _without_effect(where: str, block: BaseModel, fields: Mapping[str, str]) -> Iterator[str]:
    for field, instead in fields.items():
        if getattr(block, field) is not None:
            yield f"{where}.{field} has no effect: {instead}"


def _kernels(spec: FineTuneJobSpec) -> Iterator[str]:
    """What Liger's kernels do not do here.

    Source of what compiling does to them: huggingface/kernels-community, liger-kernels/torch-ext/
    liger_kernels/layers.py, and issue 174 of linkedin/Liger-Kernel.
    """
    if spec.liger_kernel is not None and spec.liger_kernel.enabled and spec.compiles_layers:
        yield (
            "spec.liger_kernel has no effect: spec.torch_compile makes kernels of its own, and Liger's are"
            " not exact when they are compiled"
        )
    for name in LIGER_LOSSES:
        if (spec.liger_switches or {}).get(name):
            yield (
                f"spec.liger_kernel.kwargs.{name} has no effect: the loss is computed here of the positions"
                " that count, some at a time, without the scores of all"
            )


def _lora(lora: LoraConfig) -> Iterator[tuple[str, str]]:
    """What is not built, and what PEFT's LoraConfig refuses, in words that name our fields."""
    if lora.loftq_config:
        yield "lora_config.loftq_config", f"{QUANTIZES}; leave it out"
    if isinstance(lora.init_lora_weights, str) and (
        unbuilt := unbuilt_initialisation(lora.init_lora_weights)
    ):
        yield "lora_config.init_lora_weights", f"{unbuilt}; leave it out"
    if isinstance(lora.target_modules, str):
        for field in ("layers_to_transform", "layers_pattern"):
            if getattr(lora, field) is not None:
                yield (
                    f"lora_config.{field}",
                    f"needs spec.lora_config.target_modules as a list of names, is {lora.target_modules}",
                )
    if lora.layers_pattern and lora.layers_to_transform is None:
        yield "lora_config.layers_pattern", "needs spec.lora_config.layers_to_transform"
    if lora.lora_bias and isinstance(lora.init_lora_weights, str):
        yield "lora_config.lora_bias", "needs spec.lora_config.init_lora_weights to be true or false"


def _in_four_bits(lora: LoraConfig) -> Iterator[tuple[str, str]]:
    """What cannot be trained on a base in 4 bits."""
    known, begun = INITIALISATIONS_IN_FOUR_BITS, lora.init_lora_weights
    if isinstance(begun, str) and begun not in known and unbuilt_initialisation(begun) is None:
        yield (
            "lora_config.init_lora_weights",
            f"{begun} needs the base in full, not in 4 bits; take true, false or {', '.join(known)}",
        )
    for field, reason in NOT_IN_FOUR_BITS.items():
        if getattr(lora, field) is not None:
            yield f"lora_config.{field}", f"{reason}; leave it or spec.quantization out"
