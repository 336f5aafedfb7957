"""What is known of pods and Ray clusters, when their watches have ended and begun again."""

from __future__ import annotations

from typing import cast

import kopf

from finetune_operator.cluster.caches import WatchCaches
from finetune_operator.observed import ObjectMeta, Pod, RayCluster


def pod(name: str, namespace: str) -> Pod:
    return Pod(metadata=ObjectMeta(name=name, namespace=namespace, uid=name))


def test_what_is_forgotten_is_known_again_when_a_watch_has_reported_it_anew() -> None:
    pods = {"job": [pod("stays", "a"), pod("goes", "b"), pod("is-deleted-meanwhile", "b")]}
    clusters = {"job": [RayCluster(metadata=ObjectMeta(name="c", namespace="b", uid="c"))]}
    caches = WatchCaches(cast("kopf.Index[str, Pod]", pods), cast("kopf.Index[str, RayCluster]", clusters))

    caches.forget("b")
    assert [each.name for each in caches.pods("job")] == ["stays"]
    assert caches.clusters("job") == []

    pods["job"][1] = pod("goes", "b")
    assert [each.name for each in caches.pods("job")] == ["stays", "goes"]

    caches.forget("another")
    assert [each.name for each in caches.pods("job")] == ["stays", "goes"]
    assert caches.pods("nobody") == []
