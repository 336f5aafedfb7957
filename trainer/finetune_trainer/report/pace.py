"""How fast training goes, and when it will be done."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime, timedelta

RATE_STEPS = 10
"""Steps over which the rate is averaged."""


class Pace:
    """Measures steps as they are done; pauses for validation and checkpoints do not count."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._steps: deque[tuple[float, int]] = deque(maxlen=RATE_STEPS)
        self._since = time.monotonic()

    def add(self, tokens: int) -> None:
        """A step on `tokens` tokens is done, which began when the last one or the last pause ended."""
        now = time.monotonic()
        self._steps.append((now - self._since, tokens))
        self._since = now

    def resume(self) -> None:
        """The next step begins now."""
        self._since = time.monotonic()

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of all devices, without padding, over the last steps; None before the first."""
        seconds = sum(duration for duration, _ in self._steps)
        return round(sum(tokens for _, tokens in self._steps) / seconds, 1) if seconds else None

    def estimated_completion(self, step: int) -> datetime | None:
        """When the last step will be done at this pace, validation not counted; None before the first step."""
        if not self._steps:
            return None
        seconds = sum(duration for duration, _ in self._steps) / len(self._steps)
        return datetime.now(UTC) + timedelta(seconds=seconds * (self._total_steps - step))
