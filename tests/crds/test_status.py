"""Statuses as Kubernetes reads and writes them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import BaseModel, ValidationError
from tests.crds.reading import all_models

from finetune_api.failure import FailureClass
from finetune_api.status import (
    Checkpoint,
    Condition,
    Evaluation,
    Failure,
    FineTuneJobStatus,
    Phase,
    Plan,
    Progress,
    ProgressRecord,
    PushedModel,
    Sample,
    Workers,
)

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)

CHECKPOINT = Checkpoint(
    name="epoch-1",
    path="s3://b/r/epoch-1",
    epoch=2,
    step=40,
    eval_loss=2.36,
    perplexity=10.59,
    time=NOON,
    best=True,
    latest=True,
)
FULL = FineTuneJobStatus(
    observed_generation=3,
    phase=Phase.RUNNING,
    conditions=[
        Condition(
            type="Accepted",
            status="True",
            reason="Valid",
            message="",
            observed_generation=3,
            last_transition_time=NOON,
        ),
        Condition(
            type="Succeeded",
            status="Unknown",
            reason="Training",
            message="in training",
            last_transition_time=NOON,
        ),
    ],
    message="in training",
    ray_job_name="quickstart-1",
    ray_cluster_name="quickstart-1-abcde",
    dashboard_url="http://quickstart-1-head:8265",
    workers=Workers(desired=4, ready=4),
    accelerator_type="A10G",
    attempts=1,
    plan=Plan(
        rows=320,
        validation_rows=32,
        tokens=18421,
        truncated_rows=0,
        context_length=512,
        effective_batch_size=16,
        steps_per_epoch=20,
        total_epochs=5,
        total_steps=100,
        checkpoint_epochs=[0, 1, 2, 3, 4],
        trainable_parameters=2_442_240,
        total_parameters=136_957_248,
    ),
    progress=Progress(
        epoch=2.37,
        epochs="2/5",
        step=47,
        percent=47,
        train_loss=2.3456789,
        learning_rate=5e-5,
        grad_norm=1.25,
        tokens_per_second=206.4,
        tokens_trained=43652,
        estimated_completion_time=NOON + timedelta(minutes=5),
        last_update_time=NOON,
    ),
    evaluation=Evaluation(epoch=2, loss=2.36, perplexity=10.59, metrics={"accuracy": 0.75}),
    samples=[Sample(prompt="What?", base_answer="No.", answer="Yes.")],
    checkpoints=[CHECKPOINT],
    best_checkpoint=CHECKPOINT,
    latest_checkpoint=CHECKPOINT,
    run_directory="s3://b/r",
    model_path="s3://b/r/epoch-1",
    pushed=PushedModel(repository="a/b", revision="c1", url="https://hub/a/b/tree/c1", merged=True),
    failure=Failure(failure_class=FailureClass.NODE_LOST, message="a node went away"),
    start_time=NOON,
    completion_time=NOON,
    device_seconds=240.5,
)


MOST = {f"metric-{number}": 1.0 for number in range(32)}
WRONG_METRICS: list[dict[str, float]] = [
    MOST | {"one-more": 1.0},
    {"": 1.0},
    {"1st": 1.0},
    {"two words": 1.0},
    {"accuracy\n": 1.0},
    {"größe": 1.0},
    {"a" * 64: 1.0},
]
"""More than a status holds, and names that are none."""


def keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys(part)


def test_a_status_is_written_in_camel_case() -> None:
    written = set(keys(json.loads(FULL.model_dump_json(by_alias=True))))

    assert {key for key in written if not re.fullmatch(r"[a-z]+([A-Z][a-z]+|URL)*", key)} == set()
    assert written >= {
        "observedGeneration",
        "dashboardURL",
        "acceleratorType",
        "checkpointEpochs",
        "tokensPerSecond",
        "evalLoss",
        "class",
    }


def test_a_status_that_is_written_is_read_again() -> None:
    assert FineTuneJobStatus.model_validate_json(FULL.model_dump_json(by_alias=True)) == FULL


def test_an_empty_status_says_nothing() -> None:
    assert (
        json.loads(
            FineTuneJobStatus().model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)
        )
        == {}
    )


def test_the_fields_are_those_of_the_contract() -> None:
    fields = """
        observedGeneration phase conditions message rayJobName rayClusterName dashboardURL workers
        acceleratorType attempts interruptions plan progress evaluation samples checkpoints bestCheckpoint
        latestCheckpoint stoppedEarly warnings runDirectory modelPath pushed failure startTime completionTime
        deviceSeconds
    """

    assert {field.alias for field in FineTuneJobStatus.model_fields.values()} == set(fields.split())


def test_a_time_is_in_utc_and_whole_seconds_as_kubernetes_writes_it() -> None:
    somewhere = datetime(2026, 5, 4, 14, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=2)))
    status = FineTuneJobStatus(start_time=somewhere)

    assert json.loads(status.model_dump_json(by_alias=True))["startTime"] == "2026-05-04T12:00:00Z"


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        FineTuneJobStatus(start_time=datetime(2026, 5, 4))  # noqa: DTZ001


def test_measured_numbers_have_seven_digits() -> None:
    evaluation = Evaluation(epoch=1, loss=2.36123456789, perplexity=10.604010809)

    assert (evaluation.loss, evaluation.perplexity) == (2.361235, 10.60401)
    assert FULL.progress is not None
    assert FULL.progress.train_loss == 2.345679


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_json_has_no_number_for_a_loss_that_is_not_finite(loss: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Evaluation(epoch=1, loss=loss, perplexity=1.0)


def test_a_perplexity_that_overflows_is_the_largest_number_that_json_can_hold() -> None:
    evaluation = Evaluation(epoch=1, loss=1000.0, perplexity=math.inf)

    assert evaluation.perplexity is not None
    assert 1e308 < evaluation.perplexity < math.inf
    assert json.loads(evaluation.model_dump_json())["perplexity"] == evaluation.perplexity


def test_metrics_are_measured_numbers_by_name() -> None:
    evaluation = Evaluation(epoch=1, loss=2, perplexity=7.389, metrics={"rewards/accuracy": 0.123456789})

    assert json.loads(evaluation.model_dump_json())["metrics"] == {"rewards/accuracy": 0.1234568}


def test_as_many_metrics_as_there_may_be_with_the_longest_names_are_accepted() -> None:
    longest = {name.ljust(63, "x"): value for name, value in MOST.items()}

    assert Evaluation(epoch=1, loss=2, perplexity=7.389, metrics=longest).metrics == longest


def test_an_evaluation_without_metrics_is_written_as_it_was_before_there_were_any() -> None:
    evaluation = Evaluation(epoch=1, loss=2, perplexity=7.389)
    status = FineTuneJobStatus(evaluation=evaluation)

    assert evaluation.model_dump_json() == '{"epoch":1.0,"loss":2.0,"perplexity":7.389}'
    assert status.model_dump(mode="json", by_alias=True)["evaluation"].keys() == {
        "epoch",
        "loss",
        "perplexity",
    }
    assert FineTuneJobStatus.model_validate(status.model_dump()) == status


@pytest.mark.parametrize(
    "metrics", [*WRONG_METRICS, {"accuracy": math.nan}], ids=lambda metrics: str(metrics)[:40]
)
def test_metrics_that_are_too_many_or_have_other_names_or_values_are_refused(
    metrics: dict[str, float],
) -> None:
    with pytest.raises(ValidationError, match="metrics"):
        Evaluation(epoch=1, loss=2, perplexity=7.389, metrics=metrics)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("phase", "Sleeping"),
        ("message", "x" * 32769),
        ("attempts", -1),
        ("rayJobName", "x" * 254),
        ("modelPath", "x" * 4097),
        ("unknown", 1),
        ("workers", {"desired": 1}),
        ("failure", {"class": "Tired", "message": ""}),
        (
            "conditions",
            [
                {
                    "type": "Happy",
                    "status": "True",
                    "reason": "A",
                    "message": "",
                    "lastTransitionTime": "2026-05-04T12:00:00Z",
                }
            ],
        ),
        (
            "conditions",
            [
                {
                    "type": "Accepted",
                    "status": "yes",
                    "reason": "A",
                    "message": "",
                    "lastTransitionTime": "2026-05-04T12:00:00Z",
                }
            ],
        ),
        (
            "conditions",
            [
                {
                    "type": "Accepted",
                    "status": "True",
                    "reason": "two words",
                    "message": "",
                    "lastTransitionTime": "2026-05-04T12:00:00Z",
                }
            ],
        ),
        (
            "latestCheckpoint",
            {"name": "last", "path": "p", "epoch": 1, "step": 1, "time": "2026-05-04T12:00:00Z"},
        ),
    ],
)
def test_a_status_outside_the_contract_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        FineTuneJobStatus.model_validate({field: value})


def test_the_kept_checkpoints_and_the_newest_fit_into_a_status() -> None:
    assert len(FineTuneJobStatus(checkpoints=[CHECKPOINT] * 1001).checkpoints) == 1001
    with pytest.raises(ValidationError, match="1001"):
        FineTuneJobStatus(checkpoints=[CHECKPOINT] * 1002)


@pytest.mark.parametrize(
    "samples",
    [
        [{"prompt": "What?", "answer": "Yes."}] * 5,
        [{"prompt": "What?", "answer": "y" * 201}],
        [{"prompt": "What?", "answer": "Yes.", "secret": "hunter2"}],
        [{"answer": "Yes."}],
    ],
    ids=["five", "long", "another field", "no question"],
)
def test_samples_are_few_and_short(samples: list[dict[str, str]]) -> None:
    with pytest.raises(ValidationError):
        ProgressRecord.model_validate({"samples": samples})


def test_a_record_without_samples_is_written_as_it_was_before_there_were_any() -> None:
    assert "samples" not in json.loads(ProgressRecord().model_dump_json(by_alias=True))
    assert "samples" not in json.loads(FineTuneJobStatus().model_dump_json(by_alias=True))


def test_a_progress_record_has_a_version_and_holds_what_training_knows() -> None:
    record = ProgressRecord(
        plan=FULL.plan, progress=FULL.progress, evaluation=FULL.evaluation, checkpoints=FULL.checkpoints
    )

    assert json.loads(record.model_dump_json())["version"] == 1
    assert ProgressRecord.model_validate_json(record.model_dump_json(by_alias=True)) == record
    with pytest.raises(ValidationError):
        ProgressRecord.model_validate({"version": 2})


@pytest.mark.parametrize("model", dict.fromkeys(all_models(FineTuneJobStatus)))
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert {name for name, field in model.model_fields.items() if not field.description} == set()
