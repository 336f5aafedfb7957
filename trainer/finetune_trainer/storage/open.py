"""Opens the places that inputs are read from and runs are written to.

They are local paths, `s3://` and `gs://`, and for inputs also `hf://`; in a cluster's pods also
`pvc://CLAIM/path` and, for inputs, `configmap://NAME/KEY`, where they are mounted.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Protocol, cast
from urllib.parse import unquote

from httpx import TransportError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.storage.failure import explained, failure
from finetune_trainer.storage.local import LocalStorage
from finetune_trainer.storage.mounts import mounted_here
from finetune_trainer.storage.objects import ObjectStorage, connect

_HUB_FILE = re.compile(r"hf://datasets/(?P<repo>[^/@:]+/[^/@:]+)(@(?P<revision>[^/]+))?/(?P<file>.+)")


class Storage(Protocol):
    """A directory on this machine or in an object store. It need not exist.

    Names are relative to it, with `/` between their parts. All methods raise FineTuneError (StorageError or
    AccessDenied), with the path and the system's reason, when storage fails.
    """

    @property
    def path(self) -> str:
        """The path that users see. It is absolute, and `open_storage` takes it."""

    @property
    def here(self) -> Path | None:
        """The directory on this machine; None in an object store."""

    def child(self, name: str) -> Storage:
        """The directory `name` in this one."""

    def files(self) -> dict[str, int]:
        """The names of all files, at any depth, with their sizes in bytes."""

    def read_text(self, name: str) -> str | None:
        """A file's text, with all that was appended so far; None when there is no such file."""

    def write_text(self, name: str, text: str) -> None:
        """Replaces a file. Readers see either the old text or the new one, also after a crash."""

    def append_text(self, name: str, text: str) -> None:
        """Adds to the end of a file.

        Locally it is stored at once, in an object store within a minute or at `flush`.
        """

    def flush(self) -> None:
        """Stores all that was appended so far."""

    @property
    def trouble(self) -> str | None:
        """For people, what storing an appended text has met, and how it stands; None for nothing."""

    def delete(self, name: str) -> None:
        """Deletes a file, or a directory with all its content, if it exists."""

    def download(self, names: Iterable[str], directory: Path) -> None:
        """Copies files to a directory on this machine, over those of the same names that are different."""

    def local_copy(self) -> AbstractContextManager[Path]:
        """A directory on this machine with all files, for the `with` block. They must not be changed."""

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """A new empty directory on this machine, whose files `publish` then makes the directory `name`.

        It is deleted when the `with` block ends. An error of the system when writing in the block is
        raised as FineTuneError.
        """

    def helping(self, name: str) -> AbstractContextManager[Path]:
        """Where another process than that in `staging` puts its files: there too, or in one of its own."""

    def hand_in(self, staging: Path, name: str) -> dict[str, int]:
        """Brings the files of a directory of `helping` to where the writer's will be.

        Returns the names and sizes of all files that are there for this process. Called before the writer
        publishes.
        """

    def publish(self, staging: Path, name: str, *, last: str) -> None:
        """Makes the files in `staging` the directory `name`, which must not exist.

        In storage where files appear one by one, the file `last` comes last.
        """

    def clear_partial(self) -> None:
        """Deletes what a writer that died left unfinished. There must be no other writer."""


def open_storage(path: str) -> Storage:
    """Opens the directory at a local path, `file://`, `s3://`, `gs://` or, if the claim is mounted, `pvc://`.

    Raises FineTuneError: InvalidSpec when the path is none of these, StorageError when a bucket's region
    cannot be found.
    """
    if is_local(path):
        return LocalStorage(local_path(path).absolute())
    directory = mounted_here(path)
    if directory is not None:
        return LocalStorage(directory, shown=path.rstrip("/"))
    with explained(path):
        filesystem, key = connect(path)
    return ObjectStorage(path, filesystem, key.rstrip("/"))


@contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """Opens an input file for reading bytes.

    `path` is a local path, `file://`, `s3://`, `gs://`, `hf://datasets/OWNER/NAME[@REVISION]/FILE`, or, where
    they are mounted, `pvc://` and `configmap://`.

    Raises FineTuneError that names the path: InvalidData when there is no such file, AccessDenied,
    InvalidSpec when the path itself is wrong, and StorageError for all else, also when reading fails
    later in the `with` block.
    """
    with reading(path), _open(path) as stream:
        yield stream


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Raises what reading an input meets as `open_input` does."""
    try:
        yield
    except LocalEntryNotFoundError as error:
        answer = error.__cause__
        if isinstance(answer, HfHubHTTPError) and answer.response.status_code == HTTPStatus.FORBIDDEN:
            raise FineTuneError(
                FailureClass.ACCESS_DENIED,
                f"{path}: the hub refuses it; HF_TOKEN must be one that may read it",
            ) from error
        raise FineTuneError(
            FailureClass.STORAGE_ERROR, f"{path}: cannot reach the hub, and the file is not in its cache here"
        ) from error
    except GatedRepoError as error:
        raise FineTuneError(
            FailureClass.ACCESS_DENIED,
            f"{path}: access must be granted on the hub first, and HF_TOKEN be set",
        ) from error
    except (FileNotFoundError, NotADirectoryError, EntryNotFoundError, RevisionNotFoundError) as error:
        raise FineTuneError(
            FailureClass.INVALID_DATA, f"{path}: no such file; give the path of a file that exists"
        ) from error
    except RepositoryNotFoundError as error:
        raise FineTuneError(
            FailureClass.INVALID_DATA, f"{path}: no such data set; if it is private, HF_TOKEN must be set"
        ) from error
    except IsADirectoryError as error:
        raise FineTuneError(
            FailureClass.INVALID_DATA, f"{path}: is a directory; give the path of a file"
        ) from error
    except (OfflineModeIsEnabled, TransportError) as error:
        raise FineTuneError(
            FailureClass.STORAGE_ERROR, f"{path}: cannot reach the hub, and the file is not in its cache here"
        ) from error
    except OSError as error:
        raise failure(path, error) from error


def _open(path: str) -> BinaryIO:
    if is_local(path):
        return local_path(path).open("rb")
    file = mounted_here(path)
    if file is not None:
        return file.open("rb")
    if path.startswith("hf://"):
        return _from_hub(path).open("rb")
    filesystem, key = connect(path)
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, filesystem.open_input_file(key))))


def _from_hub(path: str) -> Path:
    """The local path of a file in the hub's cache, downloaded if needed."""
    parts = _HUB_FILE.fullmatch(path)
    if parts is None:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"{path}: must be hf://datasets/OWNER/NAME[:[CONFIG/]SPLIT] or"
            " hf://datasets/OWNER/NAME[@REVISION]/FILE",
        )
    revision = unquote(parts["revision"]) if parts["revision"] else None
    try:
        return Path(hf_hub_download(parts["repo"], parts["file"], repo_type="dataset", revision=revision))
    except ValueError as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: {error}") from error


def is_local(path: str) -> bool:
    """Whether it is a plain path or a `file://` URL."""
    return "://" not in path or path.startswith("file://")


def local_path(path: str) -> Path:
    """A plain path or a `file://` URL, whose `%` escapes are read, as a path of this machine.

    Raises FineTuneError (InvalidSpec) when the URL names another machine.
    """
    if not path.startswith("file://"):
        return Path(path).expanduser()
    host, _, inside = path.removeprefix("file://").partition("/")
    if host not in ("", "localhost"):
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: must be file:///PATH, with three slashes")
    return Path("/", unquote(inside))


def size_of(stream: BinaryIO) -> int:
    """The bytes of a file that is open at its beginning; 0 for a pipe, whose end nobody knows."""
    if not stream.seekable():
        return 0
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return size
