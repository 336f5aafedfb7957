"""Rules between fields that this package and the API server both hold a spec to, in both their languages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.spec import FineTuneJobSpec

BUILT_TASKS = ("causal_lm", "instruction_tuning")
TASK_BLOCKS = {
    "classifier_config": "classification",
    "preference_tuning_config": "preference_tuning",
    "vision_language_config": "vision_language_tuning",
}
"""Task blocks and the task that each implies."""

SPELLINGS = {
    "min_num_update_steps": "min_update_steps",
    "no_gradient_checkpoint": "gradient_checkpointing",
    "checkpoint_every_n_epochs": "checkpoint_and_evaluation_frequency",
}
"""Older spellings and their newer ones."""


@dataclass(frozen=True)
class Rule:
    """What a spec must not say."""

    field: str
    """Where the problem is shown: a field below `spec`."""
    problem: str
    """What is wrong, and what would be right."""
    broken: Callable[[FineTuneJobSpec], bool]
    cel: str
    """The opposite of `broken` in CEL, where `self` is the spec: true of a spec that keeps the rule."""


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
        problem=f"asks for the task {task}, which is not supported yet; {' and '.join(BUILT_TASKS)} are",
        broken=lambda spec: getattr(spec, block) is not None,
        cel=f"!has(self.{block})",
    )


RULES = (
    *(_one_spelling(older, newer) for older, newer in SPELLINGS.items()),
    Rule(
        field="task",
        problem=f"is not supported yet; {' and '.join(BUILT_TASKS)} are",
        broken=lambda spec: spec.task in TASK_BLOCKS.values(),
        cel=f"!has(self.task) || !(self.task in {list(TASK_BLOCKS.values())})",
    ),
    *(_no_block(block, task) for block, task in TASK_BLOCKS.items()),
    Rule(
        field="packing",
        problem="is not supported yet; leave it out",
        broken=lambda spec: spec.packing,
        cel="!self.packing",
    ),
    Rule(
        field="parallelism",
        problem="fsdp is not supported yet; auto and ddp are",
        broken=lambda spec: spec.parallelism == "fsdp",
        cel="self.parallelism != 'fsdp'",
    ),
)
