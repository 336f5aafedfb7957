"""Sends the lines of metrics.jsonl to an experiment tracker, without disturbing training."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec, Logger
from finetune_trainer.report.metrics import Line, NumberLine, SampleLine
from finetune_trainer.report.trackers.mlflow_run import start_mlflow_run
from finetune_trainer.report.trackers.tensorboard_run import event_directory, start_tensorboard_run
from finetune_trainer.report.trackers.wandb_run import check_wandb_login, start_wandb_run
from finetune_trainer.storage.run_directory import RunDirectory

CLOSING_SECONDS = 60.0
"""How long the end of training waits for a tracker that is slow or does not answer."""

MOST_LINES = 100_000
"""That wait for a service that is slow; further ones are not sent, and said to be missing there."""

LONGEST_REASON = 500
"""The most characters of what a service says that are passed on."""

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """An experiment tracker as the training loop sees it."""

    def log(self, line: Line) -> None:
        """Sends a line in the background. Returns at once, and never raises."""

    @property
    def lost(self) -> str | None:
        """What the service did not get so far, for people; None when it may have got all."""


class TrackedRun(Protocol):
    """A run at a tracker's service. Its methods may block, and may raise anything."""

    def send(self, lines: Sequence[NumberLine]) -> None:
        """Adds the numbers of the lines to the run."""

    def show(self, line: SampleLine) -> None:
        """Adds the answers of the line to the run. Steps of calls of both methods do not fall."""

    def end(self, *, failed: bool) -> None:
        """Marks the run as finished or failed."""


def check_tracker(spec: FineTuneJobSpec, run: RunDirectory | None = None) -> None:
    """Checks before training, without using the network, whether the tracker can start.

    `run` is where the run is going to be, if that is known. Raises FineTuneError (InvalidSpec) when its
    package is not installed, when wandb has no key to log in with, and when there is no directory for
    TensorBoard's files.
    """
    if spec.logger is None:
        return
    provider = spec.logger.provider
    package = importlib.util.find_spec(provider)
    # A folder called wandb, which wandb creates for its runs, looks like a package, but has no origin.
    if package is None or package.origin is None:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"spec.logger.provider: {provider} is not installed; pip install 'finetune-operator[{provider}]',"
            " or leave spec.logger out",
        )
    if provider == "wandb" and os.environ.get("WANDB_MODE") not in ("offline", "dryrun", "disabled"):
        check_wandb_login()
    if provider == "tensorboard" and run is not None:
        event_directory(spec.logger.provider_config, run)


@contextmanager
def open_tracker(spec: FineTuneJobSpec, name: str, run: RunDirectory | None = None) -> Iterator[Tracker]:
    """Starts a run at the tracker that the spec names; without one, the tracker does nothing.

    `name` is the job's, and `run` where TensorBoard's files go unless the spec says where. At the end of the
    `with` block the run is marked as finished, or as failed when the block raised an exception. A job that is
    resumed starts a new run. Raises FineTuneError before the block begins: as `check_tracker` does, and
    InvalidSpec, AccessDenied or StorageError when the service refuses the run or cannot be reached.
    """
    if spec.logger is None:
        yield _NoTracker()
        return
    check_tracker(spec, run)
    tracker = _BackgroundTracker(_started(spec, spec.logger, name, run), spec.logger.provider)
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        tracker.close(failed=failed)


def _started(spec: FineTuneJobSpec, logger: Logger, name: str, run: RunDirectory | None) -> TrackedRun:
    match logger.provider:
        case "mlflow":
            return start_mlflow_run(spec, logger.provider_config, name)
        case "tensorboard":
            return start_tensorboard_run(spec, logger.provider_config, run)
        case "wandb":
            return start_wandb_run(spec, logger.provider_config, name)


class _NoTracker:
    lost = None

    def log(self, line: Line) -> None:
        pass


class _BackgroundTracker:
    """Sends lines in a thread of its own, so that a service that is slow or gone holds up no step."""

    def __init__(self, run: TrackedRun, provider: str) -> None:
        self._run = run
        self._provider = provider
        self._failed = False
        self._reason: str | None = None
        self._sent = self._missing = self._left_out = 0
        self._lines: SimpleQueue[Line | None] = SimpleQueue()
        self._thread = Thread(target=self._deliver, name=f"{provider} tracker", daemon=True)
        self._thread.start()

    def log(self, line: Line) -> None:
        if self._lines.qsize() >= MOST_LINES:
            self._left_out += 1
            self._warn(f"it is too slow: {MOST_LINES} points waited")
            return
        self._lines.put(line)

    @property
    def lost(self) -> str | None:
        if self._reason is None:
            return None
        missing, all_ = (each + self._left_out for each in (self._missing, self._sent))
        points = f"{missing} of {all_} points" if missing else "all numbers"
        return f"{self._provider} did not get {points} of this run (metrics.jsonl has them): {self._reason}"

    def close(self, *, failed: bool) -> None:
        self._failed = failed
        self._lines.put(None)
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            self._warn(f"no answer within {CLOSING_SECONDS:g} s")

    def _deliver(self) -> None:
        closed = False
        while not closed:
            taken = [self._lines.get()]
            while not self._lines.empty():
                taken.append(self._lines.get())
            closed = taken[-1] is None
            lines = [line for line in taken if line is not None]
            self._sent += len(lines)
            self._deliver_in_order(lines)
        with self._warning(0):
            self._run.end(failed=self._failed)

    def _deliver_in_order(self, lines: list[Line]) -> None:
        """Numbers that follow each other go together, answers by themselves."""
        numbers: list[NumberLine] = []
        for line in lines:
            if isinstance(line, SampleLine):
                self._send(numbers)
                numbers = []
                if line.samples:
                    with self._warning(1):
                        self._run.show(line)
            else:
                numbers.append(line)
        self._send(numbers)

    def _send(self, numbers: list[NumberLine]) -> None:
        if numbers:
            with self._warning(len(numbers)):
                self._run.send(numbers)

    @contextmanager
    def _warning(self, lines: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - no error of a tracker may stop training
            self._missing += lines
            self._warn(str(error))

    def _warn(self, reason: str) -> None:
        if self._reason is None:
            self._reason = " ".join(reason.split())[:LONGEST_REASON]
            _log.info("%s fails: %s", self._provider, reason)
