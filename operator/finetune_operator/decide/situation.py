"""Everything that a decision about a job depends on, gathered and checked once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.paths import run_directory_name
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Phase, ProgressRecord
from finetune_operator.decide.record import RecordError, read_record
from finetune_operator.observed import Job, Observed, PrepareJob, RayJob
from finetune_operator.settings.configuration import Configuration

FIRST_WORD = timedelta(minutes=5)
"""What handing the program to Ray and starting it may take in any case, however late the pods were ready."""


@dataclass(frozen=True)
class Situation:
    """A job at one moment, with a spec that is valid."""

    observed: Observed
    spec: FineTuneJobSpec
    configuration: Configuration
    now: datetime
    record: ProgressRecord | None
    """The trainer's progress record; None when there is none, or none that may be shown."""
    record_problem: str | None
    """Why the record that is there is not shown, for people."""

    @property
    def job(self) -> Job:
        """The FineTuneJob."""
        return self.observed.job

    @property
    def own_record(self) -> ProgressRecord | None:
        """The record, if it is the current attempt's trainer that wrote it."""
        return self._of_attempt(preparing=False)

    @property
    def prepare_record(self) -> ProgressRecord | None:
        """The record, if it is the current attempt's Prepare that wrote it."""
        return self._of_attempt(preparing=True)

    def _of_attempt(self, *, preparing: bool) -> ProgressRecord | None:
        record = self.record
        own = record is not None and (record.attempt, record.preparing) == (self.job.attempt, preparing)
        return record if own else None

    @property
    def trains(self) -> bool:
        """Whether the current attempt has begun to train, also if its record has become unreadable since."""
        if self.record_problem is not None:
            return self.job.status.phase is Phase.RUNNING
        return self.own_record is not None and self.own_record.progress is not None

    @property
    def finished_at(self) -> datetime | None:
        """When the current attempt finished the run, by its record; None when it has not."""
        record = self.own_record
        if record is None or not record.finished or record.progress is None:
            return None
        return record.progress.last_update_time

    @property
    def has_spoken(self) -> bool:
        """Whether the trainer of the current attempt has reported anything yet."""
        return self.own_record is not None or self.record_problem is not None

    def deadline(self, status: FineTuneJobStatus) -> datetime | None:
        """When `active_deadline_seconds` are over; None without a limit, or before the job has begun."""
        seconds = self.spec.run_policy.active_deadline_seconds
        if seconds is None or status.start_time is None:
            return None
        return status.start_time + timedelta(seconds=seconds)

    def prepare_deadline(self, prepare_job: PrepareJob) -> datetime | None:
        """When preparing must be over; None without a limit, or before it has begun.

        Before `starting_deadline_seconds` are over Prepare must have spoken, and it has
        `active_deadline_seconds` in all: those of the job begin with its first cluster.
        """
        begun, policy = prepare_job.status.start_time, self.spec.run_policy
        if begun is None:
            return None
        seconds = policy.active_deadline_seconds
        if not self.prepare_has_spoken:
            seconds = min(policy.starting_deadline_seconds, seconds or policy.starting_deadline_seconds)
        return begun + timedelta(seconds=seconds) if seconds is not None else None

    @property
    def prepare_has_spoken(self) -> bool:
        """Whether the current attempt's Prepare has reported anything yet."""
        return self.prepare_record is not None or self.record_problem is not None

    def first_word_due(self, ray_job: RayJob) -> datetime | None:
        """By when the trainer has to speak; None before KubeRay has begun.

        What pods have taken counts, but leaves some minutes for handing over and starting the program.
        """
        limit = timedelta(seconds=self.spec.run_policy.starting_deadline_seconds)
        begun, cluster = ray_job.status.start_time, self.observed.ray_cluster
        if begun is None:
            return None
        ready = cluster.ready_since if cluster is not None else None
        return max(begun + limit, (ready or begun) + min(limit, FIRST_WORD))


def situation_of(
    observed: Observed, spec: FineTuneJobSpec, configuration: Configuration, now: datetime
) -> Situation:
    """The situation of a job with this spec, its progress record read and checked."""
    record, problem = None, None
    directory = observed.job.status.run_directory
    if observed.record is not None and directory is not None:
        try:
            record = read_record(observed.record, directory, run_name(observed.job))
        except RecordError as error:
            problem = f"the trainer's progress record is not shown: {error}"
    return Situation(observed, spec, configuration, now, record, problem)


def run_name(job: Job) -> str:
    """Where the job's run is below its storage: `namespace/name-uid`."""
    return run_directory_name(job.metadata.namespace, job.metadata.name, job.metadata.uid)
