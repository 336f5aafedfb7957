"""Turns errors of storage into FineTuneErrors, which name the path and the system's reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

from finetune_api.failure import FailureClass, FineTuneError

_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|MISSING_AUTHENTICATION_TOKEN"
    r"|SIGNATURE_DOES_NOT_MATCH|ExpiredToken|PERMISSION_DENIED|UNAUTHENTICATED"
)
"""What errors of object stores, which have no errno, contain when the credentials do not suffice."""

_RUST_ERROR = re.compile(r"([^: ][^:]*) \(os error \d+\)")
"""How safetensors and tokenizers, which are written in Rust, quote an error of the system."""


@contextmanager
def explained(path: str | PathLike[str]) -> Iterator[None]:
    """Turns an OSError in the block into a FineTuneError that names the error's path, or else `path`."""
    try:
        yield
    except OSError as error:
        raise failure(path, error) from error


@contextmanager
def explained_writing(path: str | PathLike[str]) -> Iterator[None]:
    """As `explained`, for blocks in which libraries write files and raise exceptions of their own.

    safetensors and tokenizers quote the system's error, the latter in a plain Exception. torch.save, given an
    open file, raises RuntimeError while it handles the OSError of that file.
    """
    try:
        yield
    except OSError as error:
        raise failure(path, error) from error
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):
            raise
        raise failure(path, error.__context__) from error
    except Exception as error:
        quoted = _RUST_ERROR.search(str(error))
        if quoted is None:
            raise
        raise FineTuneError(FailureClass.STORAGE_ERROR, f"{path}: {quoted[1]}") from error


def failure(path: str | PathLike[str], error: OSError) -> FineTuneError:
    """Turns an OSError into AccessDenied when the credentials do not suffice, else into StorageError."""
    said = " ".join((error.strerror or str(error)).split())
    where = error.filename if isinstance(error.filename, str) else path
    if isinstance(error, PermissionError) or _REFUSED.search(said):
        return FineTuneError(
            FailureClass.ACCESS_DENIED,
            f"{where}: {said}; check that it exists and that this process may use it",
        )
    return FineTuneError(FailureClass.STORAGE_ERROR, f"{where}: {said}")
