from __future__ import annotations

import os
import signal
import subprocess
import sys
from subprocess import PIPE

import pytest

from finetune_trainer.stop_signals import stop_signals, without_sigterm


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_training_a_signal_ends_it_at_once_and_says_nothing(number: int) -> None:
    said: list[str] = []
    with stop_signals(said.append), pytest.raises(KeyboardInterrupt):
        send(number)
    assert said == []


def test_a_signal_that_a_library_caught_before_training_is_not_lost() -> None:
    with stop_signals(lambda _: None) as signals:
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signals.begun()
        assert not signals.can_save


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGINT, "stopping after this step, with a snapshot; press Ctrl-C again to stop now"),
        (signal.SIGTERM, "stopping after this step, with a snapshot"),
    ],
)
def test_in_training_the_first_signal_requests_a_stop_and_the_second_ends_it(number: int, line: str) -> None:
    said: list[str] = []
    with stop_signals(said.append) as signals:
        signals.begun()
        assert not signals.requested()
        send(number)
        assert signals.requested()
        signals.begun()
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert said == [line]


def test_when_all_is_saved_the_first_signal_ends_what_follows_at_once() -> None:
    said: list[str] = []
    with stop_signals(said.append) as signals:
        signals.begun()
        signals.saved()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    assert said == []


def test_a_stop_that_was_asked_for_in_the_last_step_lets_nothing_follow() -> None:
    with stop_signals(lambda _: None) as signals:
        signals.begun()
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signals.saved()


def test_afterwards_signals_do_what_they_did_before() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_signals(lambda _: None):
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_what_is_started_without_sigterm_outlives_it_and_what_starts_it_gets_it_afterwards() -> None:
    with stop_signals(lambda _: None) as signals:
        signals.begun()
        with without_sigterm():
            child = subprocess.Popen(
                [sys.executable, "-c", "input(); print('still here')"], stdin=PIPE, stdout=PIPE
            )
            child.send_signal(signal.SIGTERM)
            send(signal.SIGTERM)
        assert signals.requested()
        out, _ = child.communicate(b"\n")

    assert (child.returncode, out) == (0, b"still here\n")
