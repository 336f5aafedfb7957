"""Which namespaces are watched, from what the API server says of each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps

import kopf
import pytest
from kopf._cogs.structs.references import Resource
from kopf._core.reactor.observation import revise_resources

import finetune_operator.main  # noqa: F401 - registers the handlers
from finetune_api.crd import PLURAL
from finetune_api.manifest import GROUP, VERSION
from finetune_operator.cluster.kubernetes_api import WATCHED, ApiRefusedError
from finetune_operator.cluster.namespaces import Insights, WatchedNamespaces


class ApiServer:
    """Says why each kind of a namespace may not be watched, or fails."""

    def __init__(self) -> None:
        self.closed: dict[str, tuple[str, ...]] = {}
        """Kinds that may not be watched, by namespace."""
        self.failures: dict[str, Exception] = {}
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    async def refusals(self, namespace: str, kinds: Sequence[str]) -> list[str]:
        self.asked.append((namespace, tuple(kinds)))
        if namespace in self.failures:
            raise self.failures[namespace]
        return [f"no {kind} in {namespace}" for kind in kinds if kind in self.closed.get(namespace, ())]


class Scene:
    """Three namespaces, and what was turned off and on."""

    def __init__(self) -> None:
        self.server = ApiServer()
        self.turns: list[tuple[str, bool]] = []
        self.fails_to_begin: Exception | None = None
        self.namespaces = WatchedNamespaces(["a", "b", "c"], self.server, self._turn)

    async def _turn(self, namespace: str, watched: bool) -> None:
        self.turns.append((namespace, watched))
        if watched and self.fails_to_begin is not None:
            raise self.fails_to_begin

    async def looks(self, times: int = len(WATCHED)) -> None:
        for _ in range(times):
            await self.namespaces.check()


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*arguments: object, **named: object) -> None:
        asyncio.run(_awaited(test(*arguments, **named)))

    return run


async def _awaited(test: Awaitable[None]) -> None:
    await test


@in_a_loop
async def test_a_namespace_that_is_gone_is_left_alone_at_the_next_look_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    await scene.looks()
    assert scene.turns == []

    scene.server.closed["b"] = WATCHED
    await scene.looks(1)

    assert scene.turns == [("b", False)]
    assert [scene.namespaces.is_left_alone(each) for each in "abc"] == [False, True, False]
    await scene.looks()
    assert scene.turns == [("b", False)]
    assert scene.namespaces.count_left_alone() == 1
    [told] = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "namespace b is left alone" in told
    assert "in b" in told


@in_a_loop
async def test_one_kind_that_may_not_be_watched_is_found_within_a_round_of_looks() -> None:
    scene = Scene()
    scene.server.closed["c"] = ("Pod",)

    await scene.looks()

    assert scene.turns == [("c", False)]
    asked = [kinds for namespace, kinds in scene.server.asked if namespace == "a"]
    assert sorted(asked) == sorted((kind,) for kind in WATCHED), "one call a look"


@in_a_loop
async def test_a_namespace_is_taken_up_when_it_is_open_for_every_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene()
    await scene.namespaces.leave_alone("b", ["no right"])
    scene.server.closed["b"] = ("ConfigMap",)
    await scene.looks()
    assert scene.turns == [("b", False)]

    del scene.server.closed["b"]
    await scene.looks(1)

    assert scene.turns == [("b", False), ("b", True)]
    assert scene.namespaces.count_left_alone() == 0
    assert caplog.messages[-1] == "namespace b is watched again"


@pytest.mark.parametrize("failure", [ApiRefusedError(429, "busy"), OSError("gone")])
@in_a_loop
async def test_a_namespace_that_cannot_be_read_when_it_is_back_is_taken_up_with_a_later_look(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    await scene.namespaces.leave_alone("b", ["no right"])
    scene.fails_to_begin = failure
    await scene.looks(1)
    assert scene.namespaces.is_left_alone("b")
    assert str(failure) in caplog.messages[-1]

    scene.fails_to_begin = None
    await scene.looks(1)

    assert scene.turns == [("b", False), ("b", True), ("b", False), ("b", True)]
    assert not scene.namespaces.is_left_alone("b")


@pytest.mark.parametrize(
    "failure", [ApiRefusedError(503, "busy"), ApiRefusedError(404, "no"), OSError("gone")]
)
@in_a_loop
async def test_an_api_server_that_fails_says_nothing_of_a_namespace(failure: Exception) -> None:
    scene = Scene()
    await scene.namespaces.leave_alone("b", ["no right"])
    scene.server.failures = dict.fromkeys("ab", failure)
    scene.server.closed["c"] = WATCHED

    await scene.looks(1)

    assert scene.turns == [("b", False), ("c", False)], "and the next one is asked for all the same"


def test_kopf_handles_what_happens_in_a_namespace_whatever_becomes_of_the_others() -> None:
    """Of a kind that has an index kopf would first list every namespace, and wait for one that is closed."""
    insights = Insights()
    names = [
        (GROUP, VERSION, PLURAL),
        ("ray.io", "v1", "rayjobs"),
        ("ray.io", "v1", "rayclusters"),
        ("", "v1", "pods"),
        ("", "v1", "configmaps"),
    ]
    served = [Resource(*name, namespaced=True, verbs=frozenset(["list", "watch"])) for name in names]

    revise_resources(resources=served, insights=insights, registry=kopf.get_default_registry(), group=None)

    assert insights.watched_resources == set(served)
    assert insights.indexed_resources == set()
