"""Writes progress records in the background.

A record that differs only in progress waits some seconds. Important changes, such as a new checkpoint, are
written at once, and the last record is always written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from finetune_api.status import ProgressRecord

SECONDS_BETWEEN_WRITES = 5.0
"""The time between two writes without an important change, and between two attempts after a failure."""
SECONDS_BETWEEN_EPOCHS = 1.0
"""The time between two writes when an epoch has ended: small ones end many times a second."""
PATIENCE_SECONDS = 300.0
"""For how long writing the last record is attempted."""
REFUSED_SECONDS = 10.0
"""The same where it is refused: an API server that has just started may refuse for a moment whom it knows."""

_log = logging.getLogger(__name__)


def wait_before_write(
    newest: ProgressRecord | None,
    written: ProgressRecord | None,
    *,
    since_last_try: float,
    failed: bool,
    interval: float,
) -> float | None:
    """The seconds to wait before the newest record must be written; None when it is written already.

    `since_last_try` is the time since the last attempt in seconds, and `failed` says whether that failed.
    `interval` is the usual time between two writes in seconds.
    """
    if newest is None or newest == written:
        return None
    if not failed and (written is None or _weight(newest) != _weight(written)):
        return 0
    if not failed and _epochs(newest) != _epochs(written):
        interval = min(interval, SECONDS_BETWEEN_EPOCHS)
    return max(0.0, interval - since_last_try)


def _weight(record: ProgressRecord) -> tuple[object, ...]:
    """The parts of a record that are written at once when they change."""
    return (
        record.attempt,
        record.plan,
        record.progress is None,
        record.checkpoints,
        record.doing if record.progress is not None else None,
        record.failure,
    )


def _epochs(record: ProgressRecord | None) -> str | None:
    return record.progress.epochs if record is not None and record.progress is not None else None


class RecordRefusedError(Exception):
    """Nobody is there any more who would take the record, as when the FineTuneJob was deleted."""


class RecordWriter:
    """Writes the records that are `put` by calling `write` in a thread of its own.

    Records that a newer one replaces before their turn are not written. A write that fails is attempted
    again with the newest record; the caller of `put` does not notice. Leaving the `with` block waits
    until the newest record is written, for `patience` at most, or for `patience_refused` where `write` raises
    RecordRefusedError. `interval` and both are in seconds.
    """

    def __init__(
        self,
        write: Callable[[ProgressRecord], None],
        *,
        interval: float = SECONDS_BETWEEN_WRITES,
        patience: float = PATIENCE_SECONDS,
        patience_refused: float = REFUSED_SECONDS,
    ) -> None:
        self._write = write
        self._interval = interval
        self._patience = patience
        self._patience_refused = patience_refused
        self._changed = threading.Condition()
        self._newest: ProgressRecord | None = None
        self._closed_at: float | None = None
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
        """Makes this the record to write. Returns at once."""
        with self._changed:
            self._newest = record
            self._changed.notify()

    def close(self) -> None:
        """Waits until the newest record is written, or until that was attempted for long enough."""
        with self._changed:
            self._closed_at = time.monotonic()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        written: ProgressRecord | None = None
        tried_at, failed, patience = -self._interval, False, self._patience
        while (record := self._next(written, tried_at, failed=failed, patience=patience)) is not None:
            tried_at = time.monotonic()
            try:
                self._write(record)
            except Exception as error:  # noqa: BLE001 - no error of a report may stop training
                if not failed:
                    _log.warning("the progress record cannot be written, which is tried again: %s", error)
                failed = True
                refused = isinstance(error, RecordRefusedError)
                patience = self._patience_refused if refused else self._patience
            else:
                if failed:
                    _log.warning("the progress record is written again")
                written, failed = record, False

    def _next(
        self, written: ProgressRecord | None, tried_at: float, *, failed: bool, patience: float
    ) -> ProgressRecord | None:
        """Waits for the next record to write; None after `close`, when all is written or time is up."""
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
                if self._closed_at is not None:
                    if wait is None:
                        return None
                    if failed and now >= self._closed_at + patience:
                        _log.error(
                            "the last progress record could not be written;"
                            " nobody is told how this attempt ended"
                        )
                        return None
                    wait = wait if failed else 0
                if wait == 0:
                    return self._newest
                self._changed.wait(wait)
