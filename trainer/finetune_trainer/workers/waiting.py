"""How the threads of the arithmetic wait for each other: spinning, or asleep where others want processors.

A thread that spins goes on at once, which doubles the speed of small models on a machine that is free. Beside
another process it keeps the processor from the very thread that it waits for. Who else runs changes while a
model is trained, and OpenMP's own setting, OMP_WAIT_POLICY, is read once: so this looks again and again.

Threads are sent to sleep by more of them than there are processors: libgomp spins 100 times then and not
300,000 times. Source: GCC's manual of libgomp, GOMP_SPINCOUNT. How many threads compute stays as it is, since
it changes the order of sums.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables by which a person decides; then nothing is changed here."""
SECONDS_BETWEEN_LOOKS = 0.5
QUEUED, ALONE = 0.2, 0.12
"""Above and below which share of its time that it waits for a processor a process shares them, or is alone.

Training on all of 2 processors waits 2 to 3 percent of its time on a free machine, spinning or not, 8 to 10
percent beside Ray's own processes, which take a tenth of one of them, and 45 to 75 percent beside one process
that keeps one busy.
"""
LEAST_RUNNING = 0.02
"""Of a processor's time; with less, too little was seen to tell."""
MOST_THREADS = 128
"""That are made so that others sleep: on machines with more processors than that nothing is changed."""


@dataclass(frozen=True)
class Ran:
    """What the threads of a process have done so far, in seconds."""

    at: float
    """When this was seen, by a clock that only goes forward."""
    running: float
    """On a processor."""
    queued: float
    """Ready to run, while others had the processors."""


def sleeps(before: Ran, now: Ran, *, asleep: bool) -> bool:
    """Whether waiting threads are to sleep from now on; `asleep` says what they do now."""
    running, queued = now.running - before.running, now.queued - before.queued
    if running + queued <= LEAST_RUNNING * (now.at - before.at):
        return asleep
    return queued / (running + queued) > (ALONE if asleep else QUEUED)


def left_open(environment: Mapping[str, str], threads: int) -> bool:
    """Whether it is decided here how so many threads wait: nobody has set it, and one waits for nobody."""
    return threads > 1 and not any(name in environment for name in SETTINGS)


def ran(at: float, tasks: Path = Path("/proc/self/task")) -> Ran | None:
    """What this process's threads have done; None where the kernel does not tell.

    Source: Documentation/scheduler/sched-stats.rst of Linux, /proc/PID/schedstat, nanoseconds.
    """
    running = queued = 0
    seen = False
    for task in tasks.glob("*/schedstat"):
        try:
            on_processor, waiting, _ = task.read_text().split()
        except (OSError, ValueError):  # a thread that has ended meanwhile
            continue
        seen = True
        running += int(on_processor)
        queued += int(waiting)
    return Ran(at, running / 1e9, queued / 1e9) if seen else None


@contextmanager
def waiting(threads: int) -> Iterator[None]:
    """Inside the `with` block, `threads` threads of arithmetic wait as the load of the processors has it."""
    if not left_open(os.environ, threads):
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(threads, over), name="waiting", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(threads: int, over: threading.Event) -> None:
    crowd: _Crowd | None = None
    before = ran(time.monotonic())
    while before is not None and not over.wait(SECONDS_BETWEEN_LOOKS):
        now = ran(time.monotonic())
        if now is None:
            break
        if sleeps(before, now, asleep=crowd is not None):
            crowd = crowd or _Crowd.of(threads)
        elif crowd is not None:
            crowd.leave()
            crowd = None
        before = now
    if crowd is not None:
        crowd.leave()


class _Crowd:
    """OpenMP threads that do nothing but be there, so that there are more than processors."""

    @classmethod
    def of(cls, threads: int) -> _Crowd | None:
        """As many as it takes beside `threads`; None where OpenMP is not loaded, or it takes too many."""
        missing = len(os.sched_getaffinity(0)) - threads + 1
        if missing > MOST_THREADS:
            return None
        try:
            openmp = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            return None
        return cls(openmp, max(1, missing))

    def __init__(self, openmp: ctypes.CDLL, size: int) -> None:
        self._over = threading.Event()
        gathered = threading.Event()
        self._thread = threading.Thread(
            target=self._stay, args=(openmp, size, gathered), name="waiting-crowd", daemon=True
        )
        self._thread.start()
        gathered.wait()

    def leave(self) -> None:
        """Ends them."""
        self._over.set()
        self._thread.join()

    def _stay(self, openmp: ctypes.CDLL, size: int, gathered: threading.Event) -> None:
        # A team calls a function that does nothing, and then sleeps as long as the thread that asked for it.
        nothing = ctypes.CDLL(None).free
        openmp.GOMP_parallel(nothing, None, ctypes.c_uint(size + 1), ctypes.c_uint(0))
        gathered.set()
        self._over.wait()
