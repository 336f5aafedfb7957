"""Storage in a local directory. Files are written under another name and renamed, so they appear complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_trainer.storage.failure import explained, explained_writing


class LocalStorage:
    """A `Storage` on this machine. Unfinished files and directories are called `.NAME.partial`.

    `shown` is the path that users see in its place, such as `pvc://CLAIM/path`; it defaults to the
    directory's.
    """

    trouble = None

    def __init__(self, root: Path, *, shown: str | None = None) -> None:
        self._root = root
        self._shown = shown

    @property
    def path(self) -> str:
        """The path that users see: absolute, or the one shown in its place."""
        return self._shown or str(self._root)

    @property
    def here(self) -> Path:
        """The directory itself."""
        return self._root

    def child(self, name: str) -> LocalStorage:
        """The directory `name` in this one."""
        return LocalStorage(self._root / name, shown=f"{self._shown}/{name}" if self._shown else None)

    def files(self) -> dict[str, int]:
        """The names of all files with their sizes in bytes, unfinished ones included."""
        with explained(self._root):
            return sizes_of(self._root)

    def read_text(self, name: str) -> str | None:
        """A file's text, or None. Invalid UTF-8, as after a crash of the machine, becomes U+FFFD."""
        file = self._root / name
        with explained(file):
            try:
                return file.read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                return None

    def write_text(self, name: str, text: str) -> None:
        """Writes a new file, waits until it is on disk, and renames it."""
        file = self._root / name
        partial = file.with_name(f".{file.name}.partial")
        with explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            _sync(partial)
            partial.replace(file)
            _sync(file.parent)

    def append_text(self, name: str, text: str) -> None:
        """Adds to the end of a file, at once."""
        file = self._root / name
        with explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(text)

    def flush(self) -> None:
        """Does nothing: `append_text` has written."""

    def delete(self, name: str) -> None:
        """Deletes a file or a directory, if it exists."""
        target = self._root / name
        with explained(target):
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def download(self, names: Iterable[str], directory: Path) -> None:
        """Copies files to a directory."""
        for name in names:
            target = directory / name
            with explained(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._root / name, target)

    @contextmanager
    def local_copy(self) -> Iterator[Path]:
        """The directory itself."""
        yield self._root

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A new directory beside `name`, on the same file system."""
        directory = self._root / f".{name}.partial"
        self.delete(directory.name)
        with explained(directory):
            directory.mkdir(parents=True)
        try:
            with explained_writing(directory):
                yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @contextmanager
    def helping(self, name: str) -> Iterator[Path]:
        """The writer's own directory, which is there when the first file is written."""
        directory = self._root / f".{name}.partial"
        with explained_writing(directory):
            yield directory

    def hand_in(self, staging: Path, name: str) -> dict[str, int]:  # noqa: ARG002 - as in the protocol
        """Lists the directory as this process sees it."""
        with explained(staging):
            return sizes_of(staging)

    def publish(self, staging: Path, name: str, *, last: str) -> None:
        """Waits until all files are on disk, and renames the directory. All files appear at once."""
        del last
        with explained(staging):
            for entry in (*staging.rglob("*"), staging):
                _sync(entry)
            staging.rename(self._root / name)
            _sync(self._root)

    def clear_partial(self) -> None:
        """Deletes unfinished files and directories."""
        for entry in self._root.glob(".*.partial"):
            self.delete(entry.name)


def sizes_of(directory: Path) -> dict[str, int]:
    """The names of all files in a directory of this machine, at any depth, with their sizes in bytes.

    What a writer renames or deletes meanwhile may be missing, and what is in a directory that this process
    may not look into, as `lost+found`, is.
    """
    found = {}
    for parent, _, names in os.walk(directory, onerror=_unless_passed_over):
        for file in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):
                if file.is_file():
                    found[file] = file.stat().st_size
    return {file.relative_to(directory).as_posix(): found[file] for file in sorted(found)}


def _unless_passed_over(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | PermissionError):
        raise error


def _sync(path: Path) -> None:
    """Waits until a file's content, or a directory's entries, would survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
