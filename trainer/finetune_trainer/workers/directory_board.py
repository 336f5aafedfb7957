"""A board in a directory, for workers on one machine: an actor would be one more process beside training."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ray import cloudpickle

from finetune_api.status import Failure, ProgressRecord
from finetune_trainer.workers.progress_board import Notice, Reporter

if TYPE_CHECKING:
    import ray

    from finetune_trainer.training.job import TrainingJob


class DirectoryBoard:
    """See `ProgressBoard`. What is on it are files, each of which is there in full or not at all."""

    def __init__(self, directory: Path) -> None:
        self._job = directory / "job"
        self._record = directory / "record.json"
        self._outcome = directory / "outcome"
        self._failure = directory / "failure.json"
        self._stop = directory / "stop"

    def put_job(self, job: ray.ObjectRef[TrainingJob]) -> None:
        """See `ProgressBoard`."""
        # Ray then keeps the object until the driver ends, which waits for this one job.
        _put(self._job, cloudpickle.dumps(job))  # type: ignore[no-untyped-call]

    def job(self) -> ray.ObjectRef[TrainingJob] | None:
        """See `ProgressBoard`."""
        found = _read(self._job)
        return None if found is None else cast("ray.ObjectRef[TrainingJob]", cloudpickle.loads(found))

    def reporter(self) -> Reporter:
        """See `ProgressBoard`."""
        return _Reporter(self._record, self._stop)

    def put_outcome(self, outcome: str) -> None:
        """See `ProgressBoard`."""
        _put(self._outcome, outcome.encode())

    def put_failure(self, failure: Failure) -> None:
        """See `ProgressBoard`."""
        _put(self._failure, failure.model_dump_json().encode(), first=True)

    def stop(self) -> None:
        """See `ProgressBoard`."""
        self._stop.touch()

    def read(self, *, timeout: float | None = None) -> Notice | None:  # noqa: ARG002 - a file is there or not
        """See `ProgressBoard`."""
        record, outcome, failure = map(_read, (self._record, self._outcome, self._failure))
        version, _, text = (record or b"0").partition(b"\n")
        return Notice(
            int(version),
            ProgressRecord.model_validate_json(text) if text else None,
            outcome.decode() if outcome is not None else None,
            Failure.model_validate_json(failure) if failure is not None else None,
        )


class _Reporter:
    def __init__(self, record: Path, stop: Path) -> None:
        self._record = record
        self._stop = stop
        self._version = 0

    def report(self, record: ProgressRecord) -> None:
        self._version += 1
        _put(self._record, f"{self._version}\n{record.model_dump_json(by_alias=True)}".encode())

    def stop_requested(self) -> bool:
        return self._stop.exists()


def _put(file: Path, content: bytes, *, first: bool = False) -> None:
    """Writes a file beside and puts it in its place; or only if it is the `first`."""
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as written:
        written.write(content)
    beside = Path(written.name)
    if first:
        with suppress(FileExistsError):
            file.hardlink_to(beside)
        beside.unlink()
    else:
        beside.replace(file)


def _read(file: Path) -> bytes | None:
    with suppress(FileNotFoundError):
        return file.read_bytes()
    return None
