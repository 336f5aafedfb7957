"""Looks at a job: gathers what is known, has it decided, and carries the decision out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Protocol, cast

from pydantic import JsonValue

from finetune_api.assignment import RECORD_KEY
from finetune_api.manifest import KIND
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.children.objects import CONFIG_MAP, RAY_JOB
from finetune_operator.cluster.freshness import Freshness
from finetune_operator.cluster.kubernetes_api import ApiRefusedError, KubernetesApi
from finetune_operator.decide.cleanup import release
from finetune_operator.decide.decision import Decision
from finetune_operator.decide.event_limit import EventLimit
from finetune_operator.decide.phases import ENDED
from finetune_operator.decide.reconcile import reconcile, refused
from finetune_operator.names import JOB_UID, child_name, ray_job_name
from finetune_operator.observed import (
    Job,
    KubernetesObject,
    ObjectMeta,
    Observed,
    Pod,
    RayCluster,
    RayJob,
    read_job,
)
from finetune_operator.settings.configuration import Configuration
from finetune_operator.telemetry.logs import job_logger
from finetune_operator.telemetry.metrics import (
    DEVICE_SECONDS,
    EVENTS_LOST,
    PROGRESS_LAG,
    RECONCILES,
    TIME_TO_RUNNING,
)

FINAL = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
"""What the API server says of an object that it will never take."""
REFUSED_AGAIN_AFTER = timedelta(seconds=15)

_log = logging.getLogger(__name__)


class NotOursError(Exception):
    """An object of a name that is this job's belongs to somebody else."""


@dataclass(frozen=True)
class Key:
    """A job, which another one of that name is not."""

    namespace: str
    name: str
    uid: str


class Children(Protocol):
    """What watches have told of pods and Ray clusters, by the UID of their job."""

    def pods(self, uid: str) -> Sequence[Pod]:
        """The pods."""

    def clusters(self, uid: str) -> Sequence[RayCluster]:
        """The Ray clusters."""


class Controller:
    """Holds no state of its own that would be missed: what decides is in the cluster."""

    def __init__(
        self,
        api: KubernetesApi,
        configuration: Configuration,
        children: Children,
        freshness: Freshness,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._configuration = configuration
        self._children = children
        self._freshness = freshness
        self._clock = clock
        self._event_limit = EventLimit()

    async def look(self, key: Key) -> timedelta | None:
        """Looks at a job once; returns when to look again.

        Raises ApiRefusedError or OSError where the API server does not do as it should.
        """
        with RECONCILES.time():
            body = await self._api.get(KIND, key.namespace, key.name)
            job = read_job(body) if body is not None else None
            if body is None or job is None or job.metadata.uid != key.uid:
                return await self._release(key)
            self._freshness.expect(key.uid, job.metadata.resource_version)
            seen = await self._gather(job)
            decision = reconcile(seen, self._configuration, self._clock())
            if decision.create or _may_wait_in_vain(seen):
                # Before anything is made, what may be in its way is read as etcd has it; and that something
                # is gone a watch may not tell.
                decision = reconcile(await self._gather(job, live=True), self._configuration, self._clock())
            again = await self._carry_out(body, job, decision)
            resync = (
                None
                if decision.status.phase in ENDED
                else timedelta(seconds=self._configuration.resync_seconds)
            )
            return min((each for each in (again, resync) if each is not None), default=None)

    async def _gather(self, job: Job, *, live: bool = False) -> Observed:
        namespace, uid = job.metadata.namespace, job.metadata.uid
        name = ray_job_name(job.metadata.name, uid, job.attempt)
        ray_job = await self._api.get(RAY_JOB, namespace, name)
        if ray_job is not None and not _is_owned(ray_job, uid):
            raise NotOursError(
                f"RayJob {name} is there and is not this job's: delete it, or rename the FineTuneJob"
            )
        config_map = None
        if job.status.phase not in ENDED:
            config_map = await self._api.get(CONFIG_MAP, namespace, child_name(job.metadata.name, uid))
        for found in (ray_job, config_map):
            metadata = ObjectMeta.model_validate(found["metadata"]) if found is not None else None
            # Whoever takes the label away hides the object from the watch.
            if metadata is not None and JOB_UID in metadata.labels:
                self._freshness.expect(metadata.uid, metadata.resource_version)
        data = (config_map or {}).get("data")
        record = data.get(RECORD_KEY) if isinstance(data, dict) else None
        if live:
            pods = [Pod.model_validate(each) for each in await self._api.of_job("Pod", namespace, uid)]
            clusters = [
                RayCluster.model_validate(each)
                for each in await self._api.of_job("RayCluster", namespace, uid)
            ]
        else:
            pods, clusters = list(self._children.pods(uid)), list(self._children.clusters(uid))
        return Observed(
            job=job,
            ray_job=RayJob.model_validate(ray_job) if ray_job is not None else None,
            ray_clusters=tuple(sorted(clusters, key=lambda each: each.metadata.name)),
            pods=tuple(sorted(pods, key=lambda each: each.metadata.name)),
            record=str(record) if record is not None else None,
        )

    async def _carry_out(self, body: KubernetesObject, job: Job, decision: Decision) -> timedelta | None:
        body = await self._show(body, job, decision)
        for deletion in decision.delete:
            job_logger(job.metadata).info("deleting %s %s", deletion.kind, deletion.name)
            await self._api.delete(deletion.kind, job.metadata.namespace, deletion.name, deletion.uid)
        for manifest in decision.create:
            metadata = cast("dict[str, str]", manifest["metadata"])
            try:
                made = await self._api.create(manifest)
            except ApiRefusedError as refusal:
                if (
                    refusal.status == HTTPStatus.CONFLICT
                ):  # of something that the server counts: it is to be tried again
                    raise
                return await self._show_refusal(body, job, decision.status, manifest, refusal)
            if made:
                job_logger(job.metadata).info("made %s %s", manifest["kind"], metadata["name"])
        return decision.requeue_after

    async def _show(self, body: KubernetesObject, job: Job, decision: Decision) -> KubernetesObject:
        """Writes the status, if it has changed, and tells the turns; returns the object as it is then."""
        before, after = job.status, decision.status
        if after == before:
            return body
        written = await self._api.replace_status({**body, "status": _document(after)})
        self._freshness.expect(
            job.metadata.uid, str(cast("dict[str, JsonValue]", written["metadata"])["resourceVersion"])
        )
        self._measure(job, before, after)
        events = self._event_limit.admitted(job.metadata.uid, decision.events, self._clock())
        if len(events) < len(decision.events):
            EVENTS_LOST.inc(len(decision.events) - len(events))
            job_logger(job.metadata).warning(
                "%d events are not posted: there are too many", len(decision.events) - len(events)
            )
        for event in events:
            job_logger(job.metadata).info("%s: %s", event.reason, event.message)
            try:
                await self._api.post_event(job.metadata, event)
            except (ApiRefusedError, OSError) as error:  # nothing depends on an event
                EVENTS_LOST.inc()
                job_logger(job.metadata).warning("the event %s could not be posted: %s", event.reason, error)
        return written

    async def _show_refusal(
        self,
        body: KubernetesObject,
        job: Job,
        status: FineTuneJobStatus,
        manifest: KubernetesObject,
        refusal: ApiRefusedError,
    ) -> timedelta | None:
        name = cast("dict[str, str]", manifest["metadata"])["name"]
        what = f"the API server refuses {manifest['kind']} {name}: {refusal.message}"
        if refusal.status == HTTPStatus.NOT_FOUND and manifest["kind"] == RAY_JOB:
            what = (
                f"{manifest['kind']} {name} cannot be made: KubeRay's resource definitions are not installed"
            )
        job_logger(job.metadata).warning("%s", what)
        decision = refused(job, status, what, final=refusal.status in FINAL, now=self._clock())
        await self._show(body, job.model_copy(update={"status": status}), decision)
        return None if decision.status.phase in ENDED else REFUSED_AGAIN_AFTER

    async def _release(self, key: Key) -> timedelta | None:
        """Sees that a job that is gone holds no devices."""
        self._event_limit.forget(key.uid)
        clusters = list(self._children.clusters(key.uid))
        if not clusters:
            return None
        ray_jobs = [
            RayJob.model_validate(each) for each in await self._api.of_job(RAY_JOB, key.namespace, key.uid)
        ]
        deletions, again = release(ray_jobs, clusters, self._clock())
        for deletion in deletions:
            _log.warning(
                "deleting %s %s/%s of a deleted job, since KubeRay has not",
                deletion.kind,
                key.namespace,
                deletion.name,
            )
            await self._api.delete(deletion.kind, key.namespace, deletion.name, deletion.uid)
        return again

    def _measure(self, job: Job, before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
        now = self._clock()
        if after.accelerator_type is not None:
            held = (after.device_seconds or 0.0) - (before.device_seconds or 0.0)
            # With nothing as well: a series that does not begin at 0 hides what it began with.
            DEVICE_SECONDS.labels(accelerator=after.accelerator_type).inc(max(0.0, held))
        if after.progress is not None and (
            before.progress is None or after.progress.last_update_time != before.progress.last_update_time
        ):
            PROGRESS_LAG.observe(max(0.0, (now - after.progress.last_update_time).total_seconds()))
        created = job.metadata.creation_timestamp
        if (
            after.phase is Phase.RUNNING
            and before.phase is not Phase.RUNNING
            and after.attempts == 1
            and created is not None
        ):
            TIME_TO_RUNNING.observe((now - created).total_seconds())


def _may_wait_in_vain(seen: Observed) -> bool:
    """Whether something of an earlier cluster is all that keeps another one back."""
    ended = seen.ray_job is None or seen.ray_job.has_ended
    return ended and seen.job.status.phase not in ENDED and bool(seen.pods or seen.ray_clusters)


def _is_owned(body: KubernetesObject, uid: str) -> bool:
    owners = cast("dict[str, list[dict[str, str]]]", body["metadata"]).get("ownerReferences") or []
    return any(owner["uid"] == uid for owner in owners)


def _document(status: FineTuneJobStatus) -> JsonValue:
    return cast("JsonValue", status.model_dump(mode="json", by_alias=True, exclude_none=True))
