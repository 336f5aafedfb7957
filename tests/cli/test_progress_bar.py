from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.cli.test_progress_words import PLAN

from finetune_api.status import Progress, ProgressRecord
from finetune_cli.progress_bar import StatusLine


def rendered(line: StatusLine, width: int) -> str:
    """The line as a terminal of this width shows it, without colours."""
    shown = io.StringIO()
    Console(file=shown, width=width, force_terminal=True, no_color=True).print(line)
    return re.sub(r"\x1b\[\d*m", "", shown.getvalue()).rstrip("\n")


def line_after(step: int) -> StatusLine:
    now = datetime.now(UTC)
    line = StatusLine("starting")
    line.record = ProgressRecord(
        plan=PLAN,
        progress=Progress(
            epoch=step / 75,
            epochs=f"{step // 75}/3",
            step=step,
            percent=100 * step // 225,
            train_loss=2.41249,
            tokens_per_second=206.4,
            tokens_trained=1,
            estimated_completion_time=now + timedelta(seconds=102.9),
            last_update_time=now,
        ),
    )
    return line


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (120, ["epoch 2/3", "100/225", "loss 2.412", "1:42 left", "206 tokens/s"]),
        (80, ["epoch 2/3", "100/225", "loss 2.412", "1:42 left", "206 tokens/s"]),
        (60, ["epoch 2/3", "100/225", "loss 2.412", "1:42 left"]),
        (45, ["epoch 2/3", "100/225", "loss 2.412"]),
        (30, ["epoch 2/3", "100/225"]),
    ],
)
def test_the_bar_fills_a_line_and_gives_way_to_what_matters_most(width: int, shown: list[str]) -> None:
    line = rendered(line_after(100), width)

    assert cell_len(line) == width
    assert re.sub(r"[━╸╺ ]+", " ", re.sub(r"\d:\d\d", "1:42", line)) == " ".join(shown)


def test_the_bar_grows_with_the_steps() -> None:
    assert [rendered(line_after(step), 60).count("━") for step in (0, 75, 150, 225)] == [0, 6, 12, 19]


def test_before_the_first_step_the_line_says_what_the_trainer_says() -> None:
    line = StatusLine("loading the model")
    line.record = ProgressRecord(plan=PLAN, doing="computing reference log-probabilities: 42%")

    assert re.match(r"\S computing reference log-probabilities: 42%", rendered(line, 80))


@pytest.mark.parametrize("width", [20, 80])
def test_before_the_first_step_the_line_says_what_is_being_done(width: int) -> None:
    line = rendered(StatusLine("starting workers, loading the model"), width)

    assert re.match(r"\S starting worke", line)
    assert "\n" not in line
    assert cell_len(line) <= width


def test_what_comes_after_the_last_step_is_shown_in_place_of_the_bar() -> None:
    line = line_after(225)
    assert line.record is not None
    line.record = line.record.model_copy(update={"doing": "pushing epoch-2 to someone/tuned"})

    assert rendered(line, 60)[2:] == "pushing epoch-2 to someone/tuned"
