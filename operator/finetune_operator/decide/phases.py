"""What the status shows in each phase: its message, its conditions, and what it says of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from finetune_api.output import is_about_output, not_pushed
from finetune_api.record import trained
from finetune_api.status import Failure, FineTuneJobStatus, Phase, Workers
from finetune_operator.children.placement import Placement
from finetune_operator.decide.acceptance import acceptance
from finetune_operator.decide.cleanup import left_behind, unfinished_prepare
from finetune_operator.decide.conditions import ConditionType, Finding, Reason, condition
from finetune_operator.decide.events import RECORD_INVALID
from finetune_operator.decide.obstacles import waiting_for_kuberay
from finetune_operator.decide.situation import Situation
from finetune_operator.decide.status import none_ready, updated
from finetune_operator.decide.wait import Obstacle, Wait
from finetune_operator.names import QUEUE
from finetune_operator.observed import PrepareJob, RayJob

ENDED = (Phase.SUCCEEDED, Phase.FAILED)
"""Phases that nothing comes after."""
MOST_OTHERS = 15
"""Of a status' 16 warnings, those beside that about `output`."""


def requested(
    situation: Situation,
    status: FineTuneJobStatus,
    placed: Placement,
    *,
    attempt: int,
    ray_job_name: str,
    run_directory: str,
    failure: Failure | None,
) -> FineTuneJobStatus:
    """An attempt's RayJob is asked for; `failure` is why the attempt before this one ended."""
    message = waiting_for_kuberay(ray_job_name)
    asked = _asked(
        status, Finding("False", Obstacle.KUBERAY, message), again=status.ray_job_name == ray_job_name
    )
    return _updated(
        situation,
        status,
        _not_training(situation, "Starting", asked),
        phase=Phase.RETRYING if failure is not None else _phase_before_start(status),
        message=asked.message,
        attempts=attempt,
        ray_job_name=ray_job_name,
        ray_cluster_name=None,
        dashboard_url=None,
        run_directory=run_directory,
        accelerator_type=placed.accelerator_type,
        workers=Workers(desired=placed.pods, ready=0),
        failure=failure or status.failure,
    )


def prepare_requested(
    situation: Situation,
    status: FineTuneJobStatus,
    placed: Placement,
    *,
    attempt: int,
    prepare_job_name: str,
    run_directory: str,
    failure: Failure | None,
) -> FineTuneJobStatus:
    """The Job that prepares for an attempt is asked for; `failure` is why the one before this one ended."""
    message = f"asked for Job {prepare_job_name}, which prepares before a cluster is asked for"
    again = status.phase is Phase.PREPARING and status.attempts == attempt
    asked = _asked(status, Finding("False", "Preparing", message), again=again)
    return _updated(
        situation,
        status,
        _not_training(situation, "Preparing", asked),
        phase=Phase.PREPARING,
        message=asked.message,
        attempts=attempt,
        ray_job_name=None,
        ray_cluster_name=None,
        dashboard_url=None,
        run_directory=run_directory,
        accelerator_type=placed.accelerator_type,
        workers=Workers(desired=placed.pods, ready=0),
        failure=failure or status.failure,
    )


def _asked(status: FineTuneJobStatus, asked: Finding, *, again: bool) -> Finding:
    """What ClusterReady says of an object that is asked for, perhaps `again`, since it was refused.

    A status that went to and fro would wake the operator each time.
    """
    before = condition(status.conditions, "ClusterReady")
    if again and before is not None and before.reason == Obstacle.REFUSED:
        return Finding("False", Obstacle.REFUSED, before.message)
    return asked


def preparing(
    situation: Situation, status: FineTuneJobStatus, prepare_job: PrepareJob, wait: Wait | None
) -> FineTuneJobStatus:
    """The job is prepared; `wait` is what keeps that from beginning."""
    name = prepare_job.metadata.name
    if wait is not None:
        message = wait.message
    elif status.plan is not None:
        message = f"the job is prepared; Job {name} ends"
    elif situation.prepare_record is not None:
        message = "data and model are read and checked; no device is held meanwhile"
    else:
        message = f"Prepare's program starts; its log: kubectl logs job/{name}"
    cluster = Finding("False", wait.obstacle if wait is not None else "Preparing", message)
    findings = _not_training(situation, "Preparing", cluster)
    if situation.record_problem is not None:
        message = situation.record_problem
        findings["Training"] = Finding("False", RECORD_INVALID, message)
    return _updated(situation, status, findings, phase=Phase.PREPARING, message=message)


def cleaning_up(situation: Situation, status: FineTuneJobStatus, message: str) -> FineTuneJobStatus:
    """The attempt waits until something of an earlier cluster is gone."""
    findings = _not_training(situation, "Waiting", Finding("False", "CleaningUp", message))
    return _updated(situation, status, findings, phase=_phase_before_start(status), message=message)


def with_cluster(situation: Situation, status: FineTuneJobStatus, ray_job: RayJob) -> FineTuneJobStatus:
    """The status with the names of the RayJob and its cluster, and how many workers are ready."""
    ready = sum(
        pod.is_worker and pod.is_ready and pod.metadata.deletion_timestamp is None
        for pod in situation.observed.pods
    )
    desired = status.workers.desired if status.workers else situation.spec.num_devices
    return status.model_copy(
        update={
            "workers": Workers(desired=desired, ready=ready),
            "ray_cluster_name": ray_job.status.ray_cluster_name or None,
            "dashboard_url": ray_job.status.dashboard_url or None,
            "ray_job_name": ray_job.metadata.name,
        }
    )


def queued(situation: Situation, status: FineTuneJobStatus, ray_job: RayJob) -> FineTuneJobStatus:
    """Kueue, or somebody, holds the RayJob back."""
    queue = situation.job.metadata.labels.get(QUEUE)
    name = ray_job.metadata.name
    message = (
        f"waiting for Kueue to admit RayJob {name} from queue {queue}"
        if queue
        else f"RayJob {name} is held back: its suspend is true"
    )
    findings = _not_training(situation, "Queued", Finding("False", "Queued", message))
    return _updated(situation, status, findings, phase=Phase.QUEUED, message=message)


def starting(
    situation: Situation, status: FineTuneJobStatus, wait: Wait, *, kuberay_is_slow: bool
) -> FineTuneJobStatus:
    """The Ray cluster is not up yet."""
    message = wait.message
    if kuberay_is_slow:
        message += "; it has not answered, check that the KubeRay operator runs and watches this namespace"
    findings = _not_training(situation, "Starting", Finding("False", wait.obstacle, message))
    phase = Phase.PENDING if wait.obstacle is Obstacle.KUBERAY else Phase.STARTING
    return _updated(situation, status, findings, phase=phase, message=message)


def before_training(
    situation: Situation, status: FineTuneJobStatus, ray_job: RayJob, wait: Wait | None
) -> FineTuneJobStatus:
    """The cluster is up and the trainer does not train yet; `wait` is what keeps it from that."""
    record = situation.own_record
    if record is not None and record.plan is not None:
        message = record.doing or "the workers load the model"
    elif record is not None:
        message = "the trainer reads and tokenizes the data"
    elif ray_job.is_submitted:
        message = f"the trainer's program starts; its log: kubectl logs job/{ray_job.metadata.name}"
    else:
        message = "all pods are ready; the program is being handed to Ray"
    if wait is not None:
        message = wait.message
    findings = _not_training(situation, "Starting", _cluster_ready(wait))
    if situation.record_problem is not None:
        message = situation.record_problem
        findings["Training"] = Finding("False", RECORD_INVALID, message)
    return _updated(situation, status, findings, phase=Phase.STARTING, message=message)


def training(situation: Situation, status: FineTuneJobStatus, wait: Wait | None) -> FineTuneJobStatus:
    """The trainer trains; `wait` is what a cluster that lacks workers waits for."""
    progress, plan, problem = status.progress, status.plan, situation.record_problem
    message = "training"
    if progress is not None and plan is not None:
        message = f"training: step {progress.step} of {plan.total_steps}, epochs {progress.epochs}"
    if situation.own_record is not None and situation.own_record.doing is not None:
        message = f"training has finished: {situation.own_record.doing}"
    if wait is not None:
        message = wait.message
    if situation.finished_at is not None:
        message = f"the run has finished; its devices are free when KubeRay sees it{_kept_alive(situation)}"
    findings: dict[ConditionType, Finding] = {
        "Accepted": acceptance(situation),
        "ClusterReady": _cluster_ready(wait),
        "Training": Finding("True", RECORD_INVALID if problem else "Training", problem or ""),
        "Succeeded": Finding("Unknown", "InProgress"),
        "Stalled": Finding("False", "Progressing"),
    }
    return _updated(
        situation, status, findings, phase=Phase.RUNNING, message=problem or message, failure=None
    )


def retrying(situation: Situation, status: FineTuneJobStatus, failure: Failure) -> FineTuneJobStatus:
    """The attempt has failed and the next one has not begun."""
    record = situation.own_record
    origin = status.latest_checkpoint.name if status.latest_checkpoint else "the beginning"
    if record is not None and record.interrupted and record.progress is not None:
        origin = f"the snapshot after step {record.progress.step}"
    message = (
        f"attempt {situation.job.attempt} failed ({failure.failure_class}: {failure.message});"
        f" another one goes on from {origin}"
    )
    left = left_behind(situation.observed, situation.now)
    if left is not None:
        message += f"; {left}"
    findings = _not_training(situation, "Retrying", Finding("False", "Retrying", message))
    return _updated(situation, status, findings, phase=Phase.RETRYING, message=message, failure=failure)


def suspended(situation: Situation, status: FineTuneJobStatus, ray_job: RayJob | None) -> FineTuneJobStatus:
    """`suspend` is true; `ray_job`, or else a Job that prepares, is what still has to go."""
    prepare_job = unfinished_prepare(situation.observed)
    holding = left_behind(situation.observed, situation.now)
    saved = status.latest_checkpoint
    rest = f"suspend: false goes on from {saved.name}" if saved else "suspend: false begins it"
    message = f"suspended; {rest}"
    going = holding is not None or ray_job is not None or prepare_job is not None
    if prepare_job is not None:
        message = f"Job {prepare_job.metadata.name}, which prepares, is ended"
    elif going:
        message = f"giving the devices back: {holding or 'waiting for KubeRay'}"
    findings = _not_training(situation, "Suspended", Finding("False", "Suspended", message))
    if not going:
        # It is as its spec says, and stays so.
        findings["Reconciling"] = Finding("False", "Suspended", message)
    return _updated(
        situation,
        status,
        findings,
        phase=Phase.SUSPENDED,
        message=message,
        ray_job_name=None,
        ray_cluster_name=None,
        dashboard_url=None,
        start_time=None,
        workers=none_ready(status.workers),
    )


def succeeded_without_output(
    situation: Situation, status: FineTuneJobStatus, failure: Failure, ended: datetime
) -> FineTuneJobStatus:
    """All is trained and saved, and `failure` has ended what `output` of the spec asks for, at `ended`."""
    output = situation.spec.output
    assert output is not None, "something of it was left to do"
    problem = f"{failure.failure_class}: {failure.message}"
    warning = not_pushed(output, status.run_directory or "", problem)
    others = [each for each in status.warnings if not is_about_output(each)]
    warnings = [*others[-MOST_OTHERS:], warning]
    return succeeded(situation, status.model_copy(update={"warnings": warnings}), ended)


def succeeded(situation: Situation, status: FineTuneJobStatus, ended: datetime) -> FineTuneJobStatus:
    """The job is done, since `ended`."""
    best = status.best_checkpoint
    measured = (
        f" (validation loss {best.eval_loss:.4f})" if best is not None and best.eval_loss is not None else ""
    )
    patience = situation.spec.early_stopping_patience if status.stopped_early else None
    ran = trained(status.plan, status.progress, patience)
    message = f"{ran}; the best checkpoint is {best.name if best else ''}{measured}"
    findings: dict[ConditionType, Finding] = {
        "Accepted": acceptance(situation),
        "ClusterReady": Finding("False", "Ended", "the cluster is given back"),
        "Training": Finding("False", "Succeeded", message),
        "Succeeded": Finding("True", "Succeeded", message),
        "Stalled": Finding("False", "Succeeded"),
    }
    return _updated(
        situation,
        status,
        findings,
        phase=Phase.SUCCEEDED,
        message=message,
        completion_time=ended,
        workers=none_ready(status.workers),
        failure=None,
    )


def _updated(
    situation: Situation,
    status: FineTuneJobStatus,
    findings: Mapping[ConditionType, Finding],
    **changes: Any,  # noqa: ANN401 - fields of the status
) -> FineTuneJobStatus:
    return updated(situation.job, status, situation.now, findings, **changes)


def _kept_alive(situation: Situation) -> str:
    """What keeps the submitter's pod, and with it the cluster, from its end."""
    for pod in situation.observed.pods_of_attempt:
        if pod.is_submitter and pod.has_ended and pod.still_runs:
            return f": container {', '.join(pod.still_runs)} keeps pod {pod.name} alive"
    return ""


def _cluster_ready(wait: Wait | None) -> Finding:
    if wait is not None:
        return Finding("False", wait.obstacle, wait.message)
    return Finding("True", "Ready", "all pods are ready")


def _not_training(situation: Situation, reason: Reason, cluster: Finding) -> dict[ConditionType, Finding]:
    """The findings about a job that does not train, for this reason; `cluster` is that of ClusterReady."""
    return {
        "Accepted": acceptance(situation),
        "ClusterReady": cluster,
        "Training": Finding("False", reason),
        "Succeeded": Finding("Unknown", "InProgress"),
        "Stalled": Finding("False", "Progressing"),
    }


def _phase_before_start(status: FineTuneJobStatus) -> Phase:
    return Phase.RETRYING if status.phase is Phase.RETRYING else Phase.PENDING
