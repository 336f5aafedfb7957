"""The tokens of a job's rows, and what decides them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from finetune_api.failure import FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.chat import ChatFormat
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.storage.open import digest
from finetune_trainer.tasks.task import Task

T = TypeVar("T")
R = TypeVar("R")

_PROGRAMS = ("finetune-operator", "transformers", "tokenizers", "jinja2")
"""What turns text into tokens: another version may do it in another way."""


@dataclass(frozen=True)
class Tokens:
    """All rows of a job as tokens, before truncation."""

    files: tuple[TokenizedRows, ...]
    """The training rows, and the validation rows if there are any."""
    warnings: tuple[str, ...]
    """For people, about what was read."""


@dataclass(frozen=True)
class Tokenization:
    """How the rows of a job become tokens."""

    spec: FineTuneJobSpec
    tokenizer: PreTrainedTokenizerBase
    task: Task
    chat: ChatFormat

    @property
    def paths(self) -> tuple[str, ...]:
        """The files of training rows and, if there are any, validation rows."""
        return (self.spec.train_path, *([self.spec.valid_path] if self.spec.valid_path else []))

    def tokenize(self) -> Tokens:
        """Reads, checks and tokenizes all rows.

        Raises FineTuneError (InvalidData) with every problem of both files.
        """
        reader = self.task.reader(self.chat)
        files = all_or_every_problem(reader.read, list(self.paths))
        return Tokens(tuple(files), tuple(reader.warnings))

    def fingerprint(self) -> str:
        """A hash of all that decides the tokens: the rows as they are now, and how they become tokens.

        Reads the files. Raises FineTuneError where one cannot be read.
        """
        spec, tokenizer = self.spec, self.tokenizer
        decides = {
            "programs": {name: version(name) for name in _PROGRAMS},
            "rows": [[path, digest(path)] for path in self.paths],
            "spec": spec.model_dump(mode="json", include={"model_id", "generation_config"}),
            "task": spec.trained_task,
            # Also its vocabulary: what stands at the path of a model may change.
            "tokenizer": tokenizer.backend_tokenizer.to_str(),
            "template": tokenizer.chat_template,
            "special": sorted(map(str, tokenizer.all_special_tokens)),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def all_or_every_problem(check: Callable[[T], R], items: list[T]) -> list[R]:
    """Calls `check` on every item, and raises one error with all problems when some fail."""
    results: list[R] = []
    errors: list[FineTuneError] = []
    for item in items:
        try:
            results.append(check(item))
        except FineTuneError as error:
            errors.append(error)
    if errors:
        raise FineTuneError(
            errors[0].failure_class, *(problem for error in errors for problem in error.problems)
        ) from errors[0]
    return results
