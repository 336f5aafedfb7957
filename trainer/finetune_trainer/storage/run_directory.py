"""The directory of one run: its checkpoints and snapshots, its metrics, and its manifest.

    <storage>/<namespace>/<name>-<uid>/
        job.yaml            the manifest; its first line says whose run this is
        inputs.json         the SHA-256 of each file of rows when the run began
        prepared/           what was prepared before a cluster was asked for, until the run has finished
        epoch-0/ …          a checkpoint: model, tokenizer, state/ to resume from, complete.json written last
        snapshot-1234/      the same files, to resume from between checkpoints; at most one
        checkpoints.json    the complete checkpoints, the best and the latest marked
        metrics.jsonl       a line for each optimizer step, each validation and its sample answers
        attempt.json        the newest attempt: its plan, packages and warnings, and how it ended
        result.json         the last progress record of a run that has finished
        report.html         all of it for people, as one page

A checkpoint counts only if it has a complete.json that agrees with its files. A complete checkpoint is never
written to again, and nothing is deleted before what replaces it is complete.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.retention import flagged
from finetune_api.status import Checkpoint, Failure, Plan, ProgressRecord, StatusModel
from finetune_trainer.storage.local import sizes_of
from finetune_trainer.storage.open import Storage, open_storage

JOB = "job.yaml"
INPUTS = "inputs.json"
CHECKPOINTS = "checkpoints.json"
METRICS = "metrics.jsonl"
PREPARED = "prepared"
ATTEMPT = "attempt.json"
RESULT = "result.json"
REPORT = "report.html"
COMPLETE = "complete.json"
CARD = "README.md"
"""The model card of a checkpoint."""
SAVED = re.compile(r"(epoch|snapshot)-\d+")
"""Names of checkpoints and snapshots."""

_TRIAL = ".trial"
_DIGESTS = TypeAdapter(dict[str, str])

_log = logging.getLogger(__name__)


class Completion(BaseModel):
    """The content of complete.json."""

    step: int
    """Optimizer steps done."""
    checkpoint: Checkpoint | None
    """None in a snapshot."""
    files: dict[str, int]
    """The other files of the checkpoint, with their sizes in bytes, but for its card."""


class PreparedFiles(BaseModel):
    """The content of complete.json of what was prepared."""

    files: dict[str, int]
    """All other files, with their sizes in bytes."""


class AttemptNote(StatusModel):
    """The content of attempt.json."""

    plan: Plan
    devices: int
    """How many train."""
    versions: dict[str, str]
    """Those of the packages that decide what is computed, by name."""
    warnings: list[str]
    """What people were told before training."""
    began: datetime
    ended: datetime | None = None
    """None while it goes on, or where its process was killed."""
    failure: Failure | None = None


class RunDirectory:
    """Reads and writes a run directory. Only one process may write at a time; others may read meanwhile.

    All methods raise FineTuneError (StorageError or AccessDenied) with the path and the reason
    when storage fails.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @classmethod
    def open(cls, path: str) -> RunDirectory:
        """Opens the run directory at a path that `open_storage` takes. It need not exist."""
        return cls(open_storage(path))

    @property
    def path(self) -> str:
        """The path that users see."""
        return self._storage.path

    @property
    def here(self) -> Path | None:
        """The directory on this machine; None in an object store."""
        return self._storage.here

    def checkpoint_path(self, name: str) -> str:
        """The path of a checkpoint that users see."""
        return self._storage.child(name).path

    def claim(self, job_yaml: str, identity: str) -> None:
        """Marks the directory as this job's, and deletes what an attempt that died left unfinished.

        `identity` is a line that is the same for all attempts of the job. Raises FineTuneError (InvalidSpec),
        and writes nothing, when the directory belongs to another job.
        """
        mark = f"# {identity}"
        existing = self._storage.read_text(JOB)
        if existing is None:
            self._storage.write_text(JOB, f"{mark}\n{job_yaml}")
        elif existing.partition("\n")[0] != mark:
            owner = existing.partition("\n")[0].removeprefix("# ")
            raise FineTuneError(
                FailureClass.INVALID_SPEC,
                f"{self.path}: holds the run of {owner}, and this is {identity}; give another storage path",
            )
        self._storage.clear_partial()
        self._clear_incomplete()
        self._write_index()

    def note_inputs(self, digests: dict[str, str]) -> None:
        """Keeps the SHA-256 of each file of rows, by its path, for `inputs`."""
        self._storage.write_text(INPUTS, json.dumps(digests, indent=2) + "\n")

    def inputs(self) -> dict[str, str]:
        """What `note_inputs` has kept; empty where there is nothing that can be read."""
        try:
            return _DIGESTS.validate_json(self._storage.read_text(INPUTS) or "{}")
        except ValidationError:
            return {}

    def job(self) -> str | None:
        """The manifest, with a first line that says whose run this is; None where there is no run.

        A directory of people's own files may have a job.yaml too, but not the index of checkpoints.
        """
        return None if self._storage.read_text(CHECKPOINTS) is None else self._storage.read_text(JOB)

    def note_attempt(self, note: AttemptNote) -> None:
        """Keeps what is known of the newest attempt, for `attempt`."""
        text = note.model_dump_json(by_alias=True, exclude_none=True, indent=2)
        self._storage.write_text(ATTEMPT, text + "\n")

    def attempt(self) -> AttemptNote | None:
        """What `note_attempt` has kept; None where there is nothing that can be read."""
        try:
            return AttemptNote.model_validate_json(self._storage.read_text(ATTEMPT) or "")
        except ValidationError:
            return None

    def write_report(self, page: str) -> str:
        """Writes the page for people. Returns its path."""
        self._storage.write_text(REPORT, page)
        return self._storage.child(REPORT).path

    def report(self) -> str | None:
        """The path of that page; None where there is none."""
        return self._storage.child(REPORT).path if REPORT in self._storage.files() else None

    def staging_prepared(self) -> AbstractContextManager[Path]:
        """A new empty directory on this machine for the files that are prepared.

        Commit it inside the `with` block; afterwards it is deleted.
        """
        return self._storage.staging(PREPARED)

    def commit_prepared(self, staging: Path) -> None:
        """Makes the files in `staging` what is prepared, in place of what was."""
        self._delete(PREPARED)
        written = PreparedFiles(files=sizes_of(staging))
        (staging / COMPLETE).write_text(written.model_dump_json(indent=2), encoding="utf-8")
        self._storage.publish(staging, PREPARED, last=COMPLETE)

    def prepared(self) -> Storage | None:
        """Where the files are that were prepared; None when they are not there, or not all of them."""
        storage = self._storage.child(PREPARED)
        try:
            complete = PreparedFiles.model_validate_json(storage.read_text(COMPLETE) or "")
        except ValidationError:
            return None
        there = storage.files()
        return storage if all(there.get(name) == size for name, size in complete.files.items()) else None

    def checkpoints(self) -> list[Checkpoint]:
        """The complete checkpoints in the order they were saved in. The best and the latest are marked."""
        found = self._complete()
        return flagged(
            [
                completion.checkpoint.model_copy(update={"path": self.checkpoint_path(name)})
                for name, completion in found.items()
                if completion.checkpoint is not None
            ]
        )

    def newest(self) -> str | None:
        """The name of the checkpoint or snapshot to resume from; None when there is none.

        It is the complete one with the most steps. Of a checkpoint and a snapshot with equally many it
        is the checkpoint.
        """
        found = self._complete()
        return max(
            found, key=lambda name: (found[name].step, found[name].checkpoint is not None), default=None
        )

    def completion(self, name: str) -> Completion | None:
        """What is known of a complete checkpoint or snapshot; None when there is none of that name."""
        return self._complete().get(name)

    def read_saved(self, name: str, file: str) -> str | None:
        """The text of a file of a checkpoint or snapshot; None when there is no such file."""
        return self._storage.child(name).read_text(file)

    def local_copy(self, name: str) -> AbstractContextManager[Path]:
        """A directory on this machine with the files of a checkpoint or snapshot, for the `with` block.

        The files must not be changed.
        """
        return self._storage.child(name).local_copy()

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """A new empty directory on this machine for the files of a checkpoint or snapshot.

        Commit it inside the `with` block; afterwards it is deleted.
        """
        return self._storage.staging(name)

    def helping(self, name: str) -> AbstractContextManager[Path]:
        """A directory on this machine for the files that another rank than the first writes of a checkpoint.

        It may be that of `staging`, where both see the same storage. Hand it in inside the `with` block.
        """
        return self._storage.helping(name)

    def hand_in(self, name: str, staging: Path) -> dict[str, int]:
        """Hands in the files in a directory of `helping`. Returns their sizes, for the rank that commits."""
        return self._storage.hand_in(staging, name)

    def try_writing(self, write: Callable[[Path], None]) -> None:
        """Has `write` write into an empty directory, writes a file into storage, and deletes all of it."""
        with self._storage.staging(_TRIAL) as staging:
            write(staging)
        self._storage.write_text(_TRIAL, "")
        self._storage.delete(_TRIAL)

    def commit(
        self, name: str, staging: Path, record: Checkpoint, handed_in: Mapping[str, int] | None = None
    ) -> None:
        """Makes the files in `staging` the checkpoint `name`, and deletes snapshots, which are now older.

        `handed_in` are the sizes of files that other ranks have handed in. Raises ValueError when there is a
        complete checkpoint of that name.
        """
        self._commit(name, staging, handed_in or {}, step=record.step, checkpoint=record)
        self._write_index()
        self._delete_snapshots(but=None)

    def snapshot_name(self, step: int) -> str:
        """The name of the snapshot after `step` optimizer steps."""
        return f"snapshot-{step}"

    def commit_snapshot(self, step: int, staging: Path, handed_in: Mapping[str, int] | None = None) -> None:
        """Makes the files in `staging` the snapshot after `step` optimizer steps, and deletes others.

        Raises ValueError when there is a complete snapshot of that step.
        """
        name = self.snapshot_name(step)
        self._commit(name, staging, handed_in or {}, step=step, checkpoint=None)
        self._delete_snapshots(but=name)

    def prune(self, keep: set[str]) -> None:
        """Deletes all complete checkpoints but those with these names."""
        gone = [checkpoint.name for checkpoint in self.checkpoints() if checkpoint.name not in keep]
        # The index first, so that it never lists a checkpoint that is deleted.
        self._write_index(without=gone)
        for name in gone:
            self._delete(name)

    def append_metrics(self, line: BaseModel) -> None:
        """Adds a line to metrics.jsonl.

        Locally it is stored at once, in an object store within a minute and at every commit.
        """
        self._storage.append_text(METRICS, line.model_dump_json(by_alias=True) + "\n")

    def metrics(self) -> str:
        """The text of metrics.jsonl as it is stored; empty where there is none."""
        return self._storage.read_text(METRICS) or ""

    def begin_metrics(self, lines: str) -> None:
        """Makes these the lines of metrics.jsonl."""
        self._storage.write_text(METRICS, lines)

    def flush_metrics(self) -> None:
        """Stores all lines that were added so far."""
        self._storage.flush()

    @property
    def late_metrics(self) -> str | None:
        """For people, that lines were not stored when they should have been, and why; else None."""
        return None if self._storage.trouble is None else f"{METRICS} {self._storage.trouble}"

    def truncate_metrics(self, step: int) -> None:
        """Removes the lines that will be written again when training resumes after `step` optimizer steps.

        These are lines of later steps, of validations whose checkpoint did not become complete, and
        half-written ones. With -1, all lines are removed.
        """
        text = self.metrics()
        lines = text.splitlines(keepends=True)
        complete = set(self._complete())
        remaining = "".join(line for line in lines if _stays(line, step, complete))
        if remaining != text:
            self._storage.write_text(METRICS, remaining)

    def finish(self, record: ProgressRecord) -> None:
        """Marks the run as finished, with its last progress record. What was prepared is deleted."""
        self._storage.flush()
        self._delete(PREPARED)
        self._storage.write_text(
            RESULT, record.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n"
        )

    def result(self) -> ProgressRecord | None:
        """The last progress record of a finished run; None when it has not finished."""
        text = self._storage.read_text(RESULT)
        try:
            return None if text is None else ProgressRecord.model_validate_json(text)
        except ValidationError as error:
            damaged = "is not what a finished run writes; delete it, and the run goes on from its checkpoints"
            raise FineTuneError(
                FailureClass.STORAGE_ERROR, f"{self._storage.child(RESULT).path}: {damaged}"
            ) from error

    def delete(self) -> None:
        """Deletes the run directory with all its content."""
        self._storage.delete("")

    def clear(self) -> None:
        """Deletes all content. The directory itself stays, with the lock that may be on it.

        What is left by a process that dies here is a run that has not finished.
        """
        files = self._storage.files()
        self._storage.delete(RESULT)
        for name in sorted({file.partition("/")[0] for file in files if "/" in file}):
            self._delete(name)
        for name in sorted(file for file in files if "/" not in file):
            self._storage.delete(name)

    def _clear_incomplete(self) -> None:
        files = self._storage.files()
        for name in set(_saved_names(files)) - set(self._complete()):
            if f"{name}/{COMPLETE}" in files:
                _log.warning(
                    "%s is ignored: its files are not those that its %s lists",
                    self.checkpoint_path(name),
                    COMPLETE,
                )
            else:
                self._storage.delete(name)

    def _complete(self) -> dict[str, Completion]:
        files = self._storage.files()
        found = {}
        for name in _saved_names(files):
            completion = self._read_completion(name)
            if completion and all(
                files.get(f"{name}/{file}") == size for file, size in completion.files.items()
            ):
                found[name] = completion
        return found

    def _read_completion(self, name: str) -> Completion | None:
        text = self._storage.read_text(f"{name}/{COMPLETE}")
        try:
            return None if text is None else Completion.model_validate_json(text)
        except ValidationError:
            return None

    def _commit(
        self,
        name: str,
        staging: Path,
        handed_in: Mapping[str, int],
        *,
        step: int,
        checkpoint: Checkpoint | None,
    ) -> None:
        if name in self._complete():
            raise ValueError(f"{self.checkpoint_path(name)} is complete and must not change")
        if not handed_in:
            self._delete(name)
        files = sizes_of(staging)
        absent = sorted(handed_in.keys() - files.keys() - self._storage.child(name).files().keys())
        if absent:
            raise FineTuneError(
                FailureClass.STORAGE_ERROR,
                f"{self.path}: another worker has written {absent[0]} there, and here it is not: they do not"
                " see the same directory; give storage that all nodes share",
            )
        # People are to fill in the licence in the card, and write what they like there.
        sizes = {file: size for file, size in {**files, **handed_in}.items() if file != CARD}
        completion = Completion(step=step, checkpoint=checkpoint, files=sizes)
        (staging / COMPLETE).write_text(completion.model_dump_json(by_alias=True, indent=2), encoding="utf-8")
        self._storage.publish(staging, name, last=COMPLETE)
        self._storage.flush()

    def _write_index(self, without: list[str] | None = None) -> None:
        listed = [checkpoint for checkpoint in self.checkpoints() if checkpoint.name not in (without or [])]
        entries = [checkpoint.model_dump(mode="json", by_alias=True) for checkpoint in flagged(listed)]
        self._storage.write_text(CHECKPOINTS, json.dumps(entries, indent=2) + "\n")

    def _delete_snapshots(self, but: str | None) -> None:
        for name in _saved_names(self._storage.files()):
            if name.startswith("snapshot-") and name != but:
                self._delete(name)

    def _delete(self, name: str) -> None:
        # The marker first, so that a half-deleted directory is not taken for a checkpoint.
        self._storage.delete(f"{name}/{COMPLETE}")
        self._storage.delete(name)


def _saved_names(files: dict[str, int]) -> list[str]:
    """The directories of checkpoints and snapshots, complete or not, that hold these files."""
    return sorted({top for top, _, _ in (file.partition("/") for file in files) if SAVED.fullmatch(top)})


def _stays(line: str, step: int, complete: set[str]) -> bool:
    if not line.endswith("\n"):
        return False
    try:
        entry = json.loads(line)
        done = int(entry["step"])
    except (ValueError, TypeError, KeyError):
        return False
    if done == step:
        return entry.get("checkpoint") is None or entry["checkpoint"] in complete
    return done < step
