"""Reconciles a job: gathers what is known of it, has `decide` decide, and carries the decision out."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TypeVar, cast

from pydantic import JsonValue

from finetune_api.manifest import KIND
from finetune_api.status import FineTuneJobStatus
from finetune_operator.children.objects import CONFIG_MAP, JOB, RAY_JOB, in_stages
from finetune_operator.cluster.caches import WatchCaches, is_owned
from finetune_operator.cluster.event_recorder import EventRecorder
from finetune_operator.cluster.freshness import Freshness
from finetune_operator.cluster.grouped_lists import GroupedLists
from finetune_operator.cluster.kubernetes_api import ApiRefusedError, KubernetesApi
from finetune_operator.decide.cleanup import release
from finetune_operator.decide.decision import Decision
from finetune_operator.decide.phases import ENDED
from finetune_operator.decide.reconcile import reconcile
from finetune_operator.decide.reconcile import refused as show_refused
from finetune_operator.decide.recovery import attempt_of
from finetune_operator.names import JOB_UID, child_name, prepare_job_name, ray_job_name
from finetune_operator.observed import (
    ConfigMap,
    Job,
    KubernetesObject,
    ObjectMeta,
    Observed,
    Pod,
    PrepareJob,
    RayCluster,
    RayJob,
    read_config_map,
    read_job,
)
from finetune_operator.settings.configuration import Configuration
from finetune_operator.telemetry.logs import job_logger
from finetune_operator.telemetry.metrics import RECONCILES, measure

FINAL = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
"""What the API server says of an object that it will never take."""
REFUSED_AGAIN_AFTER = timedelta(seconds=15)
"""When an object that the API server refuses for now is asked for again."""

CHILDREN = (RAY_JOB, "RayCluster", "Pod", CONFIG_MAP)
"""The kinds of what belongs to a job and is watched."""
SECONDS_A_JOB = 0.5
"""Between two jobs that are reconciled by themselves, at least: of very many, each has its turn later."""

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


class NotOursError(Exception):
    """An object whose name should be that of a child of this job belongs to somebody else."""


@dataclass(frozen=True)
class Key:
    """Which job to reconcile: a later job of the same name has another UID and is another key."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class Refused:
    """An object that the API server does not take."""

    kind: str
    name: str
    refusal: ApiRefusedError


class Controller:
    """Reconciles jobs. It could be replaced at any moment: all that decisions depend on is in the cluster."""

    def __init__(
        self,
        api: KubernetesApi,
        configuration: Configuration,
        caches: WatchCaches,
        freshness: Freshness,
        events: EventRecorder,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        lost_pods: Callable[[str], Sequence[Pod]] = lambda _uid: (),
    ) -> None:
        self._api = api
        self._configuration = configuration
        self._caches = caches
        self._freshness = freshness
        self._events = events
        self._clock = clock
        self._lost_pods = lost_pods
        self._lists = GroupedLists(api.of_jobs)

    async def reconcile(self, key: Key) -> timedelta | None:
        """Reconciles a job once; returns after which time to do so again, if ever.

        Raises ApiRefusedError or OSError when a call to the API server fails, and NotOursError when somebody
        else's object has the name of the job's RayJob.
        """
        with RECONCILES.time():
            job = self._caches.job(key.uid) or await self._read_job(key)
            if job is None:
                return await self._release(key)
            live = job.status.attempts is None
            observed = await self._observe(job, live=live)
            decision = reconcile(observed, self._configuration, self._clock())
            if _is_grave(job, decision) or _waits_for_deletions(observed):
                # Before anything is made, deleted or ended, what that depends on is read from the API server;
                # and a watch may never report that something is gone.
                if not live:
                    observed = await self._observe(job, live=True)
                    decision = reconcile(observed, self._configuration, self._clock())
                if (decision.create or decision.delete) and decision.status == job.status:
                    # Else writing the status shows whether what is known of the job is still true.
                    read = await self._read_job(key)
                    if read is None or read.metadata.resource_version != job.metadata.resource_version:
                        return timedelta()
            requeue_after = await self._carry_out(job, decision)
            if decision.status.phase in ENDED:
                self._caches.keep_only_its_end(job.model_copy(update={"status": decision.status}))
                return requeue_after
            resync = self._until_resync(key.uid)
            return min(requeue_after, resync) if requeue_after is not None else resync

    def _until_resync(self, uid: str) -> timedelta:
        """The time until a job is reconciled by itself: each has a moment of its own in the period."""
        period = max(self._configuration.resync_seconds, len(self._caches.jobs()) * SECONDS_A_JOB)
        turn = zlib.crc32(uid.encode()) / 2**32 * period
        return timedelta(seconds=period - (self._clock().timestamp() - turn) % period)

    async def _read_job(self, key: Key) -> Job | None:
        """The job as the API server has it now; None when it is gone."""
        if self._caches.is_gone(key.uid):
            return None
        body = await self._api.get(KIND, key.namespace, key.name)
        job = read_job(body) if body is not None else None
        if body is None or job is None or job.metadata.uid != key.uid:
            self._caches.gone(KIND, key.namespace, key.uid)
            return None
        self._caches.put(KIND, body)
        self._freshness.expect(key.uid, job.metadata.resource_version)
        return self._caches.job(key.uid) or job

    async def _observe(self, job: Job, *, live: bool = False) -> Observed:
        """All that is known of a job; if `live`, what belongs to it is read anew.

        Of a job that has begun, what should be there and is not known is asked for by its name: whoever takes
        the label from an object hides it from the watch.
        """
        uid = job.metadata.uid
        if live:
            await asyncio.gather(*(self._read_all(kind, job) for kind in CHILDREN))
        ray_jobs = self._caches.children(RayJob, uid)
        maps, name = self._caches.children(ConfigMap, uid), child_name(job.metadata.name, uid)
        config_map = next((each for each in maps if each.metadata.name == name), None)
        attempt = job.status.attempts or max((attempt_of(each) for each in ray_jobs), default=1)
        begun = job.status.attempts is not None or config_map is not None or bool(ray_jobs)
        name = ray_job_name(job.metadata.name, uid, attempt)
        ray_job = next((each for each in ray_jobs if each.metadata.name == name), None)
        if ray_job is None and begun and (live or job.status.ray_job_name is not None):
            ray_job = await self._get_ray_job(job, name)
        prepare_job = None
        if ray_job is None and begun:
            found = await self._get_own(JOB, job, prepare_job_name(job.metadata.name, uid, attempt))
            prepare_job = PrepareJob.model_validate(found) if found is not None else None
        # Last: what has ended by then has written its record.
        if config_map is None and begun and job.status.phase not in ENDED:
            config_map = await self._get_config_map(job)
        return Observed(
            job=job,
            ray_job=ray_job,
            prepare_job=prepare_job,
            ray_clusters=tuple(self._caches.children(RayCluster, uid)),
            pods=tuple(self._caches.children(Pod, uid)),
            lost_pods=tuple(self._lost_pods(uid)),
            record=config_map.record if config_map is not None else None,
        )

    async def _read_all(self, kind: str, job: Job) -> None:
        """Reads all objects of a kind that belong to a job."""
        namespace, uid = job.metadata.namespace, job.metadata.uid
        listed = await self._lists.of_job(kind, namespace, uid)
        self._caches.found(kind, namespace, uid, listed.objects, listed.version)
        if kind in (RAY_JOB, CONFIG_MAP):
            for each in listed.objects:
                self._expect(each)

    async def _get_ray_job(self, job: Job, name: str) -> RayJob | None:
        found = await self._get_own(RAY_JOB, job, name)
        if found is None:
            return None
        if job.status.phase not in ENDED:
            self._caches.put(RAY_JOB, found)
            self._expect(found)
        return RayJob.model_validate(found)

    async def _get_config_map(self, job: Job) -> ConfigMap | None:
        name = child_name(job.metadata.name, job.metadata.uid)
        found = await self._api.get(CONFIG_MAP, job.metadata.namespace, name)
        if found is None:
            return None
        self._caches.put(CONFIG_MAP, found)
        self._expect(found)
        return read_config_map(found)

    def _expect(self, child: KubernetesObject) -> None:
        """Has the watch owe this version of an object that belongs to a job."""
        metadata = ObjectMeta.model_validate(child["metadata"])
        # Whoever takes the label away hides the object from the watch.
        if JOB_UID in metadata.labels:
            self._freshness.expect(metadata.uid, metadata.resource_version)

    async def _get_own(self, kind: str, job: Job, name: str) -> KubernetesObject | None:
        """An object that was made for a job; None when there is none."""
        found = await self._api.get(kind, job.metadata.namespace, name)
        if found is not None and not is_owned(found, job.metadata.uid):
            raise NotOursError(
                f"{kind} {name} is there and is not this job's: delete it, or rename the FineTuneJob"
            )
        return found

    async def _carry_out(self, job: Job, decision: Decision) -> timedelta | None:
        written = await self._show(job, decision)
        for deletion in decision.delete:
            job_logger(job.metadata).info("deleting %s %s", deletion.kind, deletion.name)
            await self._api.delete(deletion.kind, job.metadata.namespace, deletion.name, deletion.uid)
        refused = await self._make_all(job, decision.create)
        if refused is not None:
            return await self._show_refusal(written, refused)
        return decision.requeue_after

    async def _make_all(self, job: Job, manifests: Sequence[KubernetesObject]) -> Refused | None:
        """Makes what is not there yet; returns the first that the API server refuses."""
        for stage in in_stages(manifests):
            for refused in await together(*(self._make(job, manifest) for manifest in stage)):
                if refused is not None:
                    return refused
        return None

    async def _make(self, job: Job, manifest: KubernetesObject) -> Refused | None:
        kind, name = str(manifest["kind"]), cast("dict[str, str]", manifest["metadata"])["name"]
        try:
            made = await self._api.create(manifest)
        except ApiRefusedError as refusal:
            # A conflict about something that the server counts passes by itself.
            if refusal.status == HTTPStatus.CONFLICT:
                raise
            return Refused(kind, name, refusal)
        if made is not None:
            level = logging.INFO if kind in (RAY_JOB, JOB) else logging.DEBUG
            job_logger(job.metadata).log(level, "made %s %s", kind, name)
        elif kind == RAY_JOB:
            await self._get_ray_job(job, name)
        elif kind == JOB:
            await self._get_own(kind, job, name)
        if made is not None and kind in (RAY_JOB, CONFIG_MAP):
            self._caches.put(kind, made)
            self._expect(made)
        return None

    async def _show(self, job: Job, decision: Decision) -> Job:
        """Shows a status that is not the job's already, and its events; returns the job as it is then."""
        if decision.status == job.status:
            return job
        written = await self._write_status(job, decision.status)
        now = self._clock()
        measure(job, decision.status, now)
        self._events.record(job.metadata, decision.events, now)
        return written

    async def _write_status(self, job: Job, status: FineTuneJobStatus) -> Job:
        document = cast("JsonValue", status.model_dump(mode="json", by_alias=True, exclude_none=True))
        metadata = job.metadata
        try:
            version = await self._api.replace_status(metadata, document)
        except ApiRefusedError as refusal:
            if refusal.status in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                # What is known of the job is not true any more, and its watch may be late.
                await self._read_job(Key(metadata.namespace, metadata.name, metadata.uid))
            raise
        self._freshness.expect(metadata.uid, version)
        written = job.model_copy(
            update={
                "metadata": metadata.model_copy(update={"resource_version": version}),
                "status": FineTuneJobStatus.model_validate(document),
            }
        )
        self._caches.replace(written)
        return written

    async def _show_refusal(self, job: Job, refused: Refused) -> timedelta | None:
        """Shows that an object cannot be created; returns after which time to try again, None for never."""
        refusal = refused.refusal
        message = f"the API server refuses {refused.kind} {refused.name}: {refusal.message}"
        if refusal.status == HTTPStatus.NOT_FOUND and refused.kind == RAY_JOB:
            message = (
                f"{refused.kind} {refused.name} cannot be made: KubeRay's resource definitions are not"
                " installed"
            )
        job_logger(job.metadata).warning("%s", message)
        decision = show_refused(job, job.status, message, final=refusal.status in FINAL, now=self._clock())
        await self._show(job, decision)
        if decision.status.phase in ENDED:
            self._caches.keep_only_its_end(job.model_copy(update={"status": decision.status}))
            return None
        return REFUSED_AGAIN_AFTER

    async def _release(self, key: Key) -> timedelta | None:
        """Frees the devices of a job that is gone; returns after which time to check that they are."""
        self._events.forget(key.uid)
        clusters = self._caches.children(RayCluster, key.uid)
        if not clusters:
            return None
        listed = await self._lists.of_job(RAY_JOB, key.namespace, key.uid)
        ray_jobs = [RayJob.model_validate(each) for each in listed.objects]
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


def _is_grave(job: Job, decision: Decision) -> bool:
    """Whether a decision cannot be taken back: it must not depend on a watch that is late."""
    ends = decision.status.phase in ENDED and job.status.phase not in ENDED
    return bool(decision.create or decision.delete) or ends


def _waits_for_deletions(observed: Observed) -> bool:
    """Whether something of an earlier cluster is all that keeps the job's next cluster back."""
    ended = observed.ray_job is None or observed.ray_job.has_ended
    return ended and observed.job.status.phase not in ENDED and bool(observed.pods or observed.ray_clusters)


async def together(*calls: Awaitable[Result]) -> list[Result]:
    """The results of calls that are made side by side; the first error once all of them are over."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[Result]", results)
