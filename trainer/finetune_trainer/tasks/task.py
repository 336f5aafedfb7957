"""The interface of tasks, and the choice of a job's task."""

from __future__ import annotations

from typing import Protocol

from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.chat import ChatFormat
from finetune_trainer.data.encoding import LineEncoder
from finetune_trainer.data.places import Place
from finetune_trainer.data.tokens import RowWriter, TokenizedRows
from finetune_trainer.tasks.classification import ClassificationTask
from finetune_trainer.tasks.head import Scores
from finetune_trainer.tasks.language import LanguageTask
from finetune_trainer.tasks.objective import Judge, Model, Objective
from finetune_trainer.tasks.preference import PreferenceTask


class Task(Protocol):
    """What differs between tasks: how files are read, which class of model is trained, and the loss."""

    model_class: type[AutoModelForCausalLM]
    """The class of transformers that loads the model."""
    documents: int
    """How many of what `encoder` makes are a row."""
    compares: bool
    """Whether the loss compares the model with what it was before training."""
    has_perplexity: bool
    """Whether the exponential of the loss is a perplexity."""

    def chat(self, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        """How conversations are written, in training and afterwards.

        Raises FineTuneError (InvalidSpec) when the tokenizer cannot write them.
        """

    def encoder(self, chat: ChatFormat) -> LineEncoder:
        """What makes tokens of the lines of the task's files."""

    def rows(
        self, documents: TokenizedRows, context_length: int, place: Place, writer: RowWriter
    ) -> tuple[TokenizedRows, int]:
        """Rows of what `encoder` has made of a file, none longer than `context_length` tokens.

        Returns also how many were longer. Where there are any, what is left of all is given to `writer`.
        Raises FineTuneError (InvalidData) with a problem `place: what` for each that has nothing left
        to train on.
        """

    def remarks(self, train: TokenizedRows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """What to know about the training rows, for people."""

    def objective(self, model: Model, scores: Scores | None, tokenizer: PreTrainedTokenizerBase) -> Objective:
        """The model with the task's loss. `scores`: what its forward pass does after its head, if known."""

    def judge(self, tokenizer: PreTrainedTokenizerBase) -> Judge | None:
        """What measures all documents of a validation together; None where their loss says all."""


def task_of(spec: FineTuneJobSpec) -> Task:
    """The task of a job."""
    match spec.trained_task:
        case "causal_lm" | "instruction_tuning" as task:
            return LanguageTask(spec, task)
        case "preference_tuning":
            return PreferenceTask(spec)
        case "classification":
            return ClassificationTask(spec)
