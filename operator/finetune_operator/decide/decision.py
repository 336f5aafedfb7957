"""What is to be done about a job: the outcome of `reconcile`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from finetune_api.status import FineTuneJobStatus
from finetune_operator.decide.events import Event
from finetune_operator.observed import KubernetesObject


@dataclass(frozen=True)
class Deletion:
    """An object to delete; one of the same name with another UID is left alone."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class Decision:
    """What to do, in this order: write the status, post the events, delete, create."""

    status: FineTuneJobStatus
    delete: tuple[Deletion, ...] = ()
    create: tuple[KubernetesObject, ...] = ()
    """Objects that should exist; those that do stay as they are."""
    events: tuple[Event, ...] = ()
    requeue_after: timedelta | None = None
    """When to reconcile the job again even if nothing happens."""

    def requeued(self, after: timedelta | None) -> Decision:
        """The decision, with the job reconciled again after this time at the latest; None sets no time."""
        times = [each for each in (self.requeue_after, after) if each is not None]
        return replace(self, requeue_after=min(times, default=None))
