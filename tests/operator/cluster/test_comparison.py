"""What watches have not told is found by comparing what is known with lists, on a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.operator.conftest import Namespace

from finetune_api.manifest import KIND
from finetune_operator.cluster import kubernetes_api
from finetune_operator.cluster.caches import WatchCaches
from finetune_operator.cluster.comparison import Comparison
from finetune_operator.cluster.freshness import STALE_SECONDS, Freshness
from finetune_operator.cluster.kubernetes_api import KubernetesApi
from finetune_operator.names import JOB_UID
from finetune_operator.observed import ConfigMap

Run = Callable[..., Any]


class Compared:
    """What is known of a namespace, and what was found to be gone."""

    def __init__(self, api: KubernetesApi, namespace: str) -> None:
        self.now = 0.0
        self.caches = WatchCaches(self.time)
        self.freshness = Freshness(self.time)
        self.gone: list[str] = []
        self.comparison = Comparison(api, self.caches, self.freshness, lambda: [namespace], self.gone.append)

    def time(self) -> float:
        return self.now


@pytest.fixture
def compared(api: KubernetesApi, inside: Namespace, monkeypatch: pytest.MonkeyPatch) -> Compared:
    monkeypatch.setattr(kubernetes_api, "PAGE", 2)
    return Compared(api, inside.name)


def make(inside: Namespace, *names: str) -> list[str]:
    """Config maps of a job each; returns their UIDs."""
    made = [
        inside.create("ConfigMap", name, metadata={"name": name, "labels": {JOB_UID: f"job-{name}"}})
        for name in names
    ]
    return [str(each["metadata"]["uid"]) for each in made]


def test_all_that_there_is_at_the_start_is_known(
    compared: Compared, inside: Namespace, runner: asyncio.Runner
) -> None:
    job = inside.create_job()
    make(inside, "a", "b", "c")
    runner.run(compared.comparison.fill(inside.name, lambda _: False))

    known = compared.caches.job(job["metadata"]["uid"])
    assert known is not None
    assert known.metadata.name == "job"
    for name in ("a", "b", "c"):
        assert len(compared.caches.children(ConfigMap, f"job-{name}")) == 1


def test_of_a_job_that_is_done_with_nothing_but_its_end_is_kept_from_the_start(
    compared: Compared, inside: Namespace, runner: asyncio.Runner
) -> None:
    done, goes_on = inside.create_job(name="done"), inside.create_job(name="goes-on")
    inside.patch_status(KIND, "done", phase="Succeeded")
    for each in (done, goes_on):
        uid = each["metadata"]["uid"]
        name = f"of-{each['metadata']['name']}"
        inside.create("ConfigMap", name, metadata={"name": name, "labels": {JOB_UID: uid}})

    runner.run(compared.comparison.fill(inside.name, lambda job: job.metadata.name == "done"))

    assert [job.metadata.name for job in compared.caches.jobs()] == ["goes-on"]
    assert [job.name for job in compared.caches.ended()] == ["done"]
    assert compared.caches.children(ConfigMap, done["metadata"]["uid"]) == []
    assert len(compared.caches.children(ConfigMap, goes_on["metadata"]["uid"])) == 1


def test_what_is_gone_without_a_word_is_found_and_its_job_is_told(
    compared: Compared, inside: Namespace, runner: asyncio.Runner
) -> None:
    job = inside.create_job()
    make(inside, "a", "b", "c")
    runner.run(compared.comparison.fill(inside.name, lambda _: False))
    inside.delete("ConfigMap", "b")
    inside.delete(KIND, "job")

    for kind in ("ConfigMap", KIND):
        runner.run(compared.comparison.compare(kind, inside.name))

    assert compared.gone == ["job-b", job["metadata"]["uid"]]
    assert compared.caches.children(ConfigMap, "job-b") == []
    assert compared.caches.job(job["metadata"]["uid"]) is None
    assert len(compared.caches.children(ConfigMap, "job-a")) == 1


def test_what_comes_while_it_is_compared_is_not_taken_for_gone(
    compared: Compared, inside: Namespace, runner: asyncio.Runner
) -> None:
    make(inside, "a", "b", "c")
    runner.run(compared.comparison.fill(inside.name, lambda _: False))

    async def compare() -> None:
        comparing = asyncio.create_task(compared.comparison.compare("ConfigMap", inside.name, pause=0.2))
        await asyncio.sleep(0.1)
        make(inside, "d")
        compared.caches.put("ConfigMap", inside.get("ConfigMap", "d"))
        await comparing

    runner.run(compare())

    assert compared.gone == []
    assert len(compared.caches.children(ConfigMap, "job-d")) == 1


def test_a_watch_that_owes_what_is_listed_is_noticed(
    compared: Compared, inside: Namespace, runner: asyncio.Runner
) -> None:
    [uid] = make(inside, "a")
    runner.run(compared.comparison.fill(inside.name, lambda _: False))
    compared.freshness.watched(uid, inside.get("ConfigMap", "a")["metadata"]["resourceVersion"])
    runner.run(compared.comparison.compare("ConfigMap", inside.name))
    compared.now += STALE_SECONDS + 1
    assert not compared.freshness.is_stale()

    inside.patch("ConfigMap", "a", data={"key": "value"})
    runner.run(compared.comparison.compare("ConfigMap", inside.name))
    compared.now += STALE_SECONDS + 1

    assert compared.freshness.is_stale()
