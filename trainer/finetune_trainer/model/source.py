"""Brings models from a directory, object storage or the hub to a local directory."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.fields import HubRepository, scheme
from finetune_trainer.model.contents import INDEX, check_listed, check_shards
from finetune_trainer.model.files import LARGEST_POINTER, check_files, pointer
from finetune_trainer.storage.mounts import mounted_here
from finetune_trainer.storage.open import Storage, local_path, open_storage

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_DESCRIPTION_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
_WEIGHT_FILES = ["*.safetensors"]
_SAME_WEIGHTS = ["consolidated*.safetensors"]
"""A second copy of the weights, in Mistral's models, that transformers does not read."""


def hub_name(source: str) -> str | None:
    """The model's name on the hub, perhaps with `@revision`; None when `source` is a path."""
    if scheme(source) == "hf":
        return source.removeprefix("hf://")
    if scheme(source) or Path(source).expanduser().exists() or not _HUB_NAME.fullmatch(source):
        return None
    return source


def source_name(source: str | HubRepository) -> str:
    """What a checkpoint names as its base model: the name on the hub, or an absolute path."""
    if isinstance(source, HubRepository):
        return source.repo_id
    name = hub_name(source)
    if name is not None:
        return name.partition("@")[0]
    return (
        source if scheme(source) in ("s3", "gs", "pvc", "configmap") else str(local_path(source).absolute())
    )


def source_revision(source: str | HubRepository) -> str | None:
    """The revision on the hub that `source` names; None when it names none."""
    name = hub_name(source) if isinstance(source, str) else None
    return (name or "").partition("@")[2] or None


def fetch_model(source: str | HubRepository, where: str, *, weights: bool = True) -> Path:
    """Returns a local directory with a model or an adapter, downloaded if needed.

    Without `weights`, only its configuration and tokenizer are downloaded, and must be there. For a local
    path the hub is never asked. Raises FineTuneError (ModelNotFound, AccessDenied or StorageError) with a
    message that begins with `where`, a field such as `spec.model_id`, and for files that are damaged as
    `check_files` does. Weights that an index lists and are not there are told before they are downloaded, but
    for those of the hub.
    """
    path = _fetched(source, where, weights=weights)
    check_files(path, where)
    if isinstance(source, str) and hub_name(source) is None and scheme(source) not in ("s3", "gs"):
        check_shards(path, where, source_name(source))
    return path


def lacks_weights(source: str | HubRepository) -> bool:
    """Whether a directory that `fetch_model` finds, here or in object storage, holds no weights.

    The hub is not asked: what it has is known when it is downloaded.
    """
    if isinstance(source, HubRepository) or hub_name(source) is not None:
        return False
    files = (
        open_storage(source).files()
        if scheme(source) in ("s3", "gs")
        else [file.name for file in (mounted_here(source) or local_path(source)).iterdir()]
    )
    return not any(_fits(file, _WEIGHT_FILES) for file in files if "/" not in file)


def _fetched(source: str | HubRepository, where: str, *, weights: bool) -> Path:
    if isinstance(source, HubRepository):
        return _from_hub(source.repo_id, where, weights=weights)
    name = hub_name(source)
    if name is not None:
        return _from_hub(name, where, weights=weights)
    if scheme(source) in ("s3", "gs"):
        return _from_storage(source, where, weights=weights)
    on_mount = mounted_here(source)
    if on_mount is None and scheme(source) in ("pvc", "configmap"):
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND,
            f"{where}: {source} is mounted on a cluster only; give a path on this machine",
        )
    path = on_mount or local_path(source).absolute()
    if not path.is_dir():
        what = (
            "is a file, not a model's directory"
            if path.exists()
            else "is not there; give a model's directory or organisation/name on the hub"
        )
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, f"{where}: {source} {what}")
    for what, pattern in _needed(weights=weights):
        if not any(path.glob(pattern)):
            raise FineTuneError(
                FailureClass.MODEL_NOT_FOUND,
                f"{where}: {source} holds no {what} ({pattern}); give a model's directory",
            )
    return path


def _from_hub(name: str, where: str, *, weights: bool) -> Path:
    name, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=_patterns(weights=weights),
                ignore_patterns=_SAME_WEIGHTS,
            )
        )
    except GatedRepoError as error:
        asked = "ask for access to it on the hub, and set HF_TOKEN to a token that has it"
        raise FineTuneError(FailureClass.ACCESS_DENIED, f"{where}: {name} is gated; {asked}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        hint = "check the name, or set HF_TOKEN if it is private"
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND,
            f"{where}: {name} is neither a directory here nor a model on the hub; {hint}",
        ) from error
    except RevisionNotFoundError as error:
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND, f"{where}: {name} has no revision {revision} on the hub"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        answer = error if isinstance(error, HfHubHTTPError) else error.__cause__
        if isinstance(answer, HfHubHTTPError) and answer.response.status_code == HTTPStatus.FORBIDDEN:
            refused = f"{where}: the hub refuses {name}; HF_TOKEN must be one that may read it"
            raise FineTuneError(FailureClass.ACCESS_DENIED, refused) from error
        hint = "give a model's directory, or try again with a network"
        # Offline by choice, another attempt would fail too.
        failure_class = (
            FailureClass.MODEL_NOT_FOUND if constants.HF_HUB_OFFLINE else FailureClass.STORAGE_ERROR
        )
        raise FineTuneError(
            failure_class,
            f"{where}: {name} is not a directory here, and the hub cannot be reached ({_first_line(error)});"
            f" {hint}",
        ) from error


def _from_storage(source: str, where: str, *, weights: bool) -> Path:
    storage = open_storage(source)
    files = storage.files()
    for what, pattern in _needed(weights=weights):
        if not any(_fits(file, [pattern]) for file in files if "/" not in file):
            raise FineTuneError(
                FailureClass.MODEL_NOT_FOUND,
                f"{where}: {source} holds no {what} ({pattern}); give a model's directory",
            )
    _refuse_pointers(storage, files, where)
    if INDEX in files:
        with suppress(
            ValueError, AttributeError
        ):  # an index that is no JSON object is told of with all files
            index = storage.read_text(INDEX) or ""
            check_listed(index, files, f"{where}: {storage.path}", f"{where}: {source}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator" / "models"
    target = cache / hashlib.sha256(source.encode()).hexdigest()[:16]
    wanted = [
        file for file in files if _fits(file, _patterns(weights=weights)) and not _fits(file, _SAME_WEIGHTS)
    ]
    with _alone_in(target):
        storage.download(wanted, target)
    return target


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keeps the other processes of this machine out, so that what one has downloaded serves all."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_pointers(storage: Storage, files: dict[str, int], where: str) -> None:
    """Also those of weights that are not downloaded yet."""
    problems = []
    for file, size in files.items():
        if "/" not in file and size <= LARGEST_POINTER and _fits(file, _patterns(weights=True)):
            problem = pointer((storage.read_text(file) or "").encode())
            if problem is not None:
                problems.append(f"{where}: {storage.path}/{file} {problem}")
    if problems:
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, *problems)


def _needed(*, weights: bool) -> list[tuple[str, str]]:
    """What a model's directory must hold, in words and as a pattern."""
    return [("configuration", "*config.json")] + ([("weights", "*.safetensors")] if weights else [])


def _patterns(*, weights: bool) -> list[str]:
    return _DESCRIPTION_FILES + (_WEIGHT_FILES if weights else [])


def _fits(file: str, patterns: list[str]) -> bool:
    """Whether the whole name, with its directories, matches a pattern, as on the hub."""
    return any(fnmatchcase(file, pattern) for pattern in patterns)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
