"""Pods and Ray clusters as the watches last reported them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import kopf

from finetune_operator.observed import Pod, RayCluster

REMEMBERED_SECONDS = 300.0
"""How long a lost pod is known after it was deleted: as long as its attempt may take to end for it."""
_MOST = 1000


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


class WatchCaches:
    """kopf's indexes of pods and of Ray clusters, both by the UID of the FineTuneJob."""

    def __init__(self, pods: kopf.Index[str, Pod], clusters: kopf.Index[str, RayCluster]) -> None:
        self._pods = pods
        self._clusters = clusters
        self._forgotten: list[Pod | RayCluster] = []

    def pods(self, uid: str) -> Sequence[Pod]:
        """The pods of a job."""
        return [pod for pod in self._pods.get(uid, ()) if self._is_known(pod)]

    def clusters(self, uid: str) -> Sequence[RayCluster]:
        """The Ray clusters of a job."""
        return [cluster for cluster in self._clusters.get(uid, ()) if self._is_known(cluster)]

    def forget(self, namespace: str) -> None:
        """Hides what is known of a namespace whose watches have ended, until a watch reports it anew.

        An index keeps what no watch has reported as deleted.
        """
        indexes: tuple[kopf.Index[str, Pod] | kopf.Index[str, RayCluster], ...] = (self._pods, self._clusters)
        everything = [each for index in indexes for values in index.values() for each in values]
        self._forgotten = [each for each in everything if each.metadata.namespace == namespace] + [
            each for each in self._forgotten if any(each is other for other in everything)
        ]

    def _is_known(self, one: Pod | RayCluster) -> bool:
        return not any(one is each for each in self._forgotten)
