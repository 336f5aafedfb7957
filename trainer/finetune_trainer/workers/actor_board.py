"""A board in a Ray actor, for workers on several machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError

from finetune_api.status import Failure, ProgressRecord
from finetune_trainer.workers.progress_board import Notice, Reporter

if TYPE_CHECKING:
    from finetune_trainer.training.job import TrainingJob


@dataclass(frozen=True)
class _JobReference:
    """Where in Ray's object store the job is; a bare reference would be fetched on the way."""

    reference: ray.ObjectRef[TrainingJob]


class _Board:
    """What the actor keeps."""

    def __init__(self) -> None:
        self._notice = Notice()
        self._stop = False
        self._job: _JobReference | None = None

    def put_job(self, job: _JobReference) -> None:
        self._job = job

    def job(self) -> _JobReference | None:
        return self._job

    def put(self, record: ProgressRecord) -> bool:
        """Replaces the record; returns whether the run should stop."""
        now = self._notice
        self._notice = Notice(now.version + 1, record, now.outcome, now.failure)
        return self._stop

    def put_outcome(self, outcome: str) -> None:
        now = self._notice
        self._notice = Notice(now.version, now.record, outcome, now.failure)

    def put_failure(self, failure: Failure) -> None:
        now = self._notice
        self._notice = Notice(now.version, now.record, now.outcome, now.failure or failure)

    def stop(self) -> None:
        self._stop = True

    def read(self) -> Notice:
        return self._notice


class ActorBoard:
    """See `ProgressBoard`. The actor is on the driver's node, and holds no resources."""

    def __init__(self) -> None:
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        self._actor = cast(
            "ActorHandle[_Board]", ray.remote(num_cpus=0, label_selector=here)(_Board).remote()
        )

    def put_job(self, job: ray.ObjectRef[TrainingJob]) -> None:
        """See `ProgressBoard`."""
        self._actor.put_job.remote(_JobReference(job))

    def job(self) -> ray.ObjectRef[TrainingJob] | None:
        """See `ProgressBoard`."""
        return _bare(ray.get(cast("ray.ObjectRef[_JobReference | None]", self._actor.job.remote())))

    def reporter(self) -> Reporter:
        """See `ProgressBoard`."""
        return _Reporter(self._actor)

    def put_outcome(self, outcome: str) -> None:
        """See `ProgressBoard`."""
        ray.get(self._actor.put_outcome.remote(outcome))

    def put_failure(self, failure: Failure) -> None:
        """See `ProgressBoard`."""
        ray.get(self._actor.put_failure.remote(failure))

    def stop(self) -> None:
        """See `ProgressBoard`."""
        ray.get(self._actor.stop.remote())

    def read(self, *, timeout: float | None = None) -> Notice | None:
        """See `ProgressBoard`. Raises RayError when the actor is gone."""
        try:
            return ray.get(cast("ray.ObjectRef[Notice]", self._actor.read.remote()), timeout=timeout)
        except GetTimeoutError:
            return None


def _bare(job: _JobReference | None) -> ray.ObjectRef[TrainingJob] | None:
    return None if job is None else job.reference


class _Reporter:
    """Learns from the answers to its reports whether to stop."""

    def __init__(self, actor: ActorHandle[_Board]) -> None:
        self._actor = actor
        self._answers: list[ray.ObjectRef[bool]] = []
        self._stop = False

    def report(self, record: ProgressRecord) -> None:
        self._answers.append(self._actor.put.remote(record))

    def stop_requested(self) -> bool:
        if self._answers:
            ready, self._answers = ray.wait(self._answers, num_returns=len(self._answers), timeout=0)
            self._stop = self._stop or any(ray.get(ready))
        return self._stop
