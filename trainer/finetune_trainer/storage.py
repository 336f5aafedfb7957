"""Where inputs are read from and runs are written to: local paths, `s3://`, `gs://`, and for inputs `hf://` as well.

S3 is found as the AWS command finds it: credentials from the environment, a profile or the machine, the endpoint from
`AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, the region from `AWS_REGION` or `AWS_DEFAULT_REGION`, and only without any of these by
asking AWS. `?endpoint_override=…&region=…` at a path's end goes before all of them. GCS takes the application default
credentials; `gs://anonymous@bucket/…` takes none.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast
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
from pyarrow import fs

from finetune_api.failure import FailureClass, FineTuneError

GCS_RETRY_SECONDS = 60
"""How long a request to GCS is tried again; its client would go on for a quarter of an hour. S3's gives up after three tries."""

_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH|EXPIRED_TOKEN"
    r"|PERMISSION_DENIED|UNAUTHENTICATED|HTTP status 40[13]"
)
"""How the object stores' errors, which carry no errno, say that the credentials do not suffice."""

_HUB_FILE = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)")


@contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """Opens a file that a spec names, for reading bytes: a local path, `file://`, `s3://`, `gs://` or `hf://datasets/OWNER/NAME[@REVISION]/FILE`.

    Raises FineTuneError naming the path: InvalidData when there is no such file, AccessDenied, InvalidSpec when the path itself is
    wrong, StorageError for the rest, also when reading breaks off inside the `with` block.
    """
    try:
        with _open(path) as stream:
            yield stream
    except LocalEntryNotFoundError as error:
        raise FineTuneError(FailureClass.STORAGE_ERROR, f"{path}: cannot reach the hub, and the file is not in its cache here") from error
    except GatedRepoError as error:
        raise FineTuneError(FailureClass.ACCESS_DENIED, f"{path}: access must be granted on the hub first, and HF_TOKEN be set") from error
    except (FileNotFoundError, NotADirectoryError, EntryNotFoundError, RevisionNotFoundError) as error:
        raise FineTuneError(FailureClass.INVALID_DATA, f"{path}: no such file; give the path of a file that exists") from error
    except RepositoryNotFoundError as error:
        raise FineTuneError(FailureClass.INVALID_DATA, f"{path}: no such data set; if it is private, HF_TOKEN must be set") from error
    except IsADirectoryError as error:
        raise FineTuneError(FailureClass.INVALID_DATA, f"{path}: is a directory; give the path of a file") from error
    except OSError as error:
        raise _failure(path, error) from error


def _open(path: str) -> BinaryIO:
    scheme = urlsplit(path).scheme if "://" in path else ""
    if scheme == "hf":
        return _from_hub(path).open("rb")
    if scheme in ("", "file"):
        return _local(path).open("rb")
    filesystem, key = _object_store(path)
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, filesystem.open_input_file(key))))


def _from_hub(path: str) -> Path:
    """Downloads a file of the hub into its cache, or finds it there, and returns where it is."""
    parts = _HUB_FILE.fullmatch(path)
    if parts is None:
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"{path}: must be hf://datasets/OWNER/NAME/FILE or hf://datasets/OWNER/NAME@REVISION/FILE"
        )
    revision = unquote(parts["revision"]) if parts["revision"] else None
    try:
        return Path(hf_hub_download(parts["repo"], parts["file"], repo_type="dataset", revision=revision))
    except ValueError as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: {error}") from error


def _local(path: str) -> Path:
    return Path(unquote(urlsplit(path).path)) if path.startswith("file://") else Path(path)


def _object_store(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of an `s3://` or `gs://` path, and the path inside it (`bucket/key`)."""
    parts = urlsplit(path)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if parts.scheme == "s3":
        default = f"region={region}" if region and "region=" not in parts.query else ""
    elif parts.scheme == "gs":
        default = "" if "retry_limit_seconds=" in parts.query else f"retry_limit_seconds={GCS_RETRY_SECONDS}"
    else:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: {parts.scheme}:// cannot be read here; use a plain path, s3:// or gs://")
    query = "&".join(part for part in (parts.query, default) if part)
    try:
        filesystem, key = fs.FileSystem.from_uri(parts._replace(query=query).geturl())
    except ValueError as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: {error}") from error
    return filesystem, key


def _failure(path: str, error: OSError) -> FineTuneError:
    """What the user is told about an error of the operating system, an object store or the hub."""
    said = " ".join((error.strerror or str(error)).split())
    where = error.filename if isinstance(error.filename, str) else path
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    refused = isinstance(error, PermissionError) or status in (401, 403) or _REFUSED.search(said) is not None
    if refused:
        return FineTuneError(FailureClass.ACCESS_DENIED, f"{where}: {said}; it must exist, and these credentials must be allowed to use it")
    return FineTuneError(FailureClass.STORAGE_ERROR, f"{where}: {said}")
