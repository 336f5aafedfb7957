"""What differs between tasks, and which one a job has."""

from __future__ import annotations

from typing import Protocol

from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.tasks.language import LanguageTask
from finetune_trainer.tasks.objective import Model, Objective


class Reader(Protocol):
    """Turns files of documents into rows of tokens."""

    warnings: list[str]
    """What a person should know about the files that were read."""

    def read(self, path: str) -> TokenizedRows:
        """All rows of a file in full length. Raises FineTuneError (InvalidData) with every row that is wrong."""


class Task(Protocol):
    """How a document becomes rows, which model learns from them, and what it is to make small."""

    model_class: type[AutoModelForCausalLM]
    """The class of transformers that makes the model from a directory or a configuration."""

    def reader(self, tokenizer: PreTrainedTokenizerBase) -> Reader:
        """Reads this task's documents. Raises FineTuneError (InvalidSpec) when the tokenizer does not fit."""

    def objective(self, model: Model) -> Objective:
        """The model with the task's loss."""


def task_of(spec: FineTuneJobSpec) -> Task:
    """The task of a job."""
    match spec.trained_task:
        case "causal_lm" | "instruction_tuning":
            return LanguageTask(spec)
