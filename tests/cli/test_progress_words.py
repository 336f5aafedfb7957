from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from finetune_api.status import Checkpoint, Evaluation, Plan, Progress, ProgressRecord, Sample
from finetune_cli.progress_words import answered, clock, details, parameters, running_epoch, sizes, validated

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)

PLAN = Plan(
    rows=1200,
    validation_rows=40,
    tokens=65000,
    truncated_rows=0,
    context_length=512,
    effective_batch_size=16,
    steps_per_epoch=75,
    total_epochs=3,
    total_steps=225,
    checkpoint_epochs=[0, 1, 2],
    trainable_parameters=4_884_480,
    total_parameters=139_400_000,
)


def progress(epoch: float, **values: float | datetime) -> Progress:
    return Progress.model_validate(
        {
            "epoch": epoch,
            "epochs": f"{int(epoch)}/3",
            "step": int(epoch * 75),
            "percent": int(epoch * 100 / 3),
            "tokensTrained": 0,
            "lastUpdateTime": NOW,
            **values,
        }
    )


def test_the_sizes_of_a_job_are_one_line() -> None:
    assert sizes(PLAN) == "1,200 rows with 65,000 tokens, 3 x 75 steps, 4.9M of 139.4M parameters"


def test_a_run_that_ends_in_an_epoch_says_how_many_steps_are_trained() -> None:
    cut = PLAN.model_copy(update={"total_steps": 200})

    assert sizes(cut).startswith(
        "1,200 rows with 65,000 tokens, 3 x 75 steps, of which 200 are trained, 4.9M"
    )
    assert cut.in_epochs == "3 epochs of 75 steps, of which 200 are trained"
    assert PLAN.in_epochs == "3 epochs of 75 steps"


def test_a_checkpoint_in_the_middle_of_an_epoch_is_that_of_its_validation() -> None:
    record = ProgressRecord(
        plan=PLAN,
        evaluation=Evaluation(epoch=2.6667, loss=2.0, perplexity=7.389),
        checkpoints=[
            Checkpoint(name="epoch-1", path="/r/epoch-1", epoch=2, step=150, time=NOW),
            Checkpoint(name="epoch-2", path="/r/epoch-2", epoch=2, step=200, time=NOW),
        ],
    )

    shown = validated(record)

    assert shown is not None
    assert shown.startswith("after epoch 2.6667: ")
    assert shown.endswith(", saved as epoch-2")


@pytest.mark.parametrize(
    ("completed", "shown"), [(0, "1/3"), (0.99, "1/3"), (1, "2/3"), (2.5, "3/3"), (3, "3/3")]
)
def test_the_epoch_that_runs_is_counted_from_1(completed: float, shown: str) -> None:
    assert running_epoch(progress(completed), PLAN) == shown


def test_before_the_first_step_there_are_no_details() -> None:
    assert details(progress(0), NOW) == []


def test_loss_time_and_speed_are_shown_as_soon_as_they_are_known() -> None:
    known = progress(
        1, trainLoss=2.41249, tokensPerSecond=1206.4, estimatedCompletionTime=NOW + timedelta(seconds=102)
    )

    assert details(known, NOW) == ["loss 2.412", "1:42 left", "1,206 tokens/s"]
    assert details(known, NOW + timedelta(seconds=40))[1] == "1:02 left"
    assert details(known, NOW + timedelta(hours=1))[1] == "0:00 left"


@pytest.mark.parametrize(
    ("duration", "shown"),
    [
        (timedelta(seconds=5.9), "0:05"),
        (timedelta(seconds=754), "12:34"),
        (timedelta(seconds=3600), "1:00:00"),
        (timedelta(hours=23, seconds=59), "23:00:59"),
        (timedelta(days=2, hours=1), "2 days, 1:00:00"),
    ],
)
def test_durations_are_told_in_whole_seconds(duration: timedelta, shown: str) -> None:
    assert clock(duration) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(999, "999"), (8192, "8.2k"), (139_400_000, "139.4M"), (70_553_706_496, "70.6B")]
)
def test_parameters_are_told_in_the_fields_units(count: int, shown: str) -> None:
    assert parameters(count) == shown


def test_a_validation_names_the_checkpoint_that_holds_its_model() -> None:
    saved = [
        Checkpoint(
            name=f"epoch-{epoch - 1}",
            path="/runs",
            epoch=epoch,
            step=75 * epoch,
            eval_loss=2.0,
            perplexity=7.389,
            time=NOW,
        )
        for epoch in (1, 2)
    ]
    before, after = (
        Evaluation(epoch=0, loss=3.74, perplexity=42.097),
        Evaluation(epoch=2, loss=2.0, perplexity=7.389),
    )
    said = "after epoch 2: validation loss 2.000, perplexity 7.389"

    assert (
        validated(ProgressRecord(evaluation=before))
        == "before training: validation loss 3.740, perplexity 42.1"
    )
    assert validated(ProgressRecord(evaluation=after, checkpoints=saved)) == f"{said}, saved as epoch-1"
    assert validated(ProgressRecord(evaluation=after)) == said
    assert validated(ProgressRecord(checkpoints=saved)) is None


def test_a_validation_of_pairs_has_metrics_and_no_perplexity() -> None:
    evaluation = Evaluation(epoch=2, loss=0.5, metrics={"rewards/accuracies": 0.75, "rewards/margins": 1.25})
    assert validated(ProgressRecord(evaluation=evaluation)) == (
        "after epoch 2: validation loss 0.500, rewards/accuracies 0.75, rewards/margins 1.25"
    )


def test_of_samples_the_newest_answers_are_shown_a_line_each() -> None:
    samples = [
        Sample(prompt="What?", base_answer="No.", answer=None),
        Sample(prompt="And\nwhy?", base_answer="No.", answer="Because.\x07"),
        Sample(prompt="p" * 99, base_answer="No.", answer="a" * 99),
        Sample(prompt="fourth", answer="not shown"),
    ]

    assert list(answered(samples, 40)) == [
        "  asked     What?",
        "  answered  No.",
        "  asked     And why?",
        "  answered  Because.\\x07",
        f"  asked     {'p' * 27}…",
        f"  answered  {'a' * 27}…",
    ]
