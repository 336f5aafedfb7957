"""Compares what is known of the cluster with lists of it, from the start on and for ever.

A watch that has to begin anew reports all that there is, but not what was deleted meanwhile; and one that has
gone silent reports nothing. Both are seen here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from finetune_api.manifest import KIND
from finetune_operator.cluster.caches import WatchCaches, version_number
from finetune_operator.cluster.freshness import Freshness
from finetune_operator.cluster.kubernetes_api import WATCHED, ApiRefusedError, KubernetesApi
from finetune_operator.observed import Job

FILLED = ("RayCluster", "RayJob", KIND, "Pod", "ConfigMap")
"""In which order what is watched is read. Whether a job is done with depends on its RayJobs."""
PAUSE_SECONDS = 1.0
"""After each page, so that many objects are no burst of work."""

AT_A_TIME = 25
"""Objects of a page that are taken over before others go on: the call for the next page is one of them."""

_log = logging.getLogger(__name__)


class Comparison:
    """Keeps the caches from missing what is gone.

    `namespaces` says which are watched, "" being all; `gone` is called with the UID of each job of which
    something is gone that no watch has told of.
    """

    def __init__(
        self,
        api: KubernetesApi,
        caches: WatchCaches,
        freshness: Freshness,
        namespaces: Callable[[], Sequence[str]],
        gone: Callable[[str], None],
    ) -> None:
        self._api = api
        self._caches = caches
        self._freshness = freshness
        self._namespaces = namespaces
        self._gone = gone

    async def fill(self, namespace: str, is_done_with: Callable[[Job], bool]) -> Mapping[str, str]:
        """Reads all that there is, before the watches of a namespace begin.

        Returns as of which version, by kind.

        Of a job that `is_done_with` nothing but its end is kept, from the page on that it stands on: all of
        many that have ended would take much memory together. Pods and records of those are read after them,
        and dropped at once.
        """
        versions: dict[str, str] = {}
        for kind in FILLED:
            async for page in self._api.pages(kind, namespace):
                versions.setdefault(kind, page.version)
                for number, each in enumerate(page.objects):
                    if number % AT_A_TIME == 0:
                        await asyncio.sleep(0)
                    metadata = cast("dict[str, str]", each["metadata"])
                    self._caches.put(kind, each)
                    self._freshness.watched(metadata["uid"], metadata["resourceVersion"])
                    if kind == KIND:
                        job = self._caches.job(metadata["uid"])
                        if job is not None and is_done_with(job):
                            self._caches.keep_only_its_end(job)
        return versions

    async def keep_up(self, seconds: float) -> None:
        """Compares everything once in so many seconds, or more slowly when that takes longer."""
        while True:
            began = asyncio.get_running_loop().time()
            for namespace in self._namespaces():
                for kind in WATCHED:
                    try:
                        await self.compare(kind, namespace, PAUSE_SECONDS)
                    except (ApiRefusedError, OSError) as error:
                        _log.debug("%s of namespace %r could not be compared: %s", kind, namespace, error)
            await asyncio.sleep(max(0.0, began + seconds - asyncio.get_running_loop().time()))

    async def compare(self, kind: str, namespace: str, pause: float = 0.0) -> None:
        """Compares the objects of a kind; what a list of them does not have is gone."""
        known = set(self._caches.versions(kind, namespace))
        at = ""
        async for page in self._api.pages(kind, namespace, metadata_only=True):
            at = at or page.version
            for each in page.objects:
                metadata = cast("dict[str, str]", each["metadata"])
                known.discard(metadata["uid"])
                self._freshness.expect(metadata["uid"], metadata["resourceVersion"])
            await asyncio.sleep(pause)
        for uid in known:
            job = self._caches.lose(kind, uid, version_number(at))
            if job is not None:
                self._freshness.forget(uid)
                self._gone(job)
