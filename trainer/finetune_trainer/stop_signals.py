"""How a run is stopped from outside: by Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignals:
    """What Ctrl-C and SIGTERM do to a run.

    Until there is something to save, and when all is saved, they raise KeyboardInterrupt. In between the
    first one requests a stop, and a second one raises KeyboardInterrupt.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._requested = threading.Event()
        self.can_save = False

    def requested(self) -> bool:
        """Whether a stop was requested."""
        return self._requested.is_set()

    def begun(self) -> None:
        """Training has begun: from now on there is something to save.

        Raises KeyboardInterrupt when a signal came before, since a library may have caught the first one.
        """
        if not self.can_save and self.requested():
            raise KeyboardInterrupt
        self.can_save = True

    def saved(self) -> None:
        """Training is over, and all of it is saved: from now on a signal ends what follows at once.

        Raises KeyboardInterrupt when one came before.
        """
        self.can_save = False
        if self.requested():
            raise KeyboardInterrupt

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """A signal has come."""
        if not self.can_save or self.requested():
            self._requested.set()
            raise KeyboardInterrupt
        self._requested.set()
        again = "; press Ctrl-C again to stop now" if number == signal.SIGINT else ""
        self._say(f"stopping after this step, with a snapshot{again}")


@contextmanager
def without_sigterm() -> Iterator[None]:
    """Processes that are started inside the `with` block, and theirs, are never ended by SIGTERM.

    Who ends a unit of systemd or a step of SLURM signals every process of it. This process gets the signal
    when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_signals(say: Callable[[str], None]) -> Iterator[StopSignals]:
    """Handles the signals inside the `with` block; `say` gets a line for people."""
    signals = StopSignals(say)
    previous = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
