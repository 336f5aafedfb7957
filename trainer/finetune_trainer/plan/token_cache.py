"""Tokens of files in the user's cache directory, by what decides them; and room there for other tokens."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune_api.failure import FineTuneError
from finetune_trainer.data.token_files import (
    DESCRIPTION,
    RowsOnDisk,
    describe,
    described,
    described_tokens,
    map_rows,
)
from finetune_trainer.data.tokens import FileTokens, RowsInMemory, RowWriter, TokenizedRows
from finetune_trainer.storage.failure import explained

LARGEST_CACHE = 10 * 2**30
"""Bytes; what was used longest ago goes first."""
SECONDS_SPARED = 3600
"""What was used since then stays, whatever the size."""

_PRIVATE = ".private-"
_held: list[int] = []
"""Descriptors of directories that this process uses, locked until it ends."""


@dataclass(frozen=True)
class TokenCache:
    """The tokens in a directory, each file's in one of its own. Several processes may use it at once."""

    directory: Path
    largest: int = LARGEST_CACHE

    @classmethod
    def of_user(cls) -> TokenCache:
        """That in the user's cache directory."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(cache / "finetune-operator" / "tokens")

    def take(self, key: str) -> FileTokens | None:
        """The tokens with this key; None where there are none, or they are damaged, and are deleted."""
        entry = self.directory / key
        try:
            _hold(entry)
            text = (entry / DESCRIPTION).read_text(encoding="utf-8", errors="surrogatepass")
            description = described(text, key)
            if description is None:
                raise ValueError(f"{DESCRIPTION} is not what was written")
            tokens = described_tokens(entry, description)
            os.utime(entry)
        except FileNotFoundError:
            if not entry.exists():
                return None
        except (OSError, ValueError):
            pass
        else:
            return tokens
        with suppress(OSError):
            self._delete(entry)
        return None

    def private_directory(self) -> Path:
        """A new empty directory of this process, which is gone when the process ends.

        It is among temporary files where the cache cannot be written. Raises FineTuneError (StorageError)
        where these cannot either.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            made = tempfile.mkdtemp(prefix=_PRIVATE, dir=self.directory)
        except OSError:
            with explained(tempfile.gettempdir()):
                made = tempfile.mkdtemp(prefix="finetune-tokens-")
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        with suppress(OSError):
            _hold(Path(made))
        return Path(made)

    def add(self, private: Path, key: str, tokens: FileTokens) -> FileTokens:
        """Makes the tokens in a private directory those with this key, unless there are some meanwhile."""
        entry = self.directory / key
        try:
            describe(private, key, tokens.remarks)
            private.rename(entry)
        except (OSError, FineTuneError):
            return tokens
        self._make_room()
        return FileTokens(map_rows(entry), tokens.remarks)

    def _make_room(self) -> None:
        """Deletes what was used longest ago, and what processes that died have left."""
        size = 0
        now = time.time()
        with suppress(OSError):
            for used, entry in sorted(self._entries(), reverse=True):
                private = entry.name.startswith(_PRIVATE)
                size += sum(file.stat().st_size for file in entry.iterdir())
                if (private or size > self.largest) and used < now - SECONDS_SPARED and _is_unused(entry):
                    self._delete(entry)

    def _entries(self) -> Iterator[tuple[float, Path]]:
        for entry in self.directory.iterdir():
            if entry.is_dir():
                yield entry.stat().st_mtime, entry

    def _delete(self, entry: Path) -> None:
        """Out of the way first: half of an entry is found by nobody."""
        aside = Path(tempfile.mkdtemp(prefix=_PRIVATE, dir=self.directory))
        try:
            entry.rename(aside / entry.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def writer_beside(rows: TokenizedRows) -> RowWriter:
    """A writer for rows that are made of these: on disk too, where these are on disk."""
    return RowsInMemory() if rows.directory is None else RowsOnDisk(TokenCache.of_user().private_directory())


def _hold(directory: Path) -> None:
    """Keeps others from deleting a directory while this process lives."""
    descriptor = os.open(directory, os.O_RDONLY)
    _held.append(descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def _is_unused(directory: Path) -> bool:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
