from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from finetune_trainer.workers import waiting as module
from finetune_trainer.workers.waiting import ALONE, QUEUED, SETTINGS, Ran, left_open, ran, sleeps, waiting

START = Ran(at=100.0, running=50.0, queued=5.0)


def after(seconds: float, *, running: float, queued: float) -> Ran:
    return Ran(START.at + seconds, START.running + running, START.queued + queued)


@pytest.mark.parametrize(
    ("running", "queued", "asleep", "expected"),
    [
        (0.98, 0.02, False, False),
        (0.98, 0.02, True, False),
        (0.5, 0.5, False, True),
        (0.5, 0.5, True, True),
        (0.91, 0.09, False, False),
        (0.91, 0.09, True, False),
        (0.84, 0.16, False, False),
        (0.84, 0.16, True, True),
        (0.0, 0.001, False, False),
        (0.0, 0.0, True, True),
    ],
    ids=[
        "alone, threads spin",
        "alone again, threads spin again",
        "beside others, threads sleep",
        "still beside others",
        "beside Ray's own processes, threads spin",
        "and spin again",
        "a little is no reason to sleep",
        "a little is no reason to spin again",
        "a process that waits for a device tells nothing",
        "nor one that does nothing at all",
    ],
)
def test_threads_sleep_where_a_process_waits_for_processors(
    running: float, queued: float, asleep: bool, expected: bool
) -> None:
    assert sleeps(START, after(1, running=running, queued=queued), asleep=asleep) is expected
    # Neither for how long one looked nor how many processors there are changes anything.
    assert sleeps(START, after(8, running=8 * running, queued=8 * queued), asleep=asleep) is expected


def test_between_sleeping_and_spinning_there_is_room() -> None:
    assert ALONE < QUEUED


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_a_person_has_set_stays(setting: str) -> None:
    assert left_open({"OMP_NUM_THREADS": "2"}, threads=2)
    assert not left_open({setting: "ACTIVE"}, threads=2)


def test_one_thread_waits_for_nobody() -> None:
    assert not left_open({}, threads=1)


def test_what_all_threads_have_done_is_added(tmp_path: Path) -> None:
    for task, text in {"1": "2500000000 500000000 9\n", "7": "1000000000 0 1\n", "8": ""}.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(text)

    assert ran(7.0, tmp_path) == Ran(7.0, running=3.5, queued=0.5)


def test_a_kernel_that_does_not_tell_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()

    assert ran(7.0, tmp_path) is None


def test_this_kernel_tells() -> None:
    before = now = ran(0.0)
    assert before is not None
    deadline = time.monotonic() + 60
    while now == before:  # it counts by the ticks of its clock
        assert time.monotonic() < deadline, "nothing was ever counted"
        torch.rand(300, 300) @ torch.rand(300, 300)
        now = ran(0.0)
    assert now is not None
    assert now.running > before.running


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A team of two threads, that nobody has told how to wait."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.05)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    in_parallel()
    yield
    torch.set_num_threads(before)


def in_parallel() -> torch.Tensor:
    """A sum that depends on how many threads share it."""
    values = torch.arange(1 << 18, dtype=torch.float32).sin_()
    return values.sum()


def threads_here() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def crowd() -> bool:
    return any(thread.name == "waiting-crowd" for thread in threading.enumerate())


def wait_for_a_crowd() -> None:
    deadline = time.monotonic() + 60
    while not crowd():
        assert time.monotonic() < deadline, "threads were never sent to sleep"
        in_parallel()


@contextmanager
def busy_processors() -> Iterator[None]:
    with ExitStack() as processes:
        for _ in os.sched_getaffinity(0):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            processes.callback(process.wait)
            processes.callback(process.kill)
        yield


@pytest.mark.usefixtures("two_threads")
def test_beside_others_threads_sleep_and_how_many_compute_stays_the_same() -> None:
    expected, threads = in_parallel(), threads_here()
    with waiting(2), busy_processors():
        wait_for_a_crowd()
        assert torch.get_num_threads() == 2
        assert torch.equal(in_parallel(), expected)
    assert not crowd()
    deadline = time.monotonic() + 60
    while threads_here() > threads:  # a thread that was joined is on its way out for a moment
        assert time.monotonic() < deadline, "the crowd is still there"
        time.sleep(0.1)


@pytest.mark.usefixtures("two_threads")
def test_where_there_are_more_threads_than_processors_each_wait_is_a_sleep() -> None:
    made = module._Crowd.of(2)
    assert made is not None
    before = slept()
    for _ in range(100):
        in_parallel()
        time.sleep(0.001)  # shorter than a thread would spin
    sleeps_of_others = slept() - before
    made.leave()
    assert sleeps_of_others >= 100


def slept() -> int:
    """How often a thread that does no Python has gone to sleep by itself."""
    python = {thread.native_id for thread in threading.enumerate()}
    total = 0
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) not in python:
            status = dict(
                line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line
            )
            total += int(status["voluntary_ctxt_switches"])
    return total
