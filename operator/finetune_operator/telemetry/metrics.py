"""Metrics of the operator and of the jobs, for Prometheus."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.children.placement import held_devices
from finetune_operator.decide.conditions import condition
from finetune_operator.decide.phases import ENDED
from finetune_operator.observed import EndedJob, Job

MOST_JOBS = 200
"""Unfinished jobs that have series of their own; of more, the ones that began first."""

RECONCILES = Histogram(
    "finetune_reconcile_duration_seconds",
    "Time to look at a job once",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
RECONCILE_ERRORS = Counter(
    "finetune_reconcile_errors", "Looks at a job that failed and are tried again", ["kind"]
)
API_CALLS = Counter("finetune_api_calls", "Calls to the Kubernetes API", ["verb", "resource", "code"])
PROGRESS_LAG = Histogram(
    "finetune_progress_lag_seconds",
    "From a progress record's time to its being in the status",
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 300),
)
TIME_TO_RUNNING = Histogram(
    "finetune_time_to_running_seconds",
    "From a job's creation to its first training step",
    buckets=(15, 30, 60, 120, 300, 600, 1800, 3600, 14400),
)
DEVICE_SECONDS = Counter(
    "finetune_device_seconds", "Devices times the seconds that they were held", ["accelerator"]
)
EVENTS_LOST = Counter("finetune_events_lost", "Kubernetes events that could not be posted, or were too many")
NAMESPACES_LEFT_ALONE = Gauge(
    "finetune_namespaces_left_alone",
    "Namespaces whose jobs the operator is to run and cannot watch: they are gone, or it may not",
)
WATCH_STALE = Gauge("finetune_watch_stale_seconds", "For how long a watch has owed an event; 0 is healthy")

_LABELS = ["namespace", "name"]


def measure(job: Job, after: FineTuneJobStatus, now: datetime) -> None:
    """Counts what the change from a job's status to the one after it shows."""
    before, created = job.status, job.metadata.creation_timestamp
    if after.accelerator_type is not None:
        held = (after.device_seconds or 0.0) - (before.device_seconds or 0.0)
        # Also when it is 0: `rate` does not see what a series begins with.
        DEVICE_SECONDS.labels(accelerator=after.accelerator_type).inc(max(0.0, held))
    if after.progress is not None and (
        before.progress is None or after.progress.last_update_time != before.progress.last_update_time
    ):
        PROGRESS_LAG.observe(max(0.0, (now - after.progress.last_update_time).total_seconds()))
    starts = after.phase is Phase.RUNNING and before.phase is not Phase.RUNNING and after.attempts == 1
    if starts and created is not None:
        TIME_TO_RUNNING.observe((now - created).total_seconds())


class JobCollector(Collector):
    """Metrics of the jobs, computed whenever Prometheus asks for them."""

    def __init__(
        self, jobs: Callable[[], Iterable[Job]], ended: Callable[[], Iterable[EndedJob]] = tuple
    ) -> None:
        self._jobs = jobs
        self._ended = ended

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Jobs by phase, and the progress of those that have not ended."""
        known = sorted(self._jobs(), key=lambda job: job.metadata.creation_timestamp or datetime.now(UTC))
        # Of each name the newest: a watch may never report that an older one is gone.
        jobs = list({(job.metadata.namespace, job.metadata.name): job for job in known}.values())
        phases = GaugeMetricFamily("finetune_jobs", "FineTuneJobs by phase", labels=["phase"])
        count = Count(job.status.phase or Phase.PENDING for job in jobs)
        count.update(job.phase for job in self._ended())
        for phase in Phase:
            phases.add_metric([phase.value], count[phase])
        yield phases
        unfinished = [job for job in jobs if job.status.phase not in ENDED]
        oldest = unfinished[:MOST_JOBS]
        yield _series("finetune_job_step", "Optimizer steps done", oldest, _step)
        yield _series("finetune_job_steps", "Optimizer steps of the run", oldest, _steps)
        yield _series("finetune_job_train_loss", "Loss of the last optimizer step", oldest, _train_loss)
        yield _series("finetune_job_eval_loss", "Loss of the last validation", oldest, _eval_loss)
        yield _series("finetune_job_tokens_per_second", "Tokens of all devices", oldest, _tokens_per_second)
        yield _series("finetune_job_devices", "Devices that the job holds", oldest, _devices)


def _series(
    name: str, text: str, jobs: Iterable[Job], value: Callable[[Job], float | None]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=_LABELS)
    for job in jobs:
        number = value(job)
        if number is not None:
            family.add_metric([job.metadata.namespace, job.metadata.name], number)
    return family


def _step(job: Job) -> float | None:
    return job.status.progress.step if job.status.progress else None


def _steps(job: Job) -> float | None:
    return job.status.plan.total_steps if job.status.plan else None


def _train_loss(job: Job) -> float | None:
    return job.status.progress.train_loss if job.status.progress else None


def _eval_loss(job: Job) -> float | None:
    return job.status.evaluation.loss if job.status.evaluation else None


def _tokens_per_second(job: Job) -> float | None:
    return job.status.progress.tokens_per_second if job.status.progress else None


def _devices(job: Job) -> float | None:
    ready = condition(job.status.conditions, "ClusterReady")
    return float(held_devices(job.spec)) if ready is not None and ready.status == "True" else 0.0
