"""Where kopf's watches begin: where the operator has stopped to read.

kopf lists all objects of a kind before it watches them, and handles each as an event. The operator has read
them by then; of ten thousand jobs that have ended, none is news. kopf has no setting for it, so the function
by which it lists is replaced.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import contextmanager

from kopf._cogs.clients import fetching
from kopf._cogs.configs.configuration import OperatorSettings
from kopf._cogs.helpers.typedefs import Logger
from kopf._cogs.structs.bodies import RawBody
from kopf._cogs.structs.references import Namespace, Resource


class Beginnings:
    """Resource versions from which on something is to be watched."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str | None, str], str] = {}

    def note(self, namespace: str, versions: Mapping[str, str]) -> None:
        """Takes down as of which versions a namespace, or all for "", was read, by kind."""
        self._versions |= {(kind, namespace): version for kind, version in versions.items()}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside the `with` block a watch begins with the version that is noted for it, once.

        One that has to begin anew lists, as the API server no longer knows what has happened since.
        """
        listed = fetching.fetch_objs

        async def fetch_objs(
            *, settings: OperatorSettings, resource: Resource, namespace: Namespace, logger: Logger
        ) -> AsyncIterator[tuple[Collection[RawBody], str]]:
            version = self._versions.pop((resource.kind, namespace or ""), None)
            if version is not None:
                yield [], version
                return
            chunks = listed(settings=settings, resource=resource, namespace=namespace, logger=logger)
            async for chunk in chunks:
                yield chunk

        fetching.fetch_objs = fetch_objs
        try:
            yield
        finally:
            fetching.fetch_objs = listed
