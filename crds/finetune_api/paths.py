"""Paths of a run in its storage, and the mount points of `pvc://` and `configmap://` paths in the pods."""

from __future__ import annotations

from pathlib import PurePosixPath

from finetune_api.fields import scheme

MOUNTS = PurePosixPath("/finetune")
"""Everything that the operator mounts is below it."""
LONGEST_FILE_NAME = 255
"""Bytes of one part of a path, in all common file systems; a job's name may have 253, and is ASCII."""
JOB_DIRECTORY = MOUNTS / "job"
"""On the head: the directory with `JOB_FILE`."""
JOB_FILE = "job.yaml"
"""The FineTuneJob that is to be trained, as a manifest."""


def claim_of(path: str) -> str | None:
    """The claim that a `pvc://` path is on; None for other paths."""
    return path.removeprefix("pvc://").partition("/")[0] if scheme(path) == "pvc" else None


def config_map_of(path: str) -> str | None:
    """The config map that a `configmap://` path is in; None for other paths."""
    return path.removeprefix("configmap://").partition("/")[0] if scheme(path) == "configmap" else None


def claim_mount(claim: str) -> PurePosixPath:
    """The directory where all pods of a job see a claim."""
    return MOUNTS / "claims" / claim


def config_map_mount(name: str) -> PurePosixPath:
    """The directory where all pods of a job see a config map: a file for each key."""
    return MOUNTS / "config-maps" / name


def mounted(path: str) -> PurePosixPath | None:
    """The path inside the pods of a `pvc://` or `configmap://` path; None for other paths.

    `.` and `..` stay below the mount.
    """
    claim, config_map = claim_of(path), config_map_of(path)
    if claim is None and config_map is None:
        return None
    root = claim_mount(claim) if claim is not None else config_map_mount(config_map or "")
    inside = [part for part in path.partition("://")[2].split("/")[1:] if part not in ("", ".", "..")]
    return root.joinpath(*inside)


def run_directory_name(namespace: str, name: str, uid: str) -> str:
    """A job's run directory, relative to the storage.

    Of a name that is too long for a file system the end is left out; the UID tells jobs apart.
    """
    return f"{namespace}/{name[: LONGEST_FILE_NAME - 1 - len(uid)]}-{uid}"


def child(path: str, name: str) -> str:
    """The path of `name` inside the directory `path`; a bucket's options, `?region=...`, stay at the end."""
    directory, mark, options = _split(path)
    return f"{directory.rstrip('/')}/{name}{mark}{options}"


def parent(path: str, name: str) -> str:
    """The opposite of `child`: the directory that has `name` in it."""
    directory, mark, options = _split(path)
    return f"{directory.removesuffix(f'/{name}')}{mark}{options}"


def storage_of(run_directory: str) -> str:
    """The storage of a run directory, whose path is absolute: what `run_directory_name` is relative to."""
    directory, mark, options = _split(run_directory)
    return f"{directory.rstrip('/').rsplit('/', 2)[0] or '/'}{mark}{options}"


def _split(path: str) -> tuple[str, str, str]:
    """A path, and the options of a bucket that stand at its end."""
    return path.partition("?") if scheme(path) in ("s3", "gs") else (path, "", "")
