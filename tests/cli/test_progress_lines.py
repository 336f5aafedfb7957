from __future__ import annotations

import io

import pytest
from rich.console import Console
from tests.cli.test_progress_words import NOW, PLAN, progress

from finetune_api.status import Evaluation, ProgressRecord, Sample
from finetune_cli import progress_lines
from finetune_cli.progress_lines import LineProgress


def record(step: int, evaluation: Evaluation | None = None) -> ProgressRecord:
    return ProgressRecord(
        plan=PLAN, progress=progress(step / 75, trainLoss=2.5, lastUpdateTime=NOW), evaluation=evaluation
    )


@pytest.fixture
def written() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def lines(written: io.StringIO) -> LineProgress:
    return LineProgress(Console(file=written, soft_wrap=True))


def test_steps_get_a_line_now_and_then_and_the_last_one_always(
    lines: LineProgress, written: io.StringIO
) -> None:
    for step in (1, 2, 3, 225):
        lines.progress(record(step))

    assert written.getvalue().splitlines() == [
        "epoch 1/3  step 1/225  loss 2.500",
        "epoch 3/3  step 225/225  loss 2.500",
    ]


def test_after_a_while_the_next_step_gets_a_line(
    lines: LineProgress, written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_lines, "SECONDS_BETWEEN_STEPS", 0.0)
    for step in (1, 2):
        lines.progress(record(step))

    assert written.getvalue().splitlines() == [
        "epoch 1/3  step 1/225  loss 2.500",
        "epoch 1/3  step 2/225  loss 2.500",
    ]


def test_what_comes_before_the_first_step_gets_a_line_now_and_then_and_delays_no_other(
    lines: LineProgress, written: io.StringIO
) -> None:
    for percent in (1, 2):
        lines.progress(ProgressRecord(plan=PLAN, doing=f"computing reference log-probabilities: {percent}%"))
    lines.progress(record(1))

    assert written.getvalue().splitlines() == [
        "computing reference log-probabilities: 1%",
        "epoch 1/3  step 1/225  loss 2.500",
    ]


def test_what_comes_after_the_last_step_gets_a_line_each(lines: LineProgress, written: io.StringIO) -> None:
    last = record(225)
    for doing in (None, "merging epoch-2", "pushing epoch-2", "pushing epoch-2", None):
        lines.progress(last.model_copy(update={"doing": doing}))

    assert written.getvalue().splitlines() == [
        "epoch 3/3  step 225/225  loss 2.500",
        "merging epoch-2",
        "pushing epoch-2",
    ]


def test_every_validation_gets_one_line(lines: LineProgress, written: io.StringIO) -> None:
    first, second = (
        Evaluation(epoch=1, loss=2.0, perplexity=7.389),
        Evaluation(epoch=2, loss=1.5, perplexity=4.482),
    )
    for step, evaluation in ((75, first), (76, first), (150, second), (151, second)):
        lines.progress(record(step, evaluation))

    said = [line for line in written.getvalue().splitlines() if "validation" in line]
    assert said == [
        "after epoch 1: validation loss 2.000, perplexity 7.389",
        "after epoch 2: validation loss 1.500, perplexity 4.482",
    ]


def test_new_answers_get_lines_once(lines: LineProgress, written: io.StringIO) -> None:
    before = [Sample(prompt="What?", base_answer="No.")]
    after = [Sample(prompt="What?", base_answer="No.", answer="Yes.")]
    for step, samples in ((75, before), (76, before), (150, after), (151, after)):
        lines.progress(record(step).model_copy(update={"samples": samples}))

    assert [line for line in written.getvalue().splitlines() if not line.startswith("epoch")] == [
        "  asked     What?",
        "  answered  No.",
        "  asked     What?",
        "  answered  Yes.",
    ]


def test_what_is_said_is_one_line_as_it_is(written: io.StringIO) -> None:
    LineProgress(Console(file=written, soft_wrap=True, markup=False)).say("warning: [red]a\x1b[31m\nb[/red]")

    assert written.getvalue() == "warning: [red]a\\x1b[31m\\nb[/red]\n"
