"""Every trigger of the operator, on one screen.

Each only has the job that it is about reconciled, by `controller`. `python -m finetune_operator` starts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus
from itertools import chain
from typing import Any, cast

import kopf
from prometheus_client import REGISTRY

from finetune_api.crd import PLURAL
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import GROUP, VERSION
from finetune_operator.cluster.caches import WatchCaches
from finetune_operator.cluster.kubernetes_api import ApiRefusedError, ApiUnreachableError, KubernetesApi
from finetune_operator.cluster.namespaces import WatchedNamespaces, turn
from finetune_operator.cluster.work_queue import WorkQueue
from finetune_operator.controller import Controller, Key, NotOursError
from finetune_operator.names import JOB_NAME, JOB_UID
from finetune_operator.observed import Job, ObjectMeta, Pod, RayCluster, read_job
from finetune_operator.settings.configuration import load_configuration
from finetune_operator.state import OperatorState
from finetune_operator.telemetry.health import serve
from finetune_operator.telemetry.logs import job_logger
from finetune_operator.telemetry.metrics import (
    NAMESPACES_LEFT_ALONE,
    RECONCILE_ERRORS,
    WATCH_STALE,
    JobCollector,
)

RAY_JOBS = ("ray.io", "v1", "rayjobs")
RAY_CLUSTERS = ("ray.io", "v1", "rayclusters")
OURS = {JOB_UID: kopf.PRESENT}
_OVERTAKEN = (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND)
"""Somebody wrote or deleted the job while it was reconciled."""


@kopf.on.startup(errors=kopf.ErrorsMode.PERMANENT)
async def start(
    memo: kopf.Memo,
    settings: kopf.OperatorSettings,
    **indexes: Any,  # noqa: ANN401 - kopf passes the indexes below by their names
) -> None:
    """Connects to the cluster, serves health and metrics, and makes the queue of jobs to reconcile.

    Whatever prevents that ends the operator: Kubernetes starts it again, later and later.
    """
    if "state" not in memo:  # whoever embeds the handlers, or runs `kopf run`, need not know of it
        memo.state = OperatorState(load_configuration())
    state = _state(memo)
    _configure(settings)
    try:
        await _start(state, indexes)
    except (FineTuneError, ApiRefusedError, OSError) as error:
        state.failure = str(error) or repr(error)
        if isinstance(error, ApiUnreachableError):
            state.failure += f"; {error.hint}"
        await state.closing.aclose()  # kopf calls `stop` only of what has started
        raise kopf.PermanentError(state.failure) from error


async def _start(state: OperatorState, indexes: Mapping[str, Any]) -> None:
    configuration, freshness, ready = state.configuration, state.freshness, state.ready
    api = await KubernetesApi.connect()
    state.closing.push_async_callback(api.close)
    refused = await api.check(configuration.watch_namespaces)

    state.caches = WatchCaches(indexes["pods_of_jobs"], indexes["clusters_of_jobs"])
    controller = Controller(api, configuration, state.caches, freshness, lost_pods=state.lost_pods.of)
    state.queue = WorkQueue(controller.reconcile, workers=configuration.workers, on_error=_log_error)
    state.closing.push_async_callback(state.queue.close)

    await _watch_namespaces(state, api, refused)

    collector = JobCollector(lambda: list(state.jobs.values()))
    REGISTRY.register(collector)
    state.closing.callback(REGISTRY.unregister, collector)
    WATCH_STALE.set_function(freshness.stale_seconds)
    NAMESPACES_LEFT_ALONE.set_function(state.namespaces.count_left_alone)

    server = await serve(
        configuration.listen_port,
        live=partial(_not_alive, state),
        ready=lambda: None if ready is None or ready.is_set() else "starting",
    )
    state.closing.push_async_callback(server.cleanup)


def _not_alive(state: OperatorState) -> str | None:
    """Why the operator must be started again, if it must."""
    if state.freshness.is_stale():
        return "a watch has gone silent"
    if state.namespaces.holds_up() is not None:
        return f"namespace {state.namespaces.holds_up()} was closed while the operator started"
    return None


async def _watch_namespaces(
    state: OperatorState, api: KubernetesApi, refused: Mapping[str, Sequence[str]]
) -> None:
    """Has kopf watch the configured namespaces but for those that are refused, and keeps up with them."""
    names = state.configuration.watch_namespaces
    state.namespaces = WatchedNamespaces(names, api, partial(_turn, state))
    if not names:
        return
    if state.insights is None:
        if refused:
            raise FineTuneError(FailureClass.ACCESS_DENIED, *chain.from_iterable(refused.values()))
        return
    for name in names:
        if name in refused:
            await state.namespaces.leave_alone(name, refused[name])
        else:
            await turn(state.insights, name, True)
    watching = asyncio.create_task(state.namespaces.keep_up(), name="namespaces")
    state.closing.callback(watching.cancel)


async def _turn(state: OperatorState, namespace: str, watched: bool) -> None:
    """Has a namespace watched from now on, or no more; of one that is not, nothing is kept."""
    assert state.insights is not None, "else nobody keeps up with namespaces"
    await turn(state.insights, namespace, watched)
    if not watched:
        for uid in [uid for uid, job in state.jobs.items() if job.metadata.namespace == namespace]:
            del state.jobs[uid]
        state.queue.discard(lambda key: key.namespace == namespace)
        state.caches.forget(namespace)
        state.freshness.start_over()


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: object) -> None:
    """Ends what `start` began."""
    await _state(memo).closing.aclose()


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
    state = _state(memo)
    state.namespaces.handling()
    job = read_job(_plain(body))
    if state.namespaces.is_left_alone(job.metadata.namespace):
        return  # a last word of a watch that has been ended
    _note_version(state, type, job.metadata)
    if type == "DELETED":
        state.jobs.pop(job.metadata.uid, None)
    else:
        state.jobs[job.metadata.uid] = job
    state.queue.wake(_key(job))


@kopf.on.event(*RAY_JOBS, labels=OURS)
@kopf.on.event("", "v1", "configmaps", labels=OURS)
async def child_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: object) -> None:  # noqa: A002
    """A RayJob or a progress record has changed."""
    metadata = ObjectMeta.model_validate(dict(body.metadata))
    _note_version(_state(memo), type, metadata)
    _wake_owner(_state(memo), metadata)


@kopf.on.event(*RAY_CLUSTERS, labels=OURS)
async def cluster_changed(body: kopf.Body, memo: kopf.Memo, **_: object) -> None:
    """A Ray cluster has changed."""
    _wake_owner(_state(memo), ObjectMeta.model_validate(dict(body.metadata)))


@kopf.on.event("", "v1", "pods", labels=OURS)
async def pod_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: object) -> None:  # noqa: A002
    """A pod has changed, or is gone."""
    pod = Pod.model_validate(_plain(body))
    if type == "DELETED":
        _state(memo).lost_pods.deleted(pod.metadata.labels[JOB_UID], pod)
    _wake_owner(_state(memo), pod.metadata)


def _state(memo: kopf.Memo) -> OperatorState:
    return cast("OperatorState", memo.state)


def _configure(settings: kopf.OperatorSettings) -> None:
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


def _note_version(state: OperatorState, event: str | None, metadata: ObjectMeta) -> None:
    if event == "DELETED":
        state.freshness.forget(metadata.uid)
    else:
        state.freshness.watched(metadata.uid, metadata.resource_version)


def _wake_owner(state: OperatorState, child: ObjectMeta) -> None:
    if state.namespaces.is_left_alone(child.namespace):
        return
    uid = child.labels[JOB_UID]
    job = state.jobs.get(uid)
    name = job.metadata.name if job is not None else child.annotations.get(JOB_NAME)
    if name is not None:
        state.queue.wake(Key(child.namespace, name, uid))


def _key(job: Job) -> Key:
    return Key(job.metadata.namespace, job.metadata.name, job.metadata.uid)


def _log_error(key: Key, error: Exception) -> None:
    RECONCILE_ERRORS.labels(kind=type(error).__name__).inc()
    logger = job_logger(ObjectMeta(name=key.name, namespace=key.namespace, uid=key.uid))
    expected = isinstance(error, OSError | NotOursError) or _is_passing(error)
    logger.warning(
        "looking at the job failed and is tried again: %s: %s",
        type(error).__name__,
        error,
        exc_info=None if expected else error,
    )


def _is_passing(error: Exception) -> bool:
    """Whether an error passes by itself: an object was overtaken, or the API server starts or is busy."""
    if not isinstance(error, ApiRefusedError):
        return False
    return (
        error.status in (*_OVERTAKEN, HTTPStatus.TOO_MANY_REQUESTS)
        or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    )


def _plain(body: kopf.Body) -> dict[str, Any]:
    return cast("dict[str, Any]", dict(body))
