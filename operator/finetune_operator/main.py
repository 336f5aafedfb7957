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
from finetune_api.manifest import GROUP, KIND, VERSION
from finetune_operator.cluster.comparison import Comparison
from finetune_operator.cluster.event_recorder import EventRecorder
from finetune_operator.cluster.kubernetes_api import ApiRefusedError, ApiUnreachableError, KubernetesApi
from finetune_operator.cluster.namespaces import WatchedNamespaces, turn
from finetune_operator.cluster.work_queue import WorkQueue
from finetune_operator.controller import Controller, Key, NotOursError
from finetune_operator.decide.cleanup import is_done_with
from finetune_operator.decide.record import is_only_further
from finetune_operator.names import JOB_NAME, JOB_UID
from finetune_operator.observed import ConfigMap, Job, ObjectMeta, Pod, RayJob
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
async def start(memo: kopf.Memo, settings: kopf.OperatorSettings, **_: object) -> None:
    """Connects to the cluster, serves health and metrics, and makes the queue of jobs to reconcile.

    Whatever prevents that ends the operator: Kubernetes starts it again, later and later.
    """
    if "state" not in memo:  # whoever embeds the handlers, or runs `kopf run`, need not know of it
        memo.state = OperatorState(load_configuration())
    state = _state(memo)
    _configure(settings)
    try:
        await _start(state)
    except (FineTuneError, ApiRefusedError, OSError) as error:
        state.failure = str(error) or repr(error)
        if isinstance(error, ApiUnreachableError):
            state.failure += f"; {error.hint}"
        await state.closing.aclose()  # kopf calls `stop` only of what has started
        raise kopf.PermanentError(state.failure) from error


async def _start(state: OperatorState) -> None:
    configuration, freshness, caches, ready = state.configuration, state.freshness, state.caches, state.ready
    api = await KubernetesApi.connect()
    state.closing.push_async_callback(api.close)
    refused = await api.check(configuration.watch_namespaces)

    events = EventRecorder(api.post_event)
    state.closing.push_async_callback(events.close)
    controller = Controller(api, configuration, caches, freshness, events, lost_pods=state.lost_pods.of)
    state.queue = WorkQueue(controller.reconcile, workers=configuration.workers, on_error=_log_error)
    state.closing.push_async_callback(state.queue.close)

    state.comparison = Comparison(api, caches, freshness, lambda: _watched(state), partial(_wake, state))
    state.namespaces = WatchedNamespaces(configuration.watch_namespaces, api, partial(_turn, state))

    collector = JobCollector(lambda: list(caches.jobs()), lambda: list(caches.ended()))
    REGISTRY.register(collector)
    state.closing.callback(REGISTRY.unregister, collector)
    WATCH_STALE.set_function(freshness.stale_seconds)
    NAMESPACES_LEFT_ALONE.set_function(state.namespaces.count_left_alone)

    server = await serve(
        configuration.listen_port,
        live=lambda: "a watch has gone silent" if freshness.is_stale() else None,
        ready=lambda: None if ready is None or ready.is_set() else "starting",
    )
    state.closing.push_async_callback(server.cleanup)
    await _watch_namespaces(state, refused)
    comparing = asyncio.create_task(state.comparison.keep_up(configuration.resync_seconds), name="comparison")
    state.closing.callback(comparing.cancel)


async def _watch_namespaces(state: OperatorState, refused: Mapping[str, Sequence[str]]) -> None:
    """Has kopf watch the configured namespaces but for those that are refused, and keeps up with them."""
    names = state.configuration.watch_namespaces
    if state.insights is None and refused:
        raise FineTuneError(FailureClass.ACCESS_DENIED, *chain.from_iterable(refused.values()))
    if state.insights is None or not names:
        for name in names or [""]:
            await _take_up(state, name)
        return
    for name in names:
        if name in refused:
            await state.namespaces.leave_alone(name, refused[name])
        else:
            await _turn(state, name, True)
    watching = asyncio.create_task(state.namespaces.keep_up(), name="namespaces")
    state.closing.callback(watching.cancel)


async def _turn(state: OperatorState, namespace: str, watched: bool) -> None:
    """Has a namespace watched from now on, or no more; of one that is not, nothing is kept."""
    assert state.insights is not None, "else nobody keeps up with namespaces"
    if watched:
        await _take_up(state, namespace)
    await turn(state.insights, namespace, watched)
    if not watched:
        state.queue.discard(lambda key: key.namespace == namespace)
        state.caches.forget(namespace)
        state.freshness.start_over()


async def _take_up(state: OperatorState, namespace: str) -> None:
    """Learns what there is in a namespace, or in all for "".

    Has the jobs looked at that may need something.
    """
    caches = state.caches
    versions = await state.comparison.fill(
        namespace, lambda job: is_done_with(job, caches.children(RayJob, job.metadata.uid))
    )
    state.beginnings.note(namespace, versions)
    for job in caches.jobs():
        if namespace in (job.metadata.namespace, ""):
            state.queue.wake(_key(job))


def _watched(state: OperatorState) -> list[str]:
    """The namespaces that are watched now, or "" for all."""
    names = state.configuration.watch_namespaces
    return [name for name in names if not state.namespaces.is_left_alone(name)] if names else [""]


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: object) -> None:
    """Ends what `start` began."""
    await _state(memo).closing.aclose()


@kopf.on.event(GROUP, VERSION, PLURAL)
async def job_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: object) -> None:  # noqa: A002 - kopf's name
    """A FineTuneJob is new, was changed, or is gone."""
    state, uid = _state(memo), str(body.metadata.uid)
    if _take_over(state, KIND, type, body):
        state.queue.wake(Key(str(body.metadata.namespace), str(body.metadata.name), uid))


@kopf.on.event(*RAY_JOBS, labels=OURS)
async def ray_job_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: object) -> None:  # noqa: A002
    """A RayJob has changed, or is gone."""
    if _take_over(_state(memo), "RayJob", type, body):
        _wake_owner(_state(memo), body)


@kopf.on.event("", "v1", "configmaps", labels=OURS)
async def record_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: object) -> None:  # noqa: A002
    """A progress record has changed, or is gone."""
    state, uid = _state(memo), str(body.metadata.uid)
    owner = str(body.metadata.labels[JOB_UID])
    before = state.caches.child(ConfigMap, owner, uid)
    if _take_over(state, "ConfigMap", type, body):
        after = state.caches.child(ConfigMap, owner, uid)
        numbers = before is not None and after is not None and is_only_further(before.record, after.record)
        _wake_owner(state, body, can_wait=numbers)


@kopf.on.event(*RAY_CLUSTERS, labels=OURS)
async def cluster_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: object) -> None:  # noqa: A002
    """A Ray cluster has changed, or is gone."""
    if _take_over(_state(memo), "RayCluster", type, body):
        _wake_owner(_state(memo), body)


@kopf.on.event("", "v1", "pods", labels=OURS)
async def pod_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: object) -> None:  # noqa: A002
    """A pod has changed, or is gone."""
    if type == "DELETED":
        pod = Pod.model_validate(_plain(body))
        _state(memo).lost_pods.deleted(pod.metadata.labels[JOB_UID], pod)
    if _take_over(_state(memo), "Pod", type, body):
        _wake_owner(_state(memo), body)


class _NoDifferences(kopf.DiffBaseStorage):
    """Spares kopf a copy of each object for every event, by which it would tell what has changed."""

    def build(self, **_: object) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: object) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: object) -> None:
        pass


def _state(memo: kopf.Memo) -> OperatorState:
    return cast("OperatorState", memo.state)


def _configure(settings: kopf.OperatorSettings) -> None:
    # The operator needs none of what these keep on objects; were kopf to keep something, it should bear our
    # name.
    settings.persistence.finalizer = f"{GROUP}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP, v1=False)
    settings.persistence.diffbase_storage = _NoDifferences()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.networking.request_timeout = 30
    # An object that is quiet for so long has no task any more, which would hold its last state as well.
    settings.queueing.idle_timeout = 0.1
    # The watches are back seconds after an API server is; after two minutes without one the operator ends,
    # and is started again.
    settings.networking.error_backoffs = (1, 2, 3, *[5] * 24)
    settings.watching.chunk_size = 500
    for resource in (RAY_JOBS, RAY_CLUSTERS, ("", "v1", "pods"), ("", "v1", "configmaps")):
        settings.watching.label_selectors[resource] = JOB_UID


def _take_over(state: OperatorState, kind: str, event: str | None, body: kopf.Body) -> bool:
    """Takes over what a watch reports; returns whether it is news."""
    metadata = cast("dict[str, str]", body["metadata"])
    namespace, uid, version = metadata["namespace"], metadata["uid"], metadata["resourceVersion"]
    if state.namespaces.is_left_alone(namespace):
        return False  # a last word of a watch that has been ended
    if event == "DELETED":
        state.freshness.forget(uid)
        return state.caches.gone(kind, namespace, uid, version)
    state.freshness.watched(uid, version)
    return state.caches.put(kind, _plain(body))


def _wake_owner(state: OperatorState, child: kopf.Body, *, can_wait: bool = False) -> None:
    uid = str(child.metadata.labels[JOB_UID])
    key = state.caches.key_of(uid)
    name = key[1] if key is not None else child.metadata.annotations.get(JOB_NAME)
    if name is not None:
        state.queue.wake(Key(str(child.metadata.namespace), str(name), uid), can_wait=can_wait)


def _wake(state: OperatorState, uid: str) -> None:
    """Has a job looked at of which something is gone."""
    key = state.caches.key_of(uid)
    if key is not None:
        state.queue.wake(Key(*key, uid))


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
