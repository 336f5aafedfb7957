"""Reconciles a job: gathers what is known of it, has `decide` decide, and carries the decision out."""

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
from finetune_api.status import FineTuneJobStatus
from finetune_operator.children.objects import CONFIG_MAP, JOB, RAY_JOB
from finetune_operator.cluster.freshness import Freshness
from finetune_operator.cluster.kubernetes_api import ApiRefusedError, KubernetesApi
from finetune_operator.decide.cleanup import release
from finetune_operator.decide.decision import Decision
from finetune_operator.decide.event_limit import EventLimit
from finetune_operator.decide.events import Event
from finetune_operator.decide.phases import ENDED
from finetune_operator.decide.reconcile import reconcile, refused
from finetune_operator.decide.recovery import attempt_of
from finetune_operator.names import JOB_UID, child_name, prepare_job_name, ray_job_name
from finetune_operator.observed import (
    Job,
    KubernetesObject,
    ObjectMeta,
    Observed,
    Pod,
    PrepareJob,
    RayCluster,
    RayJob,
    read_job,
)
from finetune_operator.settings.configuration import Configuration
from finetune_operator.telemetry.logs import job_logger
from finetune_operator.telemetry.metrics import EVENTS_LOST, RECONCILES, measure

FINAL = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
"""What the API server says of an object that it will never take."""
REFUSED_AGAIN_AFTER = timedelta(seconds=15)
"""When an object that the API server refuses for now is asked for again."""

_log = logging.getLogger(__name__)


class NotOursError(Exception):
    """An object whose name should be that of a child of this job belongs to somebody else."""


@dataclass(frozen=True)
class Key:
    """Which job to reconcile: a later job of the same name has another UID and is another key."""

    namespace: str
    name: str
    uid: str


class Caches(Protocol):
    """Pods and Ray clusters as the watches last reported them, by the UID of their job."""

    def pods(self, uid: str) -> Sequence[Pod]:
        """The pods of a job."""

    def clusters(self, uid: str) -> Sequence[RayCluster]:
        """The Ray clusters of a job."""


class Controller:
    """Reconciles jobs. It could be replaced at any moment: all that decisions depend on is in the cluster."""

    def __init__(
        self,
        api: KubernetesApi,
        configuration: Configuration,
        caches: Caches,
        freshness: Freshness,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        lost_pods: Callable[[str], Sequence[Pod]] = lambda _uid: (),
    ) -> None:
        self._api = api
        self._configuration = configuration
        self._caches = caches
        self._freshness = freshness
        self._clock = clock
        self._lost_pods = lost_pods
        self._event_limit = EventLimit()

    async def reconcile(self, key: Key) -> timedelta | None:
        """Reconciles a job once; returns after which time to do so again, if ever.

        Raises ApiRefusedError or OSError when a call to the API server fails, and NotOursError when somebody
        else's object has the name of the job's RayJob.
        """
        with RECONCILES.time():
            body = await self._api.get(KIND, key.namespace, key.name)
            job = read_job(body) if body is not None else None
            if body is None or job is None or job.metadata.uid != key.uid:
                return await self._release(key)
            self._freshness.expect(key.uid, job.metadata.resource_version)
            observed = await self._observe(job)
            decision = reconcile(observed, self._configuration, self._clock())
            if decision.create or _waits_for_deletions(observed):
                # Before anything is made, what may be in its way is read from the API server; and a watch may
                # never report that something is gone.
                observed = await self._observe(job, live=True)
                decision = reconcile(observed, self._configuration, self._clock())
            requeue_after = await self._carry_out(body, job, decision)
            resync = (
                None
                if decision.status.phase in ENDED
                else timedelta(seconds=self._configuration.resync_seconds)
            )
            return min((each for each in (requeue_after, resync) if each is not None), default=None)

    async def _observe(self, job: Job, *, live: bool = False) -> Observed:
        """All that is known of a job; if `live`, its pods and Ray clusters are read anew, not cached."""
        namespace, uid = job.metadata.namespace, job.metadata.uid
        attempt = job.status.attempts or await self._newest_attempt(job)
        ray_job = await self._get_own(RAY_JOB, job, ray_job_name(job.metadata.name, uid, attempt))
        prepare_job = None
        if ray_job is None:
            prepare_job = await self._get_own(JOB, job, prepare_job_name(job.metadata.name, uid, attempt))
        if live:
            pods = [Pod.model_validate(each) for each in await self._api.of_job("Pod", namespace, uid)]
            clusters = [
                RayCluster.model_validate(each)
                for each in await self._api.of_job("RayCluster", namespace, uid)
            ]
        else:
            pods, clusters = list(self._caches.pods(uid)), list(self._caches.clusters(uid))
        # Last: what has ended by then has written its record.
        config_map = None
        if job.status.phase not in ENDED:
            config_map = await self._api.get(CONFIG_MAP, namespace, child_name(job.metadata.name, uid))
        for child in (ray_job, config_map):
            metadata = ObjectMeta.model_validate(child["metadata"]) if child is not None else None
            # Whoever takes the label away hides the object from the watch.
            if metadata is not None and JOB_UID in metadata.labels:
                self._freshness.expect(metadata.uid, metadata.resource_version)
        data = (config_map or {}).get("data")
        record = data.get(RECORD_KEY) if isinstance(data, dict) else None
        return Observed(
            job=job,
            ray_job=RayJob.model_validate(ray_job) if ray_job is not None else None,
            prepare_job=PrepareJob.model_validate(prepare_job) if prepare_job is not None else None,
            ray_clusters=tuple(sorted(clusters, key=lambda each: each.metadata.name)),
            pods=tuple(sorted(pods, key=lambda each: each.metadata.name)),
            lost_pods=tuple(self._lost_pods(uid)),
            record=str(record) if record is not None else None,
        )

    async def _get_own(self, kind: str, job: Job, name: str) -> KubernetesObject | None:
        """An object that was made for a job; None when there is none."""
        found = await self._api.get(kind, job.metadata.namespace, name)
        if found is not None and not _is_owned(found, job.metadata.uid):
            raise NotOursError(
                f"{kind} {name} is there and is not this job's: delete it, or rename the FineTuneJob"
            )
        return found

    async def _newest_attempt(self, job: Job) -> int:
        """The attempt of a job whose status does not say it: that of its newest RayJob, 1 without any."""
        found = await self._api.of_job(RAY_JOB, job.metadata.namespace, job.metadata.uid)
        return max((attempt_of(RayJob.model_validate(each)) for each in found), default=1)

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
                # A conflict about something that the server counts passes by itself.
                if refusal.status == HTTPStatus.CONFLICT:
                    raise
                return await self._show_refusal(body, job, decision.status, manifest, refusal)
            if made:
                job_logger(job.metadata).info("made %s %s", manifest["kind"], metadata["name"])
        return decision.requeue_after

    async def _show(self, body: KubernetesObject, job: Job, decision: Decision) -> KubernetesObject:
        """Makes a status public that is not the job's already; returns the FineTuneJob as it is then."""
        if decision.status == job.status:
            return body
        written = await self._write_status(body, job, decision.status)
        measure(job, decision.status, self._clock())
        await self._post_events(job, decision.events)
        return written

    async def _write_status(
        self, body: KubernetesObject, job: Job, status: FineTuneJobStatus
    ) -> KubernetesObject:
        document = cast("JsonValue", status.model_dump(mode="json", by_alias=True, exclude_none=True))
        written = await self._api.replace_status({**body, "status": document})
        version = cast("dict[str, str]", written["metadata"])["resourceVersion"]
        self._freshness.expect(job.metadata.uid, version)
        return written

    async def _post_events(self, job: Job, events: Sequence[Event]) -> None:
        """Posts and logs as many of the events as the job may cause."""
        admitted = self._event_limit.admitted(job.metadata.uid, events, self._clock())
        if len(admitted) < len(events):
            EVENTS_LOST.inc(len(events) - len(admitted))
            job_logger(job.metadata).warning(
                "%d events are not posted: there are too many", len(events) - len(admitted)
            )
        for event in admitted:
            job_logger(job.metadata).info("%s: %s", event.reason, event.message)
            try:
                await self._api.post_event(job.metadata, event)
            except (ApiRefusedError, OSError) as error:  # nothing depends on an event
                EVENTS_LOST.inc()
                job_logger(job.metadata).warning("the event %s could not be posted: %s", event.reason, error)

    async def _show_refusal(
        self,
        body: KubernetesObject,
        job: Job,
        status: FineTuneJobStatus,
        manifest: KubernetesObject,
        refusal: ApiRefusedError,
    ) -> timedelta | None:
        """Shows that an object cannot be created; returns after which time to try again, None for never."""
        name = cast("dict[str, str]", manifest["metadata"])["name"]
        message = f"the API server refuses {manifest['kind']} {name}: {refusal.message}"
        if refusal.status == HTTPStatus.NOT_FOUND and manifest["kind"] == RAY_JOB:
            message = (
                f"{manifest['kind']} {name} cannot be made: KubeRay's resource definitions are not installed"
            )
        job_logger(job.metadata).warning("%s", message)
        decision = refused(job, status, message, final=refusal.status in FINAL, now=self._clock())
        await self._show(body, job.model_copy(update={"status": status}), decision)
        return None if decision.status.phase in ENDED else REFUSED_AGAIN_AFTER

    async def _release(self, key: Key) -> timedelta | None:
        """Frees the devices of a job that is gone; returns after which time to check that they are."""
        self._event_limit.forget(key.uid)
        clusters = list(self._caches.clusters(key.uid))
        if not clusters:
            return None
        ray_jobs = [
            RayJob.model_validate(each) for each in await self._api.of_job(RAY_JOB, key.namespace, key.uid)
        ]
        deletions, requeue_after = release(ray_jobs, clusters, self._clock())
        for deletion in deletions:
            _log.warning(
                "deleting %s %s/%s of a deleted job, since KubeRay has not",
                deletion.kind,
                key.namespace,
                deletion.name,
            )
            await self._api.delete(deletion.kind, key.namespace, deletion.name, deletion.uid)
        return requeue_after


def _waits_for_deletions(observed: Observed) -> bool:
    """Whether something of an earlier cluster is all that keeps the job's next cluster back."""
    ended = observed.ray_job is None or observed.ray_job.has_ended
    return ended and observed.job.status.phase not in ENDED and bool(observed.pods or observed.ray_clusters)


def _is_owned(body: KubernetesObject, uid: str) -> bool:
    owners = cast("dict[str, list[dict[str, str]]]", body["metadata"]).get("ownerReferences") or []
    return any(owner["uid"] == uid for owner in owners)
