"""Whether a job can run under this operator's configuration, and whether it is prepared before it does."""

from __future__ import annotations

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.paths import child
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.children.objects import unchecked_hash
from finetune_operator.children.placement import Placement, placement
from finetune_operator.decide.conditions import Finding
from finetune_operator.decide.situation import Situation, run_name
from finetune_operator.names import QUEUES, UNCHECKED_SPEC
from finetune_operator.observed import Job
from finetune_operator.settings.configuration import Configuration


def accepted_placement(job: Job, spec: FineTuneJobSpec, configuration: Configuration) -> Placement:
    """Where the workers of a job go that this operator's configuration can serve.

    Raises FineTuneError (InvalidSpec) with every reason why it cannot: no profile of the accelerator, no
    storage.
    """
    problems: list[str] = []
    placed = None
    try:
        placed = placement(spec, configuration)
    except FineTuneError as error:
        problems += error.problems
    if job.status.run_directory is None and spec.storage is None and configuration.storage is None:
        problems.append(
            "spec.storage: is required, since this operator has no default; give {path: s3://..., gs://... or"
            " pvc://CLAIM/dir}"
        )
    if problems or placed is None:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    return placed


def new_run_directory(situation: Situation) -> str:
    """The run directory of an accepted job that has none yet, in its own storage or the operator's."""
    spec, configuration = situation.spec, situation.configuration
    storage = spec.storage.path if spec.storage is not None else configuration.storage
    assert storage is not None, "accepted_placement has seen to it"
    return child(storage, run_name(situation.job))


def must_prepare(situation: Situation, status: FineTuneJobStatus, placed: Placement) -> bool:
    """Whether the job has to be prepared before a cluster is asked for, and is not yet.

    By default that is so where devices would be held meanwhile, or where it is long until a queue gives them.
    Its plan says that it is prepared, whoever made it.
    """
    prepare_job = situation.observed.prepare_job
    if status.plan is not None or (prepare_job is not None and prepare_job.has_succeeded):
        return False
    asked = situation.spec.run_policy.prepare_first
    if asked is not None:
        return asked
    passed_on = set(QUEUES) & set(situation.configuration.ray_job_labels)
    return placed.profile.has_device or any(key in situation.job.metadata.labels for key in passed_on)


def acceptance(situation: Situation) -> Finding:
    """What the condition Accepted says of a job whose spec is valid."""
    made = situation.observed.ray_job or situation.observed.prepare_job
    made_from = made.metadata.annotations.get(UNCHECKED_SPEC, "") if made is not None else ""
    if made_from not in ("", unchecked_hash(situation.spec)):
        message = (
            "spec was changed in more than suspend and run_policy; the change is ignored, make a new"
            " FineTuneJob for it"
        )
        return Finding("True", "ChangeIgnored", message)
    return Finding("True", "Valid", _summary(situation.spec))


def _summary(spec: FineTuneJobSpec) -> str:
    method = "LoRA" if spec.lora_config is not None else "full-parameter training"
    return f"{method} of {spec.model_id} on {spec.num_devices} device{'' if spec.num_devices == 1 else 's'}"
