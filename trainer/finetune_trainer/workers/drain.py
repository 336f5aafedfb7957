"""Whether a node of the Ray cluster is about to go."""

from __future__ import annotations

import logging
import time

import ray

DRAIN_POLL_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Drain:
    """Sees that a node's pod was told to end: Ray lets it finish what it does for some seconds."""

    def __init__(self) -> None:
        self._asked_at = -DRAIN_POLL_SECONDS
        self._can_ask = True

    def seen(self) -> bool:
        """Asks Ray once a second."""
        now = time.monotonic()
        if not self._can_ask or now - self._asked_at < DRAIN_POLL_SECONDS:
            return False
        self._asked_at = now
        try:
            # Ray has no public way that costs the workers nothing; its own libraries look here.
            return bool(ray._private.state.state.get_draining_nodes())
        except Exception as error:  # noqa: BLE001 - training goes on without the warning
            _log.warning("cannot see whether nodes are about to go: %s", error)
            self._can_ask = False
            return False
