"""Measures how fast training is, and estimates when it will end."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime, timedelta

RATE_STEPS = 10
"""The number of steps over which the speed is averaged."""


class Pace:
    """Measures the duration of steps, without the pauses for validation and checkpoints."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._steps: deque[tuple[float, int]] = deque(maxlen=RATE_STEPS)
        self._since = time.monotonic()

    def add(self, tokens: int) -> None:
        """Notes the end of a step on `tokens` tokens. It began when the last step or pause ended."""
        now = time.monotonic()
        self._steps.append((now - self._since, tokens))
        self._since = now

    def resume(self) -> None:
        """Notes the end of a pause: the next step begins now."""
        self._since = time.monotonic()

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of all devices over the last steps, without padding; None before the first step."""
        seconds = sum(duration for duration, _ in self._steps)
        return round(sum(tokens for _, tokens in self._steps) / seconds, 1) if seconds else None

    def estimated_completion(self, step: int) -> datetime | None:
        """When the last step will be done at this speed, without validation; None before the first step.

        `step` is the number of steps done.
        """
        if not self._steps:
            return None
        seconds = sum(duration for duration, _ in self._steps) / len(self._steps)
        return datetime.now(UTC) + timedelta(seconds=seconds * (self._total_steps - step))
