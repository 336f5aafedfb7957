"""Workers by Ray Train: on several devices of one machine, and on a cluster.

They start, import and load their model while the driver still prepares the job.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayError
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig

from finetune_api.failure import FailureClass
from finetune_api.status import Failure, ProgressRecord
from finetune_trainer.training.job import Outcome, Start, TrainingJob
from finetune_trainer.workers.actor_board import ActorBoard
from finetune_trainer.workers.directory_board import DirectoryBoard
from finetune_trainer.workers.drain import Drain
from finetune_trainer.workers.environment import kills_for_memory
from finetune_trainer.workers.progress_board import Notice, ProgressBoard
from finetune_trainer.workers.ray_failures import failure_of_run, lost_worker
from finetune_trainer.workers.ray_worker import WorkerConfig, train_worker
from finetune_trainer.workers.workers import Ended

POLL_SECONDS = 0.5
SECONDS_TO_SAVE = 120
"""For a snapshot, on the nodes that stay, after another is gone."""

_IDLE_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")

TAKEN_AWAY = "a node is being taken away; a snapshot was saved"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayWorkers:
    """See `finetune_trainer.workers.workers`."""

    connect: Callable[[], AbstractContextManager[None]]
    """Ray runs inside this block."""
    num_devices: int
    on_gpu: bool
    resources: dict[str, float]
    """What Ray must give each worker."""
    threads: int
    """Of each worker's arithmetic."""
    on_this_machine: bool = False
    """Whether all workers are processes of this machine."""

    @contextmanager
    def started(self, start: Start) -> Iterator[RayGroup]:
        """Ray and the workers start while the caller goes on."""
        before = signal.getsignal(signal.SIGTERM)
        # Ray ends before the directory goes that it writes to.
        scratch = tempfile.TemporaryDirectory(prefix="finetune-ray-", ignore_cleanup_errors=True)
        with scratch as directory, self.connect():
            signal.signal(signal.SIGTERM, before)  # Ray puts a handler of its own in place
            board = DirectoryBoard(Path(directory)) if self.on_this_machine else ActorBoard()
            yield RayGroup(self, start, board, directory)


class _Trainer(ray.train.torch.TorchTrainer):
    """Without actors of Ray Train that do nothing here: each is a process that wakes up 100 times a second.

    One splits Ray's data sets; one gives back devices when Ray Train dies, and Ray ends with it here; and one
    asks for machines.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in callbacks if type(each).__name__ not in _IDLE_CALLBACKS]

    def _initialize_and_run_controller(self, **arguments: object) -> ray.train.Result:
        policy = _OneMachine(self.scaling_config)  # type: ignore[arg-type]
        run: Callable[..., ray.train.Result] = super()._initialize_and_run_controller  # type: ignore[misc]
        return run(**arguments | {"scaling_policy": policy})


class _OneMachine(FixedScalingPolicy):
    """Asks for no machines: Ray Train's own policy does so when it starts, and every 20 s from then on."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Asks for nothing."""

    def _maybe_send_resource_request(self) -> None:
        pass


class RayGroup:
    """Workers that Ray Train has been asked for."""

    def __init__(self, workers: RayWorkers, start: Start, board: ProgressBoard, scratch: str) -> None:
        self._board = board
        self._scratch = scratch
        self._error: BaseException | None = None
        self._on_this_machine = workers.on_this_machine
        self._kills = kills_for_memory() if workers.on_this_machine else None
        # Ray's own fit answers Ctrl-C by killing the workers; in a thread it leaves signals alone, and a
        # snapshot can be saved.
        self._fitting = threading.Thread(
            target=self._fit, args=(workers, start), name="ray-train", daemon=True
        )
        self._fitting.start()

    def train(
        self,
        job: TrainingJob,
        report: Callable[[ProgressRecord], None],
        stop_requested: Callable[[], bool],
    ) -> Ended:
        """See `finetune_trainer.workers.workers.Group`.

        A node that is about to go stops the run too, and that is a failure (NodeLost).
        """
        self._board.put_job(ray.put(job.for_this_machine() if self._on_this_machine else job))
        notice, drain = Notice(), None if self._on_this_machine else Drain()
        asked = taken_away = False
        try:
            while self._fitting.is_alive():
                self._fitting.join(POLL_SECONDS)
                seen = notice.version
                notice = self._board.read(timeout=POLL_SECONDS) or notice
                if notice.version > seen and notice.record is not None:
                    report(notice.record)
                if not asked and (stop_requested() or (drain is not None and drain.seen())):
                    asked, taken_away = True, not stop_requested()
                    self._board.stop()
            notice = self._board.read() or notice
        except RayError as lost:
            return self._ended(notice, lost, taken_away=False, stopped=stop_requested())
        return self._ended(notice, self._error, taken_away=taken_away, stopped=stop_requested())

    def _ended(
        self, notice: Notice, error: BaseException | None, *, taken_away: bool, stopped: bool
    ) -> Ended:
        kills = (self._kills, kills_for_memory() if self._kills is not None else None)
        ended = how_it_ended(notice, error, taken_away=taken_away, stopped=stopped, kills=kills)
        if ended.failure is not None and ended.failure.failure_class is FailureClass.UNKNOWN:
            _log.error("%s", error)
        return ended

    def _fit(self, workers: RayWorkers, start: Start) -> None:
        try:
            trainer = _Trainer if workers.on_this_machine else ray.train.torch.TorchTrainer
            trainer(
                train_worker,
                train_loop_config={"worker": WorkerConfig(start, self._board, workers.threads)},
                torch_config=ray.train.torch.TorchConfig(backend=_backend(workers, start)),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=workers.num_devices,
                    use_gpu=workers.on_gpu,
                    resources_per_worker=workers.resources,
                ),
                run_config=ray.train.RunConfig(
                    name="finetune",
                    storage_path=self._scratch,
                    # Ray Train would start again from where this attempt began.
                    failure_config=FailureConfig(
                        max_failures=0, max_preemption_failures=0, preemption_grace_s=SECONDS_TO_SAVE
                    ),
                ),
            ).fit()
        except BaseException as error:  # noqa: BLE001 - it crosses to the thread that follows, which names it
            self._error = error


def _backend(workers: RayWorkers, start: Start) -> str | None:
    """What workers communicate over; None is Ray's choice."""
    # Parts of a model may be in the host's memory, of which NCCL knows nothing.
    return "cpu:gloo,cuda:nccl" if workers.on_gpu and start.sharding.kind == "fsdp" else None


def how_it_ended(
    notice: Notice,
    error: BaseException | None,
    *,
    taken_away: bool,
    stopped: bool,
    kills: tuple[int | None, int | None],
) -> Ended:
    """How training ended, by what is on the board at last and what Ray Train raised, if it raised anything.

    `taken_away` says whether it was to stop because a node goes, `stopped` whether somebody asked for it.
    `kills` are those of `kills_for_memory` before training and now.
    """
    outcome = Outcome(notice.outcome) if notice.outcome is not None else None
    if taken_away and outcome is Outcome.STOPPED:
        return Ended(
            notice.record, outcome, Failure(failure_class=FailureClass.NODE_LOST, message=TAKEN_AWAY)
        )
    if error is None:
        return Ended(notice.record, outcome)
    failure = notice.failure or failure_of_run(error)
    if failure.failure_class is FailureClass.NODE_LOST:
        if stopped:
            # Who ends a unit of systemd or a step of SLURM signals every process of it.
            return Ended(notice.record, Outcome.STOPPED, saved=outcome is Outcome.STOPPED)
        failure = lost_worker(failure, before=kills[0], after=kills[1])
    return Ended(notice.record, outcome, failure)
