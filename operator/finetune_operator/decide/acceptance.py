"""Whether a job can run under this operator's configuration, and what the condition Accepted says."""

from __future__ import annotations

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.paths import child
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.children.objects import unchecked_hash
from finetune_operator.children.placement import Placement, placement
from finetune_operator.decide.conditions import Finding
from finetune_operator.decide.situation import Situation, run_name
from finetune_operator.names import UNCHECKED_SPEC
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


def acceptance(situation: Situation) -> Finding:
    """What the condition Accepted says of a job whose spec is valid."""
    ray_job = situation.observed.ray_job
    made_from = ray_job.metadata.annotations.get(UNCHECKED_SPEC, "") if ray_job is not None else ""
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
