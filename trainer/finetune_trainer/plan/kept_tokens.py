"""Tokens in a run directory: Prepare leaves them there, and the attempts at the job take them from there."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import ExitStack, suppress

from finetune_api.failure import FineTuneError
from finetune_trainer.data.token_files import (
    DESCRIPTION,
    Description,
    describe,
    described,
    described_tokens,
    write_rows,
)
from finetune_trainer.data.tokens import FileTokens
from finetune_trainer.plan.tokenization import Tokenization, Tokens
from finetune_trainer.storage.inputs import digest
from finetune_trainer.storage.open import Storage
from finetune_trainer.storage.run_directory import RunDirectory


def _names(tokenization: Tokenization) -> list[str]:
    """The directories with the rows of each path, as in the user's cache."""
    sources = len(tokenization.spec.sources)
    train = ["train"] if sources == 1 else [f"train-{index}" for index in range(sources)]
    return [*train, "validation"][: len(tokenization.paths)]


class TokensToKeep:
    """Tokenizes rows for `prepare`, and keeps the tokens when all else is found to be right too."""

    def __init__(self) -> None:
        self._made: tuple[Tokenization, Tokens] | None = None

    def tokenize(self, tokenization: Tokenization) -> Tokens:
        """The tokens; see `Tokenization.tokenize`."""
        tokens = tokenization.tokenize()
        self._made = (tokenization, tokens)
        return tokens

    def keep(self, run: RunDirectory) -> None:
        """Writes the tokens into a run directory that is claimed, in place of those that are there."""
        if self._made is None:
            return
        tokenization, tokens = self._made
        with run.staging_prepared() as staging:
            for name, file, content in zip(_names(tokenization), tokens.files, tokens.digests, strict=True):
                (staging / name).mkdir()
                write_rows(file.rows, staging / name)
                describe(staging / name, tokenization.key(content), file.remarks)
            run.commit_prepared(staging)


def tokens_of(tokenization: Tokenization, run: RunDirectory, say: Callable[[str], None]) -> Tokens:
    """The tokens that are kept in the run directory, if they are those of the job's rows; else made anew.

    `say` is told which of the two it is, where some are kept. Raises FineTuneError when storage fails, and
    what `Tokenization.tokenize` raises.
    """
    storage = run.prepared()
    if storage is None:
        return tokenization.tokenize()
    names = _names(tokenization)
    digests: list[str] = []
    with suppress(FineTuneError):  # it is said, with all other problems, when the rows are tokenized
        digests = [digest(path) for path in tokenization.paths]
    kept = [
        described(storage.read_text(f"{name}/{DESCRIPTION}"), tokenization.key(content))
        for name, content in zip(names, digests, strict=False)
    ]
    descriptions = [description for description in kept if description is not None]
    if not kept or len(descriptions) < len(kept):
        say(
            f"warning: {storage.path}: what was prepared is of other rows, another tokenizer or another"
            " version; the rows are tokenized again"
        )
        return tokenization.tokenize()
    try:
        files = _files(storage, names, descriptions)
    except (ValueError, OSError) as error:
        say(f"warning: {storage.path}: cannot be read ({error}); the rows are tokenized again")
        return tokenization.tokenize()
    say(f"the tokens of the rows are those in {storage.path}")
    return tokenization.tokens(files, digests)


def _files(storage: Storage, names: list[str], descriptions: list[Description]) -> list[FileTokens]:
    with ExitStack() as copies:
        directory = copies.enter_context(storage.local_copy())
        files = [
            described_tokens(directory / name, description)
            for name, description in zip(names, descriptions, strict=True)
        ]
        atexit.register(copies.pop_all().close)  # they are mapped from there
    return files
