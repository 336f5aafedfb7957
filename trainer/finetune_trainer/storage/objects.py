"""Storage in S3 or GCS. There a file is either complete or absent, and nothing can be renamed.

S3 is configured as for the AWS command: credentials from the environment, a profile or the machine; the
endpoint from `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`; the region from `AWS_REGION` or
`AWS_DEFAULT_REGION`, else by asking AWS. GCS uses the application default credentials, and none for
`gs://anonymous@bucket/…`. Options at the end of a path override all of that:
`?endpoint_override=…&scheme=…`, for S3 `region=…`, and for GCS `retry_limit_seconds=…`.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from urllib.parse import urlsplit

from pyarrow import fs

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.paths import child
from finetune_trainer.storage.failure import explained, explained_writing
from finetune_trainer.storage.local import sizes_of

GCS_RETRY_SECONDS = 60
"""For how long a failed request to GCS is repeated. Its client's default is 15 minutes; S3's client gives up
after three attempts."""
CHUNK_BYTES = 32 * 2**20
"""How much of a file one request transfers."""
FLUSH_SECONDS = 60
"""The time between two uploads of a file that is appended to."""

_log = logging.getLogger(__name__)


def connect(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of an `s3://` or `gs://` path, and the path inside it (`bucket/key`).

    Raises FineTuneError (InvalidSpec) when the path cannot be used, OSError when the region of a bucket
    cannot be found.
    """
    parts = urlsplit(path)
    if parts.password:
        shown = f"{parts.scheme}://{parts.hostname}{parts.path}"
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"{shown}: credentials do not belong in a path; use the environment"
        )
    if parts.scheme not in ("s3", "gs"):
        hint = " (it is mounted on a cluster only)" if parts.scheme in ("pvc", "configmap") else ""
        what = f"{parts.scheme}:// cannot be used here{hint}; give a plain path, s3:// or gs://"
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: {what}")
    if not parts.netloc:
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"{path}: has no bucket; write {parts.scheme}://BUCKET/PATH"
        )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    default = {"s3": f"region={region}" if region else "", "gs": f"retry_limit_seconds={GCS_RETRY_SECONDS}"}[
        parts.scheme
    ]
    given = default.partition("=")[0] + "=" in parts.query
    options = [parts.query] if given else [parts.query, default]
    try:
        filesystem, key = fs.FileSystem.from_uri(
            parts._replace(query="&".join(filter(None, options))).geturl()
        )
    except ValueError as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: {error}") from error
    return filesystem, key


class ObjectStorage:
    """A `Storage` in an object store: the objects whose keys begin with a prefix."""

    here = None

    def __init__(self, path: str, filesystem: fs.FileSystem, root: str) -> None:
        self._path = path
        self._filesystem = filesystem
        self._root = root
        self._appended: dict[str, list[str]] = {}
        self._before: dict[str, str] = {}
        self._waiting: set[str] = set()
        self._trouble: str | None = None
        self._flushed_at = time.monotonic()
        # Lines are added while a checkpoint, in another thread, has them all stored.
        self._flushing = RLock()

    @property
    def path(self) -> str:
        """The path that users see, with its options."""
        return self._path

    def child(self, name: str) -> ObjectStorage:
        """The objects below `name`."""
        return ObjectStorage(child(self._path, name), self._filesystem, self._key(name))

    def files(self) -> dict[str, int]:
        """The names of all files with their sizes in bytes, without objects that only mark a directory."""
        with explained(self._path):
            entries = self._filesystem.get_file_info(
                fs.FileSelector(self._root, allow_not_found=True, recursive=True)
            )
        return {
            entry.path.removeprefix(f"{self._root}/"): entry.size
            for entry in entries
            if entry.type == fs.FileType.File
        }

    def read_text(self, name: str) -> str | None:
        """A file's text, or None; from memory if it was appended to."""
        with self._flushing:
            return self._whole(name) if name in self._appended else self._get(name)

    def write_text(self, name: str, text: str) -> None:
        """Replaces the object."""
        self._appended.pop(name, None)
        self._before.pop(name, None)
        self._waiting.discard(name)
        self._put(name, text)

    def append_text(self, name: str, text: str) -> None:
        """Adds to a text in memory, which replaces the object once a minute.

        A failure is logged, and the text is uploaded a minute later.
        """
        with self._flushing:
            self._appended.setdefault(name, []).append(text)
            self._waiting.add(name)
            if time.monotonic() - self._flushed_at < FLUSH_SECONDS:
                return
        try:
            self.flush()
        except FineTuneError as error:
            _log.warning("%s; it is tried again in %d s", error, FLUSH_SECONDS)

    def flush(self) -> None:
        """Uploads all texts that were appended to since their last upload."""
        with self._flushing:
            self._flushed_at = time.monotonic()
            for name in sorted(self._waiting):
                try:
                    self._put(name, self._whole(name))
                except FineTuneError as error:
                    self._trouble = f"at {datetime.now(UTC):%H:%M} UTC: {error}"
                    raise
                self._waiting.discard(name)

    @property
    def trouble(self) -> str | None:
        """When an upload of such a text failed last, and whether all of it is there now."""
        if self._trouble is None:
            return None
        now = "lacks its newest lines" if self._waiting else "had to wait for its lines, and has them all now"
        return f"{now}; an upload failed {self._trouble}"

    def delete(self, name: str) -> None:
        """Deletes an object, or all objects below a prefix."""
        key = self._key(name)
        with explained(child(self._path, name)):
            kind = self._filesystem.get_file_info(key).type
            if kind == fs.FileType.File:
                self._filesystem.delete_file(key)
            elif kind == fs.FileType.Directory:
                # On GCS, once all is deleted, the directory itself is looked for in vain.
                with suppress(FileNotFoundError):
                    self._filesystem.delete_dir(key)

    def download(self, names: Iterable[str], directory: Path) -> None:
        """Downloads objects to files, but those that are there as they are, by size and time of change.

        Each file appears only when it is complete, so several processes may download to one
        directory at once.
        """
        for name in names:
            target = directory / name
            with explained(child(self._path, name)):
                entry = self._filesystem.get_file_info(self._key(name))
            if _is_there(target, entry):
                continue
            partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
            with explained(target):
                target.parent.mkdir(parents=True, exist_ok=True)
            with explained(child(self._path, name)):
                try:
                    fs.copy_files(
                        self._key(name),
                        str(partial),
                        source_filesystem=self._filesystem,
                        destination_filesystem=fs.LocalFileSystem(),
                        chunk_size=CHUNK_BYTES,
                    )
                    if entry.mtime_ns is not None:
                        os.utime(partial, ns=(entry.mtime_ns, entry.mtime_ns))
                    partial.replace(target)
                finally:
                    partial.unlink(missing_ok=True)

    @contextmanager
    def local_copy(self) -> Iterator[Path]:
        """A temporary directory with all objects."""
        with tempfile.TemporaryDirectory(prefix="finetune-") as directory:
            self.download(self.files(), Path(directory))
            yield Path(directory)

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A temporary directory."""
        with (
            tempfile.TemporaryDirectory(prefix=f"finetune-{name}-") as directory,
            explained_writing(directory),
        ):
            yield Path(directory)

    def helping(self, name: str) -> AbstractContextManager[Path]:
        """A temporary directory of this process."""
        return self.staging(name)

    def hand_in(self, staging: Path, name: str) -> dict[str, int]:
        """Uploads the files."""
        files = sizes_of(staging)
        self._upload(staging, name, files)
        return files

    def publish(self, staging: Path, name: str, *, last: str) -> None:
        """Uploads the files one by one, `last` at the end."""
        self._upload(staging, name, sorted(sizes_of(staging), key=lambda file: (file == last, file)))

    def _upload(self, staging: Path, name: str, files: Iterable[str]) -> None:
        for file in files:
            target = f"{name}/{file}"
            with explained(child(self._path, target)):
                fs.copy_files(
                    str(staging / file),
                    self._key(target),
                    source_filesystem=fs.LocalFileSystem(),
                    destination_filesystem=self._filesystem,
                    chunk_size=CHUNK_BYTES,
                )

    def clear_partial(self) -> None:
        """Does nothing: an upload that was interrupted leaves no object."""

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _whole(self, name: str) -> str:
        """A file that was appended to. What it held before is read once, with the first upload."""
        if name not in self._before:
            self._before[name] = self._get(name) or ""
        return self._before[name] + "".join(self._appended[name])

    def _get(self, name: str) -> str | None:
        with explained(child(self._path, name)):
            try:
                with self._filesystem.open_input_file(self._key(name)) as stream:
                    return stream.read().decode("utf-8", errors="replace")
            except FileNotFoundError:
                return None

    def _put(self, name: str, text: str) -> None:
        with (
            explained(child(self._path, name)),
            # By default a name that ends in .gz has what is written compressed, and nothing reads it so.
            self._filesystem.open_output_stream(self._key(name), compression=None) as stream,
        ):
            stream.write(text.encode("utf-8"))


def _is_there(file: Path, entry: fs.FileInfo) -> bool:
    """Whether a file is what `download` made of this object, and the object has not changed since."""
    if entry.mtime_ns is None or not file.is_file():
        return False
    found = file.stat()
    return found.st_size == entry.size and found.st_mtime_ns == entry.mtime_ns
