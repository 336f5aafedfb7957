"""What kopf remembers of each object for as long as the object is there: nothing.

kopf keeps there its daemons, indices and the pauses of handlers that fail, none of which the operator has;
with ten thousand jobs that have ended it would be a hundred megabytes. `kopf.operator` takes a
`ResourceMemories`, which kopf does not export.
"""

from __future__ import annotations

from kopf._cogs.structs.bodies import RawBody
from kopf._cogs.structs.ephemera import AnyMemo
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory


class NoMemories(ResourceMemories):
    """Memories that are forgotten with the event that they were made for."""

    async def recall(
        self,
        raw_body: RawBody,
        *,
        memobase: AnyMemo | None = None,
        noticed_by_listing: bool = False,
        ephemeral: bool = False,  # noqa: ARG002 - all are
    ) -> ResourceMemory:
        """A new memory."""
        return await super().recall(
            raw_body, memobase=memobase, noticed_by_listing=noticed_by_listing, ephemeral=True
        )
