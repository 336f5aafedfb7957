"""A watch of kopf begins where the operator has stopped to read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import kopf
import pytest
from kopf._cogs.clients import fetching
from kopf._cogs.structs.references import NamespaceName, Resource

from finetune_operator.cluster.beginnings import Beginnings

CONFIG_MAPS = Resource("", "v1", "configmaps", kind="ConfigMap", verbs=frozenset(["list", "watch"]))
NAMESPACE = "team"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plurals that kopf has listed; each list has one object."""
    plurals: list[str] = []

    async def fetch_objs(
        *, resource: Resource, **_: object
    ) -> AsyncIterator[tuple[list[dict[str, str]], str]]:
        plurals.append(resource.plural)
        yield [{"kind": str(resource.kind)}], "9"

    monkeypatch.setattr(fetching, "fetch_objs", fetch_objs)
    return plurals


def read_before(where: str = NAMESPACE) -> Beginnings:
    """The config maps of a namespace were read, as of version 7."""
    beginnings = Beginnings()
    beginnings.note(where, {"ConfigMap": "7"})
    return beginnings


def chunks(resource: Resource, namespace: str | None) -> list[tuple[list[object], str]]:
    """What kopf learns from a list of its own before it watches."""

    async def read() -> list[tuple[list[object], str]]:
        found = fetching.fetch_objs(
            settings=kopf.OperatorSettings(),
            resource=resource,
            namespace=None if namespace is None else NamespaceName(namespace),
            logger=logging.getLogger(__name__),
        )
        return [(list(objects), version) async for objects, version in found]

    return asyncio.run(read())


@pytest.mark.parametrize(("where", "namespace"), [(NAMESPACE, NAMESPACE), ("", None)])
def test_what_has_been_read_is_not_listed_and_watched_from_there(
    listed: list[str], where: str, namespace: str | None
) -> None:
    with read_before(where).used():
        assert chunks(CONFIG_MAPS, namespace) == [([], "7")]
    assert listed == []


def test_a_watch_that_begins_anew_lists(listed: list[str]) -> None:
    with read_before().used():
        chunks(CONFIG_MAPS, NAMESPACE)
        assert chunks(CONFIG_MAPS, NAMESPACE) == [([{"kind": "ConfigMap"}], "9")]
    assert listed == ["configmaps"]


@pytest.mark.parametrize(
    ("resource", "namespace"),
    [(CONFIG_MAPS, "another"), (CONFIG_MAPS, None), (replace(CONFIG_MAPS, kind="Pod"), NAMESPACE)],
)
def test_what_has_not_been_read_is_listed(
    listed: list[str], resource: Resource, namespace: str | None
) -> None:
    with read_before().used():
        assert chunks(resource, namespace) == [([{"kind": str(resource.kind)}], "9")]
    assert listed == ["configmaps"]


def test_kopf_lists_as_before_when_it_is_over() -> None:
    before = fetching.fetch_objs

    with Beginnings().used():
        assert fetching.fetch_objs is not before
    assert fetching.fetch_objs is before
