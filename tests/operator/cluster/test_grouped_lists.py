"""Lists of many jobs' objects: one call for those who ask at a time, no answer older than its question."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from finetune_operator.cluster import grouped_lists
from finetune_operator.cluster.grouped_lists import GroupedLists
from finetune_operator.cluster.kubernetes_api import ApiUnreachableError, Listed
from finetune_operator.names import JOB_UID
from finetune_operator.observed import KubernetesObject


def pod(uid: str, name: str) -> KubernetesObject:
    return {"metadata": {"name": name, "labels": {JOB_UID: uid}}}


class Server:
    """Answers when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def of_jobs(self, kind: str, namespace: str, uids: Sequence[str]) -> Listed:
        self.asked.append((f"{namespace}/{kind}", list(uids)))
        version = str(len(self.asked))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Listed([pod(uid, f"{uid}-{version}") for uid in uids if uid != "empty"], version)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_those_who_ask_while_an_answer_is_under_way_share_the_next_one() -> None:
    async def ask() -> None:
        server = Server()
        lists = GroupedLists(server.of_jobs)
        first = asyncio.create_task(lists.of_job("Pod", "team", "a"))
        await turns()
        others = [asyncio.create_task(lists.of_job("Pod", "team", uid)) for uid in ("a", "b", "empty", "b")]
        elsewhere = asyncio.create_task(lists.of_job("Pod", "another", "a"))
        await turns()
        server.gate.set()
        assert await first == Listed([pod("a", "a-1")], "1")
        assert await asyncio.gather(*others) == [
            Listed([pod("a", "a-3")], "3"),
            Listed([pod("b", "b-3")], "3"),
            Listed([], "3"),
            Listed([pod("b", "b-3")], "3"),
        ]
        await elsewhere
        assert server.asked == [
            ("team/Pod", ["a"]),
            ("another/Pod", ["a"]),
            ("team/Pod", ["a", "b", "empty"]),
        ]

    asyncio.run(ask())


def test_one_call_is_for_so_many_jobs_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_lists, "MOST_JOBS", 2)

    async def ask() -> None:
        server = Server()
        server.gate.set()
        lists = GroupedLists(server.of_jobs)
        found = await asyncio.gather(*(lists.of_job("Pod", "team", uid) for uid in ("a", "b", "c")))
        assert [each.version for each in found] == ["1", "1", "2"]

    asyncio.run(ask())


def test_an_error_is_everybodys_who_asked_and_nobodys_after_that() -> None:
    async def ask() -> None:
        server = Server()
        server.gate.set()
        server.error = ApiUnreachableError("it does not answer")
        lists = GroupedLists(server.of_jobs)
        asked = [lists.of_job("Pod", "team", uid) for uid in ("a", "b")]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert found == [server.error, server.error]
        server.error = None
        assert (await lists.of_job("Pod", "team", "a")).objects == [pod("a", "a-2")]

    asyncio.run(ask())
