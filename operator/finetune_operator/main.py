"""Every trigger of the operator, on one screen.

Each only wakes the job that it is about; `controller` looks at it.

python -m finetune_operator
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

import kopf
from prometheus_client import REGISTRY

from finetune_api.crd import PLURAL
from finetune_api.failure import FineTuneError
from finetune_api.manifest import GROUP, VERSION
from finetune_operator.cluster.freshness import Freshness
from finetune_operator.cluster.kubernetes_api import ApiRefusedError, KubernetesApi
from finetune_operator.cluster.work_queue import WorkQueue
from finetune_operator.controller import Controller, Key, NotOursError
from finetune_operator.names import JOB_NAME, JOB_UID
from finetune_operator.observed import Job, ObjectMeta, Pod, RayCluster, read_job
from finetune_operator.settings.configuration import load_configuration
from finetune_operator.telemetry.health import serve
from finetune_operator.telemetry.logs import job_logger
from finetune_operator.telemetry.metrics import RECONCILE_ERRORS, WATCH_STALE, JobCollector

RAY_JOBS = ("ray.io", "v1", "rayjobs")
RAY_CLUSTERS = ("ray.io", "v1", "rayclusters")
OURS = {JOB_UID: kopf.PRESENT}
_OVERTAKEN = (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND)
"""Somebody wrote or deleted the job while it was looked at."""


class _Indexed:
    """What kopf's indexes hold, typed."""

    def __init__(self, pods: kopf.Index[str, Pod], clusters: kopf.Index[str, RayCluster]) -> None:
        self._pods = pods
        self._clusters = clusters

    def pods(self, uid: str) -> Sequence[Pod]:
        return list(self._pods.get(uid, ()))

    def clusters(self, uid: str) -> Sequence[RayCluster]:
        return list(self._clusters.get(uid, ()))


@kopf.on.startup(errors=kopf.ErrorsMode.PERMANENT)
async def start(
    memo: kopf.Memo,
    settings: kopf.OperatorSettings,
    **indexes: Any,  # noqa: ANN401 - kopf passes the indexes below by their names
) -> None:
    """Connects, and begins to look at jobs.

    What is in the way ends the operator: Kubernetes starts it again, later and later.
    """
    try:
        await _start(memo, settings, indexes)
    except (FineTuneError, ApiRefusedError, OSError) as error:
        memo.failure = str(error) or repr(error)
        await _close(memo)  # kopf calls `stop` only of what has started
        raise kopf.PermanentError(memo.failure) from error


async def _start(memo: kopf.Memo, settings: kopf.OperatorSettings, indexes: Mapping[str, Any]) -> None:
    configuration = memo.get("configuration") or load_configuration()
    _settle(settings)
    memo.jobs = {}
    memo.freshness = Freshness()
    memo.api = await KubernetesApi.connect()
    await memo.api.check(configuration.watch_namespaces)
    controller = Controller(
        memo.api,
        configuration,
        _Indexed(indexes["pods_of_jobs"], indexes["clusters_of_jobs"]),
        memo.freshness,
    )
    memo.queue = WorkQueue(controller.look, workers=configuration.workers, on_error=_say)
    memo.collector = JobCollector(lambda: list(memo.jobs.values()))
    REGISTRY.register(memo.collector)
    WATCH_STALE.set_function(memo.freshness.stale_seconds)
    ready = memo.get("ready")
    memo.server = await serve(
        configuration.listen_port,
        live=lambda: "a watch has gone silent" if memo.freshness.is_stale() else None,
        ready=lambda: None if ready is None or ready.is_set() else "starting",
    )


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: object) -> None:
    """Ends what `start` began."""
    await _close(memo)


async def _close(memo: kopf.Memo) -> None:
    """As far as it came."""
    if "queue" in memo:
        await memo.queue.close()
    if "collector" in memo:
        REGISTRY.unregister(memo.collector)
    if "server" in memo:
        await memo.server.cleanup()
    if "api" in memo:
        await memo.api.close()


@kopf.index("", "v1", "pods", labels=OURS)
async def pods_of_jobs(body: kopf.Body, **_: object) -> Mapping[str, Pod]:
    """The pods of each job."""
    pod = Pod.model_validate(_plain(body))
    return {pod.metadata.labels[JOB_UID]: pod}


@kopf.index(*RAY_CLUSTERS, labels=OURS)
async def clusters_of_jobs(body: kopf.Body, **_: object) -> Mapping[str, RayCluster]:
    """The Ray clusters of each job."""
    cluster = RayCluster.model_validate(_plain(body))
    return {cluster.metadata.labels[JOB_UID]: cluster}


@kopf.on.event(GROUP, VERSION, PLURAL)
async def job_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: object) -> None:  # noqa: A002 - kopf's name
    """A FineTuneJob is new, was changed, or is gone."""
    job = read_job(_plain(body))
    _seen(memo, type, job.metadata)
    if type == "DELETED":
        memo.jobs.pop(job.metadata.uid, None)
    else:
        memo.jobs[job.metadata.uid] = job
    memo.queue.wake(_key(job))


@kopf.on.event(*RAY_JOBS, labels=OURS)
@kopf.on.event("", "v1", "configmaps", labels=OURS)
async def child_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: object) -> None:  # noqa: A002
    """A RayJob or a progress record has changed."""
    metadata = ObjectMeta.model_validate(dict(body.metadata))
    _seen(memo, type, metadata)
    _wake_owner(memo, metadata)


@kopf.on.event(*RAY_CLUSTERS, labels=OURS)
@kopf.on.event("", "v1", "pods", labels=OURS)
async def part_changed(body: kopf.Body, memo: kopf.Memo, **_: object) -> None:
    """A Ray cluster or a pod of it has changed."""
    _wake_owner(memo, ObjectMeta.model_validate(dict(body.metadata)))


def _settle(settings: kopf.OperatorSettings) -> None:
    # The operator needs none of what these keep on objects; were kopf to keep something, it should bear our
    # name.
    settings.persistence.finalizer = f"{GROUP}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP, v1=False)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP, v1=False)
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.networking.request_timeout = 30
    # The watches are back seconds after an API server is; after two minutes without one the operator ends,
    # and is started again.
    settings.networking.error_backoffs = (1, 2, 3, *[5] * 24)
    settings.watching.chunk_size = 500
    for resource in (RAY_JOBS, RAY_CLUSTERS, ("", "v1", "pods"), ("", "v1", "configmaps")):
        settings.watching.label_selectors[resource] = JOB_UID


def _seen(memo: kopf.Memo, event: str | None, metadata: ObjectMeta) -> None:
    if event == "DELETED":
        memo.freshness.forget(metadata.uid)
    else:
        memo.freshness.watched(metadata.uid, metadata.resource_version)


def _wake_owner(memo: kopf.Memo, child: ObjectMeta) -> None:
    uid = child.labels[JOB_UID]
    job = memo.jobs.get(uid)
    name = job.metadata.name if job is not None else child.annotations.get(JOB_NAME)
    if name is not None:
        memo.queue.wake(Key(child.namespace, name, uid))


def _key(job: Job) -> Key:
    return Key(job.metadata.namespace, job.metadata.name, job.metadata.uid)


def _say(key: Key, error: Exception) -> None:
    RECONCILE_ERRORS.labels(kind=type(error).__name__).inc()
    logger = job_logger(ObjectMeta(name=key.name, namespace=key.namespace, uid=key.uid))
    told = None if isinstance(error, OSError | NotOursError) or _is_passing(error) else error
    logger.warning(
        "looking at the job failed and is tried again: %s: %s", type(error).__name__, error, exc_info=told
    )


def _is_passing(error: Exception) -> bool:
    """Whether a refusal is one that comes and goes: an object was overtaken, or the API server is starting or busy."""
    if not isinstance(error, ApiRefusedError):
        return False
    return (
        error.status in (*_OVERTAKEN, HTTPStatus.TOO_MANY_REQUESTS)
        or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    )


def _plain(body: kopf.Body) -> dict[str, Any]:
    return cast("dict[str, Any]", dict(body))
