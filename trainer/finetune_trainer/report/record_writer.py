"""Writes progress records in the background: seldom, at once when something of weight happened, and surely at the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from finetune_api.status import ProgressRecord

SECONDS_BETWEEN_WRITES = 5.0
"""Between two writes, unless something of weight happened; and between two tries of one that fails."""
SECONDS_BETWEEN_EPOCHS = 1.0
"""Between two writes when an epoch has ended: small ones end many times a second."""
PATIENCE_SECONDS = 300.0
"""How long the last record is tried to be written."""

_log = logging.getLogger(__name__)


def wait_before_write(
    newest: ProgressRecord | None,
    written: ProgressRecord | None,
    *,
    since_last_try: float,
    failed: bool,
    interval: float,
) -> float | None:
    """In how many seconds the newest record must be written, when the last try was so long ago; None when it is written.

    `failed` says that the last try failed.
    """
    if newest is None or newest == written:
        return None
    if not failed and (written is None or _weight(newest) != _weight(written)):
        return 0
    if not failed and _epochs(newest) != _epochs(written):
        interval = min(interval, SECONDS_BETWEEN_EPOCHS)
    return max(0.0, interval - since_last_try)


def _weight(record: ProgressRecord) -> tuple[object, ...]:
    """What is written at once when it changes."""
    return record.attempt, record.plan, record.progress is None, record.checkpoints, record.failure


def _epochs(record: ProgressRecord | None) -> str | None:
    return record.progress.epochs if record is not None and record.progress is not None else None


class RecordWriter:
    """Writes what is `put` with `write`, in a thread of its own; leaving the `with` block waits until the newest record is written.

    A write that fails is tried again with what is newest then, and never disturbs who puts.
    """

    def __init__(
        self,
        write: Callable[[ProgressRecord], None],
        *,
        interval: float = SECONDS_BETWEEN_WRITES,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._write = write
        self._interval = interval
        self._patience = patience
        self._changed = threading.Condition()
        self._newest: ProgressRecord | None = None
        self._give_up_at: float | None = None
        self._thread = threading.Thread(target=self._work, name="record-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def put(self, record: ProgressRecord) -> None:
        """Replaces the newest record; returns at once."""
        with self._changed:
            self._newest = record
            self._changed.notify()

    def close(self) -> None:
        """Writes the newest record, and tries so for some minutes while that fails."""
        with self._changed:
            self._give_up_at = time.monotonic() + self._patience
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        written: ProgressRecord | None = None
        tried_at, failed = -self._interval, False
        while (record := self._next(written, tried_at, failed=failed)) is not None:
            tried_at = time.monotonic()
            try:
                self._write(record)
            except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
                if not failed:
                    _log.warning("the progress record cannot be written, which is tried again: %s", error)
                failed = True
            else:
                if failed:
                    _log.warning("the progress record is written again")
                written, failed = record, False

    def _next(
        self, written: ProgressRecord | None, tried_at: float, *, failed: bool
    ) -> ProgressRecord | None:
        """Waits for the next record that must be written; None when there is none any more, or no time."""
        with self._changed:
            while True:
                now = time.monotonic()
                wait = wait_before_write(
                    self._newest,
                    written,
                    since_last_try=now - tried_at,
                    failed=failed,
                    interval=self._interval,
                )
                if self._give_up_at is not None:
                    if wait is None:
                        return None
                    if failed and now >= self._give_up_at:
                        _log.error(
                            "the last progress record could not be written; nobody is told how this attempt"
                            " ended"
                        )
                        return None
                    wait = wait if failed else 0
                if wait == 0:
                    return self._newest
                self._changed.wait(wait)
