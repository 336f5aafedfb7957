"""The tokens of a job's rows, and what decides them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from finetune_api import row_forms
from finetune_api.failure import FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer import data
from finetune_trainer.data.chat import ChatFormat
from finetune_trainer.data.places import Places
from finetune_trainer.data.reading import read_tokens
from finetune_trainer.data.token_files import RowsOnDisk
from finetune_trainer.data.tokens import FileTokens, RowsInMemory
from finetune_trainer.plan.token_cache import TokenCache
from finetune_trainer.storage.inputs import Inputs, digest, input_size, inputs_at
from finetune_trainer.tasks.task import Task

_DATA = Path(data.__path__[0])

T = TypeVar("T")
R = TypeVar("R")

SMALL_BYTES = 4 * 2**20
"""Files that are smaller are tokenized before anything is found in a cache; their tokens stay in memory."""

_PROGRAMS = ("finetune-operator", "transformers", "tokenizers", "jinja2")
"""What turns text into tokens: another version may do it in another way."""


@dataclass(frozen=True)
class Tokens:
    """All rows of a job as tokens, before truncation."""

    files: tuple[FileTokens, ...]
    """Those at each of the job's paths: the training rows, and the validation rows if these have one."""
    digests: tuple[str, ...]
    """The SHA-256 of each file, as it was when its rows were read."""
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
        """Where the training rows are and, if these have a path, the validation rows."""
        return self.spec.data_paths

    @cached_property
    def inputs(self) -> tuple[Inputs, ...]:
        """The files at each of `paths`."""
        return tuple(map(inputs_at, self.paths))

    def tokenize(self) -> Tokens:
        """Reads, checks and tokenizes all rows; those of large files may be in the user's cache.

        Raises FineTuneError (InvalidData) with every problem of both files.
        """
        found = all_or_every_problem(self._tokens_of, list(self.paths))
        return self.tokens([tokens for tokens, _ in found], [content for _, content in found])

    def tokens(self, files: Sequence[FileTokens], digests: Sequence[str]) -> Tokens:
        """The tokens of all files."""
        remarks = [
            remark
            for inputs, tokens in zip(self.inputs, files, strict=True)
            for remark in tokens.remarks.words(inputs.path, self.chat.source, Places(inputs).briefly)
        ]
        return Tokens(tuple(files), tuple(digests), (*self.chat.warnings, *remarks))

    def key(self, content: str) -> str:
        """A hash of all that decides the tokens of a file: its SHA-256, and how rows become tokens."""
        return hashlib.sha256(f"{self._way} {content}".encode()).hexdigest()

    def _tokens_of(self, path: str) -> tuple[FileTokens, str]:
        """The tokens of a file and its SHA-256."""
        encoder = self.task.encoder(self.chat)
        if input_size(path) < SMALL_BYTES:
            return read_tokens(path, encoder, RowsInMemory())
        cache = TokenCache.of_user()
        content = digest(path)
        found = cache.take(self.key(content))
        if found is not None:
            return found, content
        private = cache.private_directory()
        made, content = read_tokens(path, encoder, RowsOnDisk(private))
        return cache.add(private, self.key(content), made), content

    @cached_property
    def _way(self) -> str:
        """A hash of how rows become tokens."""
        tokenizer = self.tokenizer
        decides = {
            "programs": {name: version(name) for name in _PROGRAMS},
            # In a checkout it changes without a new version.
            "program": [
                file.read_text(encoding="utf-8")
                for file in (*sorted(_DATA.glob("*.py")), Path(row_forms.__file__))
            ],
            "format": self.spec.model_dump(
                mode="json",
                include={
                    "generation_config": True,
                    "classifier_config": {"label_tokens"},
                    "data_columns": True,
                },
            ),
            "task": self.spec.trained_task,
            # Also its vocabulary: what stands at the path of a model may change.
            "tokenizer": tokenizer.backend_tokenizer.to_str(),
            "class": type(tokenizer).__name__,
            "template": tokenizer.chat_template,
            "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "all_special": sorted(map(str, tokenizer.all_special_tokens)),
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
