"""Pods and Ray clusters as the watches last reported them."""

from __future__ import annotations

from collections.abc import Sequence

import kopf

from finetune_operator.observed import Pod, RayCluster


class WatchCaches:
    """kopf's indexes of pods and of Ray clusters, both by the UID of the FineTuneJob."""

    def __init__(self, pods: kopf.Index[str, Pod], clusters: kopf.Index[str, RayCluster]) -> None:
        self._pods = pods
        self._clusters = clusters

    def pods(self, uid: str) -> Sequence[Pod]:
        """The pods of a job."""
        return list(self._pods.get(uid, ()))

    def clusters(self, uid: str) -> Sequence[RayCluster]:
        """The Ray clusters of a job."""
        return list(self._clusters.get(uid, ()))
