"""Which namespaces are watched: one that is gone, or not allowed, is left alone until it is back.

kopf keeps what it watches in `Insights`, which `kopf.operator` takes and kopf does not export. Its own way to
follow namespaces takes the right to list all of a cluster, and does not see that one is not allowed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from kopf._cogs.structs.references import Insights, NamespaceName

from finetune_operator.cluster.kubernetes_api import WATCHED, ApiRefusedError

__all__ = ["Insights", "WatchedNamespaces", "turn"]

CHECK_SECONDS = 10
"""Between two looks at the namespaces. kopf tries a watch that is refused for two minutes; then it ends."""

_log = logging.getLogger(__name__)


async def turn(insights: Insights, namespace: str, watched: bool) -> None:
    """Has kopf watch a namespace from now on, or no more."""
    async with insights.revised:
        if watched:
            insights.namespaces.add(NamespaceName(namespace))
        else:
            insights.namespaces.discard(NamespaceName(namespace))
        insights.revised.notify_all()


class Access(Protocol):
    """Asks the API server what the operator may watch."""

    async def refusals(self, namespace: str, kinds: Sequence[str]) -> list[str]:
        """Why it may not watch objects of these kinds in a namespace; empty where it may."""


class WatchedNamespaces:
    """The namespaces that the operator is to look after, without those that it cannot watch now.

    `turn` is called with a namespace and whether it is watched from now on, once for each change. It raises
    ApiRefusedError or OSError where it fails to begin; the next look begins anew.
    """

    def __init__(
        self, names: Sequence[str], access: Access, turn: Callable[[str, bool], Awaitable[None]]
    ) -> None:
        self._names = names
        self._access = access
        self._turn = turn
        self._kinds = itertools.cycle(WATCHED)
        self._left_alone: set[str] = set()

    def is_left_alone(self, namespace: str) -> bool:
        """Whether a namespace is not watched now."""
        return namespace in self._left_alone

    def count_left_alone(self) -> int:
        """How many namespaces are not watched now."""
        return len(self._left_alone)

    async def leave_alone(self, namespace: str, refusals: Sequence[str]) -> None:
        """Watches a namespace no more, and says why."""
        self._left_alone.add(namespace)
        _log.warning(
            "namespace %s is left alone, since it is gone or the operator may not watch it: %s; its jobs are"
            " not looked at until that is mended",
            namespace,
            "; ".join(refusals),
        )
        await self._turn(namespace, False)

    async def keep_up(self) -> None:
        """Looks at the namespaces for ever."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self.check()

    async def check(self) -> None:
        """Leaves alone the namespaces that have ceased to be watchable, and takes up those that are again.

        Of a namespace that is watched one kind is asked for, another one each time: of one that is gone all
        are refused. One that is taken up must be open for all.
        """
        kind = next(self._kinds)
        for name in self._names:
            left_alone = name in self._left_alone
            try:
                refusals = await self._access.refusals(name, WATCHED[:1] if left_alone else (kind,))
                if left_alone and not refusals:
                    refusals = await self._access.refusals(name, WATCHED)
            except (ApiRefusedError, OSError):
                continue  # a busy or absent API server says nothing about the namespace
            if refusals and not left_alone:
                await self.leave_alone(name, refusals)
            elif left_alone and not refusals:
                self._left_alone.remove(name)
                try:
                    await self._turn(name, True)
                except (ApiRefusedError, OSError) as error:
                    await self.leave_alone(name, [str(error)])
                else:
                    _log.info("namespace %s is watched again", name)
