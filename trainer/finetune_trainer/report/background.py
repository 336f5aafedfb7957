"""Work that goes on while training does, and the lines that are written meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from pydantic import BaseModel

T = TypeVar("T")

MOST_LINES = 10_000
"""That wait to be written; the next one waits for room."""


class Background(Generic[T]):
    """Work in a thread of its own, whose result is taken later.

    The thread ends with its work, and with it the threads of arithmetic that libraries have started for it.
    It does not keep a process from ending.
    """

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether there is a result, or an error."""
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Waits for so long at most; returns whether there is a result, or an error."""
        self._thread.join(seconds)
        return self.done

    def result(self) -> T:
        """Waits for the result. Raises what the work raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001 - it crosses to the thread that takes the result
            self._error = error


class LineWriter:
    """Writes lines in their order, in a thread of its own.

    What a line meets is raised where the next one is put, or where the lines are waited for; nothing is
    written after it. No line is lost while the process lives: one for which there is no room waits for it.
    """

    def __init__(self, write: Callable[[BaseModel], None], most: int = MOST_LINES) -> None:
        self._write = write
        self._error: Exception | None = None
        self._waiting: queue.Queue[BaseModel | threading.Event | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    def put(self, line: BaseModel) -> None:
        """Hands over a line."""
        if self._error is not None:
            raise self._error
        self._waiting.put(line)

    def wait(self) -> None:
        """Returns when all lines that were put before are written."""
        written = threading.Event()
        self._waiting.put(written)
        written.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Returns when all lines are written, or one could not be. No line may be put any more."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (next_ := self._waiting.get()) is not None:
            if isinstance(next_, threading.Event):
                next_.set()
            elif self._error is None:
                try:
                    self._write(next_)
                except Exception as error:  # noqa: BLE001 - it crosses to the thread that puts lines
                    self._error = error
