"""The files of rows that a path stands for: one, those of a directory or a pattern, or a data set's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

from httpx import TransportError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from pyarrow import fs

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.paths import child
from finetune_trainer.storage.local import sizes_of
from finetune_trainer.storage.mounts import mounted_here
from finetune_trainer.storage.objects import connect
from finetune_trainer.storage.open import is_local, local_path, open_input, reading, size_of

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
COMPRESSED = (".gz", ".zst")
_READ = (*ENDINGS, *(f"{ending}{more}" for ending in ENDINGS[:-1] for more in COMPRESSED))
_ANY = re.compile(r"[*?\[]")
_ANY_OBJECT = re.compile(r"[*\[]")  # `?` begins the options of a bucket's path
_DATA_SET = re.compile(r"hf://datasets/(?P<repo>[^/@:]+/[^/@:]+)(:((?P<config>[^/:]+)/)?(?P<split>[^/:]+))?")
_CONVERTED = "refs/convert/parquet"
"""Where the hub keeps what it has made of a data set: `CONFIG/SPLIT/0000.parquet` and so on.

Source: https://huggingface.co/docs/dataset-viewer/parquet
"""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files of rows at a path, in the order of their names."""

    path: str
    """As it was given."""
    files: tuple[str, ...]
    """Paths that `open_input` takes."""
    names: tuple[str, ...] | None
    """What each is called there; None where the path is that of the one file."""


def inputs_at(path: str) -> Inputs:
    """The files at a path: a file, a directory of files, a pattern such as `rows/*.parquet`, or a data set.

    Of a directory those directly in it are taken whose names end as files of rows do (ENDINGS, also
    compressed) and do not begin with `.` or `_`. A data set is `hf://datasets/OWNER/NAME[:[CONFIG/]SPLIT]`,
    and its files are the Parquet that the hub has made of it.

    Raises FineTuneError as `open_input`; InvalidData also where there is no such file, or it cannot be told
    which configuration or split is meant.
    """
    local = local_path(path) if is_local(path) else mounted_here(path)
    if local is not None:
        return _local(path, local)
    if path.startswith("hf://"):
        return _of_data_set(path)
    return _objects(path)


def input_size(path: str) -> int:
    """The bytes of all files at a path that `inputs_at` takes; raises as that does."""
    return size_of_inputs(inputs_at(path))


def size_of_inputs(inputs: Inputs) -> int:
    """The bytes of all these files; raises as `open_input`."""
    return sum(map(_size, inputs.files))


def digest(path: str) -> str:
    """The SHA-256 of what is at a path that `inputs_at` takes, as hexadecimal digits: see `digest_of`."""
    inputs = inputs_at(path)
    return digest_of(inputs, [_sha256(file) for file in inputs.files])


def digest_of(inputs: Inputs, contents: Sequence[str]) -> str:
    """One digest of all files, given the SHA-256 of each: of their names and contents in their order.

    That of a single file is that of its content.
    """
    if inputs.names is None:
        return contents[0]
    return hashlib.sha256(json.dumps([*zip(inputs.names, contents, strict=True)]).encode()).hexdigest()


def _size(file: str) -> int:
    with open_input(file) as stream:
        return size_of(stream)


def _sha256(file: str) -> str:
    content = hashlib.sha256()
    with open_input(file) as stream:
        while chunk := stream.read(2**20):
            content.update(chunk)
    return content.hexdigest()


def _local(path: str, local: Path) -> Inputs:
    with reading(path):
        if local.is_dir():
            names = [file.name for file in local.iterdir() if file.is_file()]
            return _several(path, _wanted(path, names), lambda name: child(path, name))
        if not _ANY.search(path) or local.exists():
            return Inputs(path, (path,), None)
        # From the part on that has a sign of a pattern; what is before it may be `file://` or `pvc://`.
        root, pattern = _split(path, _ANY)
        start = local_path(root) if is_local(root) else mounted_here(root)
        assert start is not None
        found = [
            file.relative_to(start).as_posix()
            for file in start.glob(pattern)
            if file.is_file() and not file.name.startswith(".")
        ]
    return _several(path, _found(path, found), lambda name: child(root, name) if root != "." else name)


def _objects(path: str) -> Inputs:
    bare = path.partition("?")[0]
    if _ANY_OBJECT.search(bare):
        root, pattern = _split(bare, _ANY_OBJECT)
        root += path[len(bare) :]
        if "**" in pattern:
            raise FineTuneError(
                FailureClass.INVALID_SPEC,
                f"{path}: ** is understood in plain paths only; write the levels out",
            )
        found = [name for name in _object_names(root, recursive="/" in pattern) if _matches(name, pattern)]
        return _several(path, _found(path, found), lambda name: child(root, name))
    with reading(path):
        filesystem, key = connect(path)
        kind = filesystem.get_file_info(key.rstrip("/")).type
    if kind != fs.FileType.Directory:
        return Inputs(path, (path,), None)
    names = _wanted(path, _object_names(path, recursive=False))
    return _several(path, names, lambda name: child(path, name))


def _object_names(root: str, *, recursive: bool) -> list[str]:
    with reading(root):
        filesystem, key = connect(root)
        key = key.rstrip("/")
        entries = filesystem.get_file_info(fs.FileSelector(key, allow_not_found=True, recursive=recursive))
    return [entry.path.removeprefix(f"{key}/") for entry in entries if entry.type == fs.FileType.File]


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("/"), pattern.split("/")
    return (
        not parts[-1].startswith(".")
        and len(parts) == len(patterns)
        and all(map(fnmatchcase, parts, patterns))
    )


def _split(path: str, signs: re.Pattern[str]) -> tuple[str, str]:
    """The directory before the first part with a sign of a pattern, and the pattern from there on."""
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if signs.search(part))
    root = "/".join(parts[:first])
    return root or ("/" if path.startswith("/") else "."), "/".join(parts[first:])


def _several(path: str, names: Sequence[str], whole: Callable[[str], str]) -> Inputs:
    ordered = tuple(sorted(names))
    return Inputs(path, tuple(map(whole, ordered)), ordered)


def _wanted(path: str, names: Sequence[str]) -> list[str]:
    wanted = [name for name in names if name.lower().endswith(_READ) and not name.startswith((".", "_"))]
    if not wanted:
        raise FineTuneError(
            FailureClass.INVALID_DATA,
            f"{path}: is a directory without files of rows, whose names end with {', '.join(ENDINGS)}"
            " (.gz, .zst); give one with such files, or the path of a file",
        )
    return wanted


def _found(path: str, names: Sequence[str]) -> Sequence[str]:
    if not names:
        raise FineTuneError(
            FailureClass.INVALID_DATA, f"{path}: no such file; give a pattern that files have"
        )
    return names


def _of_data_set(path: str) -> Inputs:
    parts = _DATA_SET.fullmatch(path)
    if parts is None:
        return Inputs(path, (path,), None)  # a file of one, or nothing that is known
    repo = parts["repo"]
    splits: dict[tuple[str, str], list[str]] = {}
    for name in sorted(_converted(path, repo)):
        levels = name.split("/")
        if len(levels) == 3 and name.endswith(".parquet"):
            splits.setdefault((levels[0], levels[1]), []).append(name)
    if not splits:
        raise FineTuneError(
            FailureClass.INVALID_DATA,
            f"{path}: the hub has made no Parquet of it; give a file of it, hf://datasets/{repo}/FILE",
        )
    names = splits[_chosen(path, list(splits), parts["config"], parts["split"])]
    revision = quote(_CONVERTED, safe="")
    return _several(path, names, lambda name: f"hf://datasets/{repo}@{revision}/{name}")


def _chosen(
    path: str, splits: Sequence[tuple[str, str]], config: str | None, split: str | None
) -> tuple[str, str]:
    """The configuration and the split that are meant."""
    configs = list(dict.fromkeys(each for each, _ in splits))
    base = path.removeprefix("hf://datasets/").partition(":")[0]
    if config is None:
        config = configs[0] if len(configs) == 1 else "default"
    if config not in configs:
        shown = ", ".join(configs[:8]) + (", ..." if len(configs) > 8 else "")
        raise FineTuneError(
            FailureClass.INVALID_DATA,
            f"{path}: has the configurations {shown}; give one, as hf://datasets/{base}:{configs[0]}/train",
        )
    of_config = [each for name, each in splits if name == config]
    if split is None:
        split = of_config[0] if len(of_config) == 1 else "train"
    if split not in of_config:
        partial = f"partial-{split}" in of_config
        what = (
            f"the hub has made Parquet of the first part of {split} only, which is partial-{split}"
            if partial
            else f"has the splits {', '.join(of_config)}"
        )
        named = f"partial-{split}" if partial else of_config[0]
        raise FineTuneError(
            FailureClass.INVALID_DATA, f"{path}: {what}; give one, as hf://datasets/{base}:{named}"
        )
    return config, split


def _converted(path: str, repo: str) -> list[str]:
    """The files that the hub has made of a data set; without a network those that are in the cache here."""
    try:
        with reading(path):
            return HfApi().list_repo_files(repo, repo_type="dataset", revision=_CONVERTED)
    except HFValidationError as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{path}: {error}") from error
    except FineTuneError as error:
        if isinstance(error.__cause__, RevisionNotFoundError):
            return []
        if not isinstance(error.__cause__, OfflineModeIsEnabled | TransportError):
            raise
        try:
            kept = Path(
                snapshot_download(repo, repo_type="dataset", revision=_CONVERTED, local_files_only=True)
            )
        except (LocalEntryNotFoundError, HFValidationError):
            raise error from None
        return list(sizes_of(kept))
