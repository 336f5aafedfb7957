"""What is known of the cluster: as the watches last reported it, and as it was read or written since.

Of an object the latest version counts, whoever brought it: a watch that is late takes nothing back. Resource
versions are compared as numbers, which Kubernetes guarantees for its own storage (KEP-5504).
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from finetune_api.manifest import KIND
from finetune_operator.names import JOB_UID
from finetune_operator.observed import (
    ConfigMap,
    EndedJob,
    Job,
    KubernetesObject,
    Pod,
    RayCluster,
    RayJob,
    read_config_map,
    read_job,
)

REMEMBERED_SECONDS = 300.0
"""How long a lost pod is known after it was deleted: as long as its attempt may take to end for it. And how
long what is gone is known to be, since an answer about it may still be under way."""
_MOST = 1000

Child = RayJob | RayCluster | Pod | ConfigMap
Kind = TypeVar("Kind", RayJob, RayCluster, Pod, ConfigMap)
Version = int

_READ: Mapping[str, Callable[[KubernetesObject], Child]] = {
    "RayJob": RayJob.model_validate,
    "RayCluster": RayCluster.model_validate,
    "Pod": Pod.model_validate,
    "ConfigMap": read_config_map,
}


class LostPods:
    """Pods that were evicted, refused by their node or taken away, and are deleted since.

    KubeRay deletes a pod that has failed as soon as it sees it, and with it the reason.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pods: deque[tuple[float, str, Pod]] = deque(maxlen=_MOST)

    def deleted(self, uid: str, pod: Pod) -> None:
        """Notes a pod of the job with this UID as it was when it was deleted."""
        if pod.has_failed or pod.disruption is not None:
            self._pods.append((self._clock(), uid, pod))

    def of(self, uid: str) -> Sequence[Pod]:
        """Those of a job in the last minutes, the newest first."""
        since = self._clock() - REMEMBERED_SECONDS
        return [pod for deleted, owner, pod in reversed(self._pods) if owner == uid and deleted > since]


@dataclass(slots=True)
class _Entry:
    """An object that exists, by all that is known."""

    version: Version
    job: str
    """The UID of its FineTuneJob, which for a FineTuneJob is its own."""


class WatchCaches:
    """FineTuneJobs and what belongs to them, by the UID of the FineTuneJob.

    What belongs to a job is known by its label. A RayJob that bears the label and is not the job's is not
    known here.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[tuple[str, str], dict[str, _Entry]] = {}
        """By kind and namespace, then by the object's UID."""
        self._jobs: dict[str, Job] = {}
        self._ended: dict[str, EndedJob] = {}
        self._children: dict[str, dict[str, Child]] = {}
        """By the UID of the job, then by that of the object."""
        self._gone: dict[str, tuple[Version, float]] = {}
        """What is gone: at which version at the latest, and since when that is known."""

    def job(self, uid: str) -> Job | None:
        """A FineTuneJob; None when it is not known, or nothing but its end is kept of it."""
        return self._jobs.get(uid)

    def jobs(self) -> Collection[Job]:
        """All FineTuneJobs of which everything is known."""
        return self._jobs.values()

    def ended(self) -> Iterable[EndedJob]:
        """All FineTuneJobs of which nothing but their end is kept."""
        return self._ended.values()

    def key_of(self, uid: str) -> tuple[str, str] | None:
        """The namespace and the name of a FineTuneJob; None when it is not known."""
        ended = self._ended.get(uid)
        if ended is not None:
            return ended.namespace, ended.name
        job = self._jobs.get(uid)
        return (job.metadata.namespace, job.metadata.name) if job is not None else None

    def is_gone(self, uid: str) -> bool:
        """Whether an object is known to be deleted, since a short time ago."""
        return uid in self._gone

    def children(self, kind: type[Kind], uid: str) -> list[Kind]:
        """The objects of a kind that belong to a job, by name."""
        found = [each for each in self._children.get(uid, {}).values() if isinstance(each, kind)]
        return sorted(found, key=lambda each: each.metadata.name)

    def child(self, kind: type[Kind], owner: str, uid: str) -> Kind | None:
        """The object with this UID that belongs to the job with the UID `owner`."""
        found = self._children.get(owner, {}).get(uid)
        return found if isinstance(found, kind) else None

    def put(self, kind: str, body: KubernetesObject) -> bool:
        """Takes over an object as it was reported, read or written; returns whether that is news."""
        metadata = cast("dict[str, str]", body["metadata"])
        uid, version = sys.intern(metadata["uid"]), version_number(metadata.get("resourceVersion", ""))
        entries = self._entries.setdefault((kind, metadata.get("namespace", "")), {})
        before = entries.get(uid)
        if before is not None and version <= before.version:
            return False
        if uid in self._gone and version <= self._gone[uid][0]:
            return False
        self._gone.pop(uid, None)
        if kind == KIND:
            entries[uid] = _Entry(version, uid)
            self._ended.pop(uid, None)
            self._jobs[uid] = read_job(body)
            return True
        child = _READ[kind](body)
        owner = sys.intern(child.metadata.labels.get(JOB_UID, ""))
        if not owner or (kind == "RayJob" and not is_owned(body, owner)):
            return False
        if before is not None and before.job != owner:
            self._drop(before.job, uid)
        entries[uid] = _Entry(version, owner)
        if owner in self._ended and isinstance(child, Pod | ConfigMap):
            return False
        self._children.setdefault(owner, {})[uid] = child
        return True

    def replace(self, job: Job) -> None:
        """Takes over a FineTuneJob of which all but status and version is known."""
        uid, version = job.metadata.uid, version_number(job.metadata.resource_version)
        entry = self._entries.get((KIND, job.metadata.namespace), {}).get(uid)
        if entry is not None and version > entry.version:
            entry.version = version
            self._jobs[uid] = job

    def gone(self, kind: str, namespace: str, uid: str, version: str = "") -> bool:
        """Notes that an object is deleted, at this version or at the one that is known.

        Returns whether that is news.
        """
        known = self._entries.get((kind, namespace), {})
        entry = known.get(uid)
        if entry is not None and 0 < version_number(version) < entry.version:
            return False  # it was out of the watch's sight, and is back
        self._remember_gone(uid, max(version_number(version), entry.version if entry is not None else 0))
        if entry is None:
            return False
        del known[uid]
        if kind == KIND:
            self._jobs.pop(uid, None)
            self._ended.pop(uid, None)
        else:
            self._drop(entry.job, uid)
        return True

    def found(self, kind: str, namespace: str, uid: str, listed: Sequence[KubernetesObject], at: str) -> None:
        """Takes over the list of a job's objects of a kind, as of version `at`: others of them are gone."""
        for body in listed:
            self.put(kind, body)
        there = {cast("dict[str, str]", body["metadata"])["uid"] for body in listed}
        entries = self._entries.get((kind, namespace), {})
        known = [each for each in self._children.get(uid, {}) if each in entries]
        for each in known:
            if each not in there and entries[each].version <= version_number(at):
                self.gone(kind, namespace, each)

    def versions(self, kind: str, namespace: str) -> Mapping[str, Version]:
        """The versions of all objects of a kind in a namespace, or in all for "", by their UIDs."""
        return {
            uid: entry.version
            for (one, where), entries in self._entries.items()
            if one == kind and namespace in (where, "")
            for uid, entry in entries.items()
        }

    def lose(self, kind: str, uid: str, at: Version) -> str | None:
        """Notes that an object was not there at a version.

        Returns the UID of its job; None when a later version is known, or nothing.
        """
        for (one, namespace), entries in self._entries.items():
            entry = entries.get(uid) if one == kind else None
            if entry is not None and entry.version <= at:
                self.gone(kind, namespace, uid)
                return entry.job
        return None

    def keep_only_its_end(self, job: Job) -> None:
        """Keeps of a job that has ended what metrics count, and the Ray clusters that it may still have."""
        metadata, uid = job.metadata, sys.intern(job.metadata.uid)
        if uid not in self._entries.get((KIND, metadata.namespace), {}) or job.status.phase is None:
            return
        self._jobs.pop(uid, None)
        self._ended[uid] = EndedJob(sys.intern(metadata.namespace), metadata.name, job.status.phase)
        for each in [*self._children.get(uid, {}).items()]:
            if not isinstance(each[1], RayCluster):
                self._drop(uid, each[0])

    def forget(self, namespace: str) -> None:
        """Drops all that is known of a namespace that is not watched any more."""
        for kind, where in list(self._entries):
            if where == namespace:
                for uid, entry in self._entries.pop((kind, where)).items():
                    self._jobs.pop(uid, None)
                    self._ended.pop(uid, None)
                    self._drop(entry.job, uid)

    def _remember_gone(self, uid: str, version: Version) -> None:
        now = self._clock()
        for each, (_, since) in list(itertools.islice(self._gone.items(), 2)):
            if now - since > REMEMBERED_SECONDS:
                del self._gone[each]
        self._gone.pop(uid, None)
        self._gone[uid] = (version, now)

    def _drop(self, job: str, uid: str) -> None:
        children = self._children.get(job, {})
        children.pop(uid, None)
        if not children:
            self._children.pop(job, None)


def is_owned(body: KubernetesObject, uid: str) -> bool:
    """Whether an object belongs to the one with this UID."""
    owners = cast("dict[str, list[dict[str, str]]]", body["metadata"]).get("ownerReferences") or []
    return any(owner["uid"] == uid for owner in owners)


def version_number(resource_version: str) -> Version:
    """A resource version as a number, in which later is greater; 0 for what is none."""
    return int(resource_version) if resource_version.isdigit() else 0
