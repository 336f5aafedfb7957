"""What a progress record changes in the status of its job."""

from __future__ import annotations

from datetime import UTC, datetime

from finetune_api.failure import FailureClass
from finetune_api.record import trained, with_record
from finetune_api.retention import flagged
from finetune_api.status import (
    Checkpoint,
    Evaluation,
    Failure,
    FineTuneJobStatus,
    Phase,
    Plan,
    Progress,
    ProgressRecord,
    PushedModel,
    Sample,
)

TIME = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = Plan(
    rows=8,
    validation_rows=4,
    tokens=800,
    truncated_rows=0,
    context_length=512,
    effective_batch_size=4,
    steps_per_epoch=2,
    total_epochs=3,
    total_steps=6,
    checkpoint_epochs=[0, 1, 2],
    trainable_parameters=10,
    total_parameters=100,
)
FAILURE = Failure(failure_class=FailureClass.STORAGE_ERROR, message="the bucket does not answer")


def progress(step: int) -> Progress:
    return Progress(
        epoch=step / 2,
        epochs=f"{step // 2}/3",
        step=step,
        percent=100 * step // 6,
        tokens_trained=400 * step,
        last_update_time=TIME,
    )


def checkpoints(*eval_losses: float) -> list[Checkpoint]:
    """epoch-0, epoch-1, ... with these validation losses."""
    return flagged(
        [
            Checkpoint(
                name=f"epoch-{index}",
                path=f"/runs/epoch-{index}",
                epoch=index + 1,
                step=2 * index + 2,
                eval_loss=loss,
                time=TIME,
            )
            for index, loss in enumerate(eval_losses)
        ]
    )


def shown_before() -> FineTuneJobStatus:
    """The status after two epochs of an earlier attempt."""
    record = ProgressRecord(
        plan=PLAN,
        progress=progress(4),
        evaluation=Evaluation(epoch=2, loss=2.0, perplexity=7.4),
        checkpoints=checkpoints(3.0, 2.0),
    )
    return with_record(FineTuneJobStatus(phase=Phase.RUNNING, message="training"), record)


def test_what_the_record_says_is_shown() -> None:
    evaluation = Evaluation(epoch=3, loss=2.5, perplexity=12.2)
    record = ProgressRecord(
        plan=PLAN, progress=progress(6), evaluation=evaluation, checkpoints=checkpoints(3.0, 2.0, 2.5)
    )
    status = with_record(FineTuneJobStatus(), record)
    assert (status.plan, status.progress, status.evaluation) == (PLAN, progress(6), evaluation)
    assert status.checkpoints == record.checkpoints


def test_best_checkpoint_is_the_model_and_the_newest_is_the_latest() -> None:
    status = with_record(FineTuneJobStatus(), ProgressRecord(checkpoints=checkpoints(3.0, 2.0, 2.5)))
    _, best, latest = status.checkpoints
    assert (status.best_checkpoint, status.latest_checkpoint) == (best, latest)
    assert status.model_path == best.path == "/runs/epoch-1"


def test_what_the_record_does_not_have_yet_stays() -> None:
    before = shown_before()
    after = with_record(before, ProgressRecord(attempt=2, checkpoints=before.checkpoints))
    assert after == before


def test_checkpoints_that_are_gone_are_not_shown() -> None:
    after = with_record(shown_before(), ProgressRecord(plan=PLAN, progress=progress(4)))
    assert (after.checkpoints, after.best_checkpoint, after.latest_checkpoint) == ([], None, None)
    assert after.model_path is None


def test_failure_before_checkpoints_were_listed_keeps_those_that_were_shown() -> None:
    before = shown_before()
    assert with_record(before, ProgressRecord(attempt=2, failure=FAILURE)) == before


def test_failure_after_checkpoints_were_listed_shows_that_there_are_none() -> None:
    after = with_record(shown_before(), ProgressRecord(attempt=2, plan=PLAN, failure=FAILURE))
    assert (after.checkpoints, after.model_path) == ([], None)


def test_phase_message_and_failure_are_not_the_records_to_change() -> None:
    status = FineTuneJobStatus(phase=Phase.RUNNING, message="training")
    after = with_record(status, ProgressRecord(plan=PLAN, failure=FAILURE, finished=True))
    assert (after.phase, after.message, after.failure) == (Phase.RUNNING, "training", None)


def test_what_was_lost_is_told_and_stays_when_a_later_attempt_has_lost_nothing() -> None:
    lost = "mlflow did not get 2 of 3 points of this run (metrics.jsonl has them): no answer"
    told = with_record(FineTuneJobStatus(), ProgressRecord(warnings=[lost]))

    assert told.warnings == [lost]
    assert with_record(told, ProgressRecord()).warnings == [lost]


def test_without_a_loss_nothing_is_written_of_it() -> None:
    status = with_record(FineTuneJobStatus(), ProgressRecord())

    assert "warnings" not in status.model_dump(mode="json", by_alias=True)
    assert "warnings" not in ProgressRecord().model_dump_json(by_alias=True)


def test_what_was_pushed_stays_until_something_else_is_and_else_nothing_is_written_of_it() -> None:
    first, second = (
        PushedModel(
            repository="someone/tuned", revision=commit, url=f"https://hub/someone/tuned/tree/{commit}"
        )
        for commit in ("a1", "b2")
    )
    status = with_record(FineTuneJobStatus(), ProgressRecord(pushed=first))

    assert status.pushed == first
    assert with_record(status, ProgressRecord()).pushed == first
    assert with_record(status, ProgressRecord(pushed=second)).pushed == second
    assert "pushed" not in ProgressRecord().model_dump_json(by_alias=True)


def test_samples_of_an_earlier_attempt_stay_until_there_are_others() -> None:
    before, after = (Sample(prompt="What?", base_answer="No.", answer=answer) for answer in (None, "Yes."))
    status = with_record(FineTuneJobStatus(), ProgressRecord(samples=[before]))

    assert with_record(status, ProgressRecord()).samples == [before]
    assert with_record(status, ProgressRecord(samples=[after])).samples == [after]


def test_that_a_run_was_stopped_early_is_in_its_status_and_else_nothing_of_it() -> None:
    record = ProgressRecord(plan=PLAN, progress=progress(4), checkpoints=checkpoints(1.0, 1.5))
    early = record.model_copy(update={"stopped_early": True})

    assert with_record(FineTuneJobStatus(), early).stopped_early is True
    assert with_record(FineTuneJobStatus(), record).stopped_early is None
    assert "stopped" not in record.model_dump_json(by_alias=True)


def test_what_a_run_has_trained_is_said_with_why_it_ended() -> None:
    assert trained(PLAN, progress(6), None) == "trained 6 steps"
    assert trained(PLAN, progress(4), 1) == (
        "stopped early after epoch 2: the last checkpoint had no lower validation loss than before"
    )
    assert trained(PLAN, progress(4), 3) == (
        "stopped early after epoch 2: the last 3 checkpoints had no lower validation loss than before"
    )
