"""Where inputs are read from and runs are written to: local paths, `s3://` and `gs://`, and for inputs `hf://` as well.

In a cluster's pods so are `pvc://CLAIM/path` and `configmap://NAME/KEY`, where they are mounted.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Protocol, cast
from urllib.parse import unquote, urlsplit

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.storage.failure import explained, failure
from finetune_trainer.storage.local import LocalStorage
from finetune_trainer.storage.mounts import mounted_here
from finetune_trainer.storage.objects import ObjectStorage, connect

_HUB_FILE = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)")


class Storage(Protocol):
    """A directory on this machine or in an object store. It need not exist.

    Names are relative to it, with `/` between their parts. All methods raise FineTuneError (StorageError or
    AccessDenied) with the path and the system's reason when storage does not do as it should.
    """

    @property
    def path(self) -> str:
        """As users see it; absolute, and good for `open_storage` again."""

    def child(self, name: str) -> Storage:
        """A directory in it."""

    def files(self) -> dict[str, int]:
        """The names of all files, at any depth, with their sizes in bytes."""

    def read_text(self, name: str) -> str | None:
        """A file's text, with all that was appended so far; None when there is no such file."""

    def write_text(self, name: str, text: str) -> None:
        """Replaces a file. Readers see the old text or the new one, whatever happens meanwhile."""

    def append_text(self, name: str, text: str) -> None:
        """Adds to the end of a file: at once on this machine; in an object store within a minute or at `flush`."""

    def flush(self) -> None:
        """Stores all that was appended so far."""

    def delete(self, name: str) -> None:
        """Deletes a file, or a directory with all that is in it, if it is there."""

    def download(self, names: Iterable[str], directory: Path) -> None:
        """Copies files to a directory on this machine, over those of the same names."""

    def local_copy(self) -> AbstractContextManager[Path]:
        """A directory on this machine with all files, to be left as they are, until the `with` block ends."""

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """A new empty directory on this machine in which to write what `publish` then makes the directory `name`.

        It goes when the `with` block ends. What the system does not let be written in the block raises
        FineTuneError.
        """

    def publish(self, staging: Path, name: str, *, last: str) -> None:
        """Makes the staged files the directory `name`, which must not exist.

        Where files appear one by one, `last` does last.
        """

    def clear_partial(self) -> None:
        """Removes what a writer that died left unfinished. There must be no other writer."""


def open_storage(path: str) -> Storage:
    """The directory at a local path, `file://`, `s3://`, `gs://` or, where the claim is mounted, `pvc://`.

    Raises FineTuneError: InvalidSpec when the path is not one of these, StorageError when a bucket's region
    cannot be found.
    """
    if _is_local(path):
        return LocalStorage(_local(path).absolute())
    directory = mounted_here(path)
    if directory is not None:
        return LocalStorage(directory, shown=path.rstrip("/"))
    with explained(path):
        filesystem, key = connect(path)
    return ObjectStorage(path, filesystem, key.rstrip("/"))


@contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """Opens a file that a spec names, for reading bytes.

    It is a local path, `file://`, `s3://`, `gs://`, `hf://datasets/OWNER/NAME[@REVISION]/FILE`, or where they
    are mounted `pvc://` and `configmap://`.

    Raises FineTuneError naming the path: InvalidData when there is no such file, AccessDenied, InvalidSpec
    when the path itself is wrong, StorageError for the rest, also when reading breaks off inside the `with`
    block.
    """
    try:
        with _open(path) as stream:
            yield stream
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
    except OSError as error:
        raise failure(path, error) from error


def _open(path: str) -> BinaryIO:
    if _is_local(path):
        return _local(path).open("rb")
    file = mounted_here(path)
    if file is not None:
        return file.open("rb")
    if path.startswith("hf://"):
        return _from_hub(path).open("rb")
    filesystem, key = connect(path)
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, filesystem.open_input_file(key))))


def _from_hub(path: str) -> Path:
    """Where the hub's cache holds a file, downloaded if need be."""
    parts = _HUB_FILE.fullmatch(path)
    if parts is None:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"{path}: must be hf://datasets/OWNER/NAME/FILE or hf://datasets/OWNER/NAME@REVISION/FILE",
        )
    revision = unquote(parts["revision"]) if parts["revision"] else None
    try:
        return Path(hf_hub_download(parts["repo"], parts["file"], repo_type="dataset", revision=revision))
    except ValueError as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: {error}") from error


def _is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")


def _local(path: str) -> Path:
    return Path(unquote(urlsplit(path).path)) if path.startswith("file://") else Path(path).expanduser()
