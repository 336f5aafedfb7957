"""Rules between fields of a spec, each once in Python for this package and once in CEL for the API server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from finetune_api.lora import UNBUILT_BLOCKS, UNBUILT_SWITCHES
from finetune_api.spec import BuiltTask, FineTuneJobSpec, LoggerConfig

BUILT_TASKS = get_args(BuiltTask)
TASK_BLOCKS = {"preference_tuning_config": "preference_tuning", "classifier_config": "classification"}
"""Blocks of tasks, and the task that each implies."""
UNBUILT_TASK_BLOCKS = {"vision_language_config": "vision_language_tuning"}
"""The same of tasks that are not built."""

RENAMED = {
    "eval_path": "valid_path",
    "model_tag": "custom_model_tag",
}
"""Early names of fields, which are read as what they became."""

SPELLINGS = {
    **RENAMED,
    "min_num_update_steps": "min_update_steps",
    "no_gradient_checkpoint": "gradient_checkpointing",
    "checkpoint_every_n_epochs": "checkpoint_and_evaluation_frequency",
}
"""Older spellings and their newer ones."""

TRACKERS_KEYS = {
    **dict.fromkeys(("project", "group", "name", "tags"), "wandb"),
    **dict.fromkeys(("tracking_uri", "experiment_name", "create_experiment_if_not_exists"), "mlflow"),
    "log_dir": "tensorboard",
}
"""Keys of a logger's configuration, and the tracker that each is for."""


@dataclass(frozen=True)
class Rule:
    """A rule that a spec must keep, and what is wrong with one that breaks it."""

    field: str
    """Where the problem is shown: a path below `spec`."""
    problem: str
    """What is wrong, and what would be right."""
    broken: Callable[[FineTuneJobSpec], bool]
    cel: str
    """The opposite of `broken` in CEL, where `self` is the spec: true of a spec that keeps the rule."""
    block: str | None = None
    """The field of the spec that the rule is all about, if that has fields of its own; then `self` is it."""

    @property
    def below_self(self) -> str:
        """`field` as a path below what `self` is in CEL."""
        return self.field if self.block is None else self.field.removeprefix(f"{self.block}.")


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _one_spelling(older: str, newer: str) -> Rule:
    return Rule(
        field=older,
        problem=f"means the same as spec.{newer}, which is set as well; keep one of them",
        broken=lambda spec: getattr(spec, older) is not None and getattr(spec, newer) is not None,
        cel=f"!has(self.{older}) || !has(self.{newer})",
    )


def _no_block(block: str, task: str) -> Rule:
    return Rule(
        field=block,
        problem=f"asks for the task {task}, which is not supported yet; {_listed(BUILT_TASKS)} are",
        broken=lambda spec: getattr(spec, block) is not None,
        cel=f"!has(self.{block})",
    )


def _of_its_task(block: str, task: str) -> Rule:
    return Rule(
        field=block,
        problem=f"is of the task {task}, spec.task is another; keep one of them",
        broken=lambda spec: getattr(spec, block) is not None and spec.task not in (None, task),
        cel=f"!has(self.{block}) || !has(self.task) || self.task == '{task}'",
    )


def _no_lora(field: str, reason: str, absent: str) -> Rule:
    return Rule(
        field=f"lora_config.{field}",
        problem=f"{reason}; leave it out",
        broken=lambda spec: (
            spec.lora_config is not None and getattr(spec.lora_config, field) not in (None, False)
        ),
        cel=absent,
        block="lora_config",
    )


def _trackers_own(key: str) -> Rule:
    owner = TRACKERS_KEYS[key]

    def broken(spec: FineTuneJobSpec) -> bool:
        return (
            spec.logger is not None
            and spec.logger.provider != owner
            and getattr(spec.logger.provider_config, key) is not None
        )

    return Rule(
        field=f"logger.provider_config.{key}",
        problem=f"belongs to {owner}, and the provider is another; leave it out",
        broken=broken,
        cel=f"self.provider == '{owner}' || !has(self.provider_config.{key})",
        block="logger",
    )


RULES = (
    *(_one_spelling(older, newer) for older, newer in SPELLINGS.items()),
    Rule(
        field="task",
        problem=f"is not supported yet; {_listed(BUILT_TASKS)} are",
        broken=lambda spec: spec.task in UNBUILT_TASK_BLOCKS.values(),
        cel=f"!has(self.task) || !(self.task in {list(UNBUILT_TASK_BLOCKS.values())})",
    ),
    Rule(
        field="valid_fraction",
        problem="is one way to validate and spec.valid_path another; keep one of them",
        broken=lambda spec: spec.valid_fraction is not None and spec.valid_path is not None,
        cel="!has(self.valid_fraction) || !has(self.valid_path)",
    ),
    *(_no_block(block, task) for block, task in UNBUILT_TASK_BLOCKS.items()),
    *(_of_its_task(block, task) for block, task in TASK_BLOCKS.items()),
    Rule(
        field="classifier_config",
        problem="is of another task than spec.preference_tuning_config, which is set too; keep one of them",
        broken=lambda spec: spec.classifier_config is not None and spec.preference_tuning_config is not None,
        cel="!has(self.classifier_config) || !has(self.preference_tuning_config)",
    ),
    Rule(
        field="task",
        problem="classification needs spec.classifier_config with its label_tokens",
        broken=lambda spec: spec.task == "classification" and spec.classifier_config is None,
        cel="!has(self.task) || self.task != 'classification' || has(self.classifier_config)",
    ),
    Rule(
        field="packing",
        problem="fills sequences with rows, and pairs of answers are compared; leave it out",
        broken=lambda spec: spec.packing and spec.trained_task == "preference_tuning",
        cel=(
            "!self.packing || (has(self.task) ? self.task != 'preference_tuning' :"
            " !has(self.preference_tuning_config))"
        ),
    ),
    Rule(
        field="packing",
        problem="fills sequences, and spec.padding is max_length, which pads rows; keep one of them",
        broken=lambda spec: spec.packing and spec.padding == "max_length",
        cel="!self.packing || self.padding != 'max_length'",
    ),
    Rule(
        field="max_steps",
        problem="says how long the run is, and so does spec.min_update_steps; keep one of them",
        broken=lambda spec: spec.max_steps is not None and spec.minimum_steps is not None,
        cel="!has(self.max_steps) || !has(self.min_update_steps) && !has(self.min_num_update_steps)",
    ),
    Rule(
        field="early_stopping_patience",
        problem="needs spec.valid_path or spec.valid_fraction: it is the validation loss that decides",
        broken=lambda spec: (
            spec.early_stopping_patience is not None and not spec.validates and spec.eval_path is None
        ),
        cel=(
            "!has(self.early_stopping_patience) || has(self.valid_path) || has(self.valid_fraction)"
            " || has(self.eval_path)"
        ),
    ),
    Rule(
        field="cpu_offload",
        problem="needs spec.parallelism: fsdp or auto, is true with ddp; keep one of them",
        broken=lambda spec: spec.cpu_offload is True and spec.parallelism == "ddp",
        cel="!has(self.cpu_offload) || !self.cpu_offload || self.parallelism != 'ddp'",
    ),
    Rule(
        field="quantization",
        problem="needs spec.lora_config: weights of 4 bits cannot be trained; add lora_config: {} for LoRA",
        broken=lambda spec: spec.quantization is not None and spec.lora_config is None,
        cel="!has(self.quantization) || has(self.lora_config)",
    ),
    Rule(
        field="output.merge",
        problem="merges an adapter, and without spec.lora_config a whole model is trained; leave it out",
        broken=lambda spec: spec.output is not None and spec.output.merge and spec.lora_config is None,
        cel="!has(self.output) || !self.output.merge || has(self.lora_config)",
    ),
    *(_no_lora(field, reason, f"!has(self.{field})") for field, reason in UNBUILT_BLOCKS.items()),
    *(_no_lora(switch, reason, f"!self.{switch}") for switch, reason in UNBUILT_SWITCHES.items()),
    Rule(
        field="lora_config.lora_bias",
        problem="does not go with spec.lora_config.use_dora; keep one of them",
        broken=lambda spec: (
            spec.lora_config is not None and spec.lora_config.lora_bias and spec.lora_config.use_dora
        ),
        cel="!self.lora_bias || !self.use_dora",
        block="lora_config",
    ),
    *(_trackers_own(key) for key in LoggerConfig.model_fields),
)
