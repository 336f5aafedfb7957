"""Finds again what a status has said that was lost: restored from a backup without it, or wiped.

A status is the operator's memory, but what must not be forgotten follows from what is there: from the names,
labels and annotations of RayJobs, and from the trainer's record.
"""

from __future__ import annotations

import re
from dataclasses import replace

from pydantic import ValidationError

from finetune_api.failure import FineTuneError
from finetune_api.paths import child, parent
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ProgressRecord, Workers
from finetune_operator.children.placement import placement
from finetune_operator.decide.situation import run_name
from finetune_operator.names import ATTEMPT, STORAGE, ray_job_name
from finetune_operator.observed import Job, Observed, PrepareJob, RayJob
from finetune_operator.settings.configuration import Configuration


def recovered(observed: Observed, spec: FineTuneJobSpec, configuration: Configuration) -> Observed:
    """What is observed, with attempt and run directory that a status lacks though its job has begun."""
    job, ray_job, prepare_job = observed.job, observed.ray_job, observed.prepare_job
    made_for_it = ray_job or prepare_job
    record = _record(observed.record)
    known = job.status.attempts is not None and job.status.run_directory is not None
    if known or (made_for_it is None and record is None):
        return observed
    made = attempt_of(made_for_it) if made_for_it is not None else 0
    reported = record.attempt if record else 0
    prepares = ray_job is None and (record is None or record.preparing)
    if made_for_it is not None and not made_for_it.has_ended:
        # Whatever a pod has written: beside what runs there is no other.
        reported = made
    attempt = job.status.attempts or max(made, reported, 1)
    # All but the retries that the spec allows have followed an interruption.
    interruptions = max(0, attempt - 1 - spec.run_policy.backoff_limit) or None
    storage = (
        (made_for_it.metadata.annotations.get(STORAGE) if made_for_it is not None else None)
        or (spec.storage.path if spec.storage is not None else None)
        or _recorded_storage(job, record)
        or configuration.storage
    )
    status = job.status.model_copy(
        update={
            "attempts": attempt,
            "interruptions": job.status.interruptions if job.status.attempts is not None else interruptions,
            "ray_job_name": (
                None if prepares else ray_job_name(job.metadata.name, job.metadata.uid, attempt)
            ),
            "run_directory": job.status.run_directory or (child(storage, run_name(job)) if storage else None),
            **_placed(spec, configuration),
        }
    )
    same = job.status.attempts is not None or made == attempt
    return replace(
        observed,
        job=job.model_copy(update={"status": status}),
        ray_job=ray_job if same else None,
        prepare_job=prepare_job if same else None,
    )


def attempt_of(made: RayJob | PrepareJob) -> int:
    """Which attempt a RayJob or a Job is for, by its label, or else by its name; counted from 1."""
    metadata = made.metadata
    written = metadata.labels.get(ATTEMPT, "") or metadata.name.rpartition("-")[2]
    return int(written) if re.fullmatch(r"[1-9][0-9]{0,3}", written) else 1


def _record(text: str | None) -> ProgressRecord | None:
    try:
        return ProgressRecord.model_validate_json(text) if text is not None else None
    except ValidationError:
        return None


def _recorded_storage(job: Job, record: ProgressRecord | None) -> str | None:
    """Where the checkpoints of a record are, which the operator's default may no longer be."""
    for checkpoint in record.checkpoints if record is not None else ():
        directory = parent(checkpoint.path, checkpoint.name)
        storage = parent(directory, run_name(job))
        if storage != directory:
            return storage
    return None


def _placed(spec: FineTuneJobSpec, configuration: Configuration) -> dict[str, object]:
    try:
        placed = placement(spec, configuration)
    except FineTuneError:
        return {}
    return {"accelerator_type": placed.accelerator_type, "workers": Workers(desired=placed.pods, ready=0)}
