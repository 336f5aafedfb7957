"""The interface of tasks, and the choice of a job's task."""

from __future__ import annotations

from typing import Protocol

from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.chat import ChatFormat
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.tasks.language import LanguageTask
from finetune_trainer.tasks.objective import Model, Objective


class Reader(Protocol):
    """Reads the files of a task into rows of tokens."""

    warnings: list[str]
    """Warnings for people about the files that were read so far."""

    def read(self, path: str) -> TokenizedRows:
        """Reads all rows of a file, without truncation.

        Raises FineTuneError (InvalidData) with a problem for every row that is wrong.
        """


class Task(Protocol):
    """What differs between tasks: how files are read, which class of model is trained, and the loss."""

    model_class: type[AutoModelForCausalLM]
    """The class of transformers that loads the model."""

    def chat(self, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        """How conversations are written, in training and afterwards.

        Raises FineTuneError (InvalidSpec) when the tokenizer cannot write them.
        """

    def reader(self, chat: ChatFormat) -> Reader:
        """A reader of the task's files."""

    def objective(self, model: Model) -> Objective:
        """The model with the task's loss."""


def task_of(spec: FineTuneJobSpec) -> Task:
    """The task of a job."""
    match spec.trained_task:
        case "causal_lm" | "instruction_tuning":
            return LanguageTask(spec)
