"""Reads of many jobs' objects that are asked for at about the same time, in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from finetune_operator.cluster.kubernetes_api import Listed
from finetune_operator.names import JOB_UID
from finetune_operator.observed import KubernetesObject

MOST_JOBS = 50
"""Of one call, whose address has all of their UIDs."""


class GroupedLists:
    """Lists what belongs to a job; those who ask while an answer is under way share the next one.

    So each answer is younger than the question. `of_jobs` takes a kind, a namespace and UIDs of jobs.
    """

    def __init__(self, of_jobs: Callable[[str, str, Sequence[str]], Awaitable[Listed]]) -> None:
        self._of_jobs = of_jobs
        self._waiting: dict[tuple[str, str], dict[str, list[asyncio.Future[Listed]]]] = {}
        self._busy: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def of_job(self, kind: str, namespace: str, uid: str) -> Listed:
        """The objects of a kind that belong to the job with this UID. Raises what the call raises."""
        where = (kind, namespace)
        answer: asyncio.Future[Listed] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(where, {}).setdefault(uid, []).append(answer)
        if where not in self._busy:
            self._busy[where] = asyncio.create_task(self._ask(kind, namespace))
        return await answer

    async def _ask(self, kind: str, namespace: str) -> None:
        where = (kind, namespace)
        try:
            while self._waiting.get(where):
                waiting = self._waiting[where]
                asked = {uid: waiting.pop(uid) for uid in list(waiting)[:MOST_JOBS]}
                try:
                    listed = await self._of_jobs(kind, namespace, list(asked))
                except Exception as error:  # noqa: BLE001 - it is theirs who asked
                    for answer in (each for answers in asked.values() for each in answers):
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                found: dict[str, list[KubernetesObject]] = {}
                for each in listed.objects:
                    found.setdefault(_job_of(each), []).append(each)
                for uid, answers in asked.items():
                    for answer in answers:
                        if not answer.done():
                            answer.set_result(Listed(found.get(uid, []), listed.version))
        finally:
            del self._busy[where]
            self._waiting.pop(where, None)


def _job_of(body: KubernetesObject) -> str:
    metadata = body["metadata"]
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    return str(labels.get(JOB_UID)) if isinstance(labels, dict) else ""
