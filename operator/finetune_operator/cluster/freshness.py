"""Whether the watches still report what happens: what is read or written must come on a watch as well."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

STALE_SECONDS = 120
"""kopf itself reconnects a watch that has been silent for 70 s."""


@dataclass(frozen=True)
class _Expected:
    version: int
    since: float


class Freshness:
    """Versions of objects that were read or written, and that their watch has not reported yet.

    Resource versions are compared as numbers, which Kubernetes guarantees for its own storage (KEP-5504).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expected: dict[str, _Expected] = {}
        self._watched: dict[str, int] = {}
        self._gone: dict[str, float] = {}
        """Objects that are gone, and since when: an answer about them may still be under way."""

    def expect(self, uid: str, resource_version: str) -> None:
        """Notes that a read or a write has shown this version of an object."""
        version = _number(resource_version)
        if version <= self._watched.get(uid, -1) or uid in self._gone:
            return
        before = self._expected.get(uid)
        self._expected[uid] = _Expected(version, before.since if before else self._clock())

    def watched(self, uid: str, resource_version: str) -> None:
        """Notes that a watch has reported this version of an object."""
        version = _number(resource_version)
        self._gone.pop(uid, None)
        self._watched[uid] = max(version, self._watched.get(uid, -1))
        expected = self._expected.get(uid)
        if expected is not None and version >= expected.version:
            del self._expected[uid]

    def forget(self, uid: str) -> None:
        """Notes that an object is gone."""
        self._expected.pop(uid, None)
        self._watched.pop(uid, None)
        now = self._clock()
        self._gone = {each: since for each, since in self._gone.items() if now - since < STALE_SECONDS}
        self._gone[uid] = now

    def start_over(self) -> None:
        """Expects nothing any more: watches were ended, and what they owe will not come."""
        self._expected.clear()

    def stale_seconds(self) -> float:
        """For how many seconds the longest awaited version has not come; 0 when none is awaited."""
        now = self._clock()
        return max((now - expected.since for expected in self._expected.values()), default=0.0)

    def is_stale(self) -> bool:
        """Whether a watch has gone silent."""
        return self.stale_seconds() > STALE_SECONDS


def _number(resource_version: str) -> int:
    return int(resource_version) if resource_version.isdigit() else 0
