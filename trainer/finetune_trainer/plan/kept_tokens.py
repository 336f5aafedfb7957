"""Tokens in a run directory: Prepare leaves them there, and the attempts at the job take them from there."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ValidationError

from finetune_api.failure import FineTuneError
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.plan.tokenization import Tokenization, Tokens
from finetune_trainer.storage.open import Storage
from finetune_trainer.storage.run_directory import RunDirectory

DESCRIPTION = "tokens.json"
"""A `KeptTokens` as JSON; beside it are the rows of each file, in `FILES`."""
FILES = ("train.npz", "validation.npz")
"""NumPy's archives of the arrays of `TokenizedRows`, by their names."""
_ARRAYS = ("input_ids", "trained", "offsets", "lines")


class KeptTokens(BaseModel):
    """What kept tokens are of."""

    version: Literal[1] = 1
    fingerprint: str
    """That of the `Tokenization` when they were made."""
    files: int
    """1, or 2 with validation rows."""
    warnings: list[str]
    warnings_sha256: str

    @classmethod
    def of(cls, fingerprint: str, tokens: Tokens) -> KeptTokens:
        """The description of these tokens."""
        warnings = list(tokens.warnings)
        return cls(
            fingerprint=fingerprint,
            files=len(tokens.files),
            warnings=warnings,
            warnings_sha256=_sha256(warnings),
        )

    @property
    def is_whole(self) -> bool:
        """Whether the warnings are those that were written."""
        return _sha256(self.warnings) == self.warnings_sha256


def _sha256(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogatepass")).hexdigest()


class TokensToKeep:
    """Tokenizes rows for `prepare`, and keeps the tokens when all else is found to be right too."""

    def __init__(self) -> None:
        self._made: tuple[str, Tokens] | None = None

    def tokenize(self, tokenization: Tokenization) -> Tokens:
        """The tokens; see `Tokenization.tokenize`."""
        fingerprint = None
        # Before they are read: rows that change meanwhile are not taken for those that were. What cannot be
        # read is said, with all other problems, when it is tokenized.
        with suppress(FineTuneError):
            fingerprint = tokenization.fingerprint()
        tokens = tokenization.tokenize()
        if fingerprint is not None:
            self._made = (fingerprint, tokens)
        return tokens

    def keep(self, run: RunDirectory) -> None:
        """Writes the tokens into a run directory that is claimed, in place of those that are there."""
        if self._made is None:
            return
        fingerprint, tokens = self._made
        with run.staging_prepared() as staging:
            for name, rows in zip(FILES, tokens.files, strict=False):
                np.savez(staging / name, **{array: getattr(rows, array) for array in _ARRAYS})
            described = KeptTokens.of(fingerprint, tokens)
            (staging / DESCRIPTION).write_text(described.model_dump_json(indent=2), encoding="utf-8")
            run.commit_prepared(staging)


def tokens_of(tokenization: Tokenization, run: RunDirectory, say: Callable[[str], None]) -> Tokens:
    """The tokens that are kept in the run directory, if they are those of the job's rows; else made anew.

    `say` is told which of the two it is, where some are kept. Raises FineTuneError when storage fails, and
    what `Tokenization.tokenize` raises.
    """
    storage = run.prepared()
    if storage is None:
        return tokenization.tokenize()
    kept = _described(storage)
    fingerprint = None
    with suppress(FineTuneError):  # it is said, with all other problems, when the rows are tokenized
        fingerprint = tokenization.fingerprint()
    if kept is None or not kept.is_whole or kept.fingerprint != fingerprint:
        say(
            f"warning: {storage.path}: what was prepared is of other rows, another tokenizer or another"
            " version; the rows are tokenized again"
        )
        return tokenization.tokenize()
    try:
        with storage.local_copy() as directory:
            files = tuple(_read(directory / name) for name in FILES[: kept.files])
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        say(f"warning: {storage.path}: cannot be read ({error}); the rows are tokenized again")
        return tokenization.tokenize()
    say(f"the tokens of the rows are those in {storage.path}")
    return Tokens(files, tuple(kept.warnings))


def _described(storage: Storage) -> KeptTokens | None:
    try:
        return KeptTokens.model_validate_json(storage.read_text(DESCRIPTION) or "")
    except ValidationError:
        return None


def _read(file: Path) -> TokenizedRows:
    with np.load(file, allow_pickle=False) as arrays:
        return TokenizedRows(**{name: arrays[name] for name in _ARRAYS})
