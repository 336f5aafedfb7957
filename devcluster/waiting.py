"""Waiting with an end, that says what it waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from devcluster.failure import ClusterError

T = TypeVar("T")


def wait_for(
    what: str,
    found: Callable[[], T | None],
    *,
    seconds: float,
    seen: Callable[[], str] = str,
    every: float = 0.2,
) -> T:
    """Calls `found` until it returns something true, for at most `seconds`, and returns that.

    `seen` describes what is there instead. Raises ClusterError with it when time is up.
    """
    deadline = time.monotonic() + seconds
    while True:
        result = found()
        if result:
            return result
        if time.monotonic() >= deadline:
            raise ClusterError("\n".join(filter(None, (f"waited {seconds:.0f} s for {what}", seen()))))
        time.sleep(every)
