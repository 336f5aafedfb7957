from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from finetune_api.manifest import read_spec
from finetune_api.numbers import Numbers, numbers
from finetune_api.spec import Scheduler
from finetune_cli.learning_rate_plot import draw_learning_rate
from finetune_cli.loss_plot import draw_losses


def numbers_of(scheduler: Scheduler, epochs: int = 10) -> Numbers:
    spec = read_spec(
        {
            "model_id": "m",
            "train_path": "t",
            "lora_config": {},
            "lr_scheduler_type": scheduler,
            "learning_rate": 2e-4,
            "num_epochs": epochs,
            "train_batch_size_per_device": 4,
            "num_warmup_steps": 7,
        }
    )
    return numbers(spec, rows=40, longest_row=64, model_context_length=2048)


def drawn(picture: Path, line: str) -> list[tuple[float, float]]:
    """The points of a line of an SVG picture, in its own units, with y growing upwards."""
    path = re.search(rf'<g id="{line}">\s*<path d="([^"]+)"', picture.read_text())
    assert path is not None, f"{line} is not drawn"
    return [(float(x), -float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path[1])]


def scaled(values: list[float]) -> list[float]:
    """The values moved and stretched to go from 0 to 1."""
    return [(value - min(values)) / (max(values) - min(values)) for value in values]


@pytest.mark.parametrize("scheduler", ["cosine", "linear"])
def test_the_line_of_the_job_is_its_learning_rate(tmp_path: Path, scheduler: Scheduler) -> None:
    schedule = numbers_of(scheduler)
    rates = [schedule.learning_rate_at(update) for update in range(schedule.total_steps)]

    draw_learning_rate(schedule, tmp_path / "rate.svg")
    points = drawn(tmp_path / "rate.svg", "this-job")

    assert points[0][1] == pytest.approx(min(y for _, y in points)), (
        "the first update of a warm-up has a learning rate of 0"
    )
    for x, y in zip(scaled([x for x, _ in points]), scaled([y for _, y in points]), strict=True):
        assert y == pytest.approx(rates[round(x * (schedule.total_steps - 1))] / 2e-4, abs=0.01)


def test_a_long_run_is_drawn_with_its_peak_and_its_end(tmp_path: Path) -> None:
    draw_learning_rate(numbers_of("linear", epochs=10_000), tmp_path / "rate.svg")

    points = drawn(tmp_path / "rate.svg", "this-job")
    assert (tmp_path / "rate.svg").stat().st_size < 500_000
    assert scaled([y for _, y in points])[-1] == pytest.approx(0, abs=0.001)


def test_training_and_validation_loss_are_drawn_at_their_steps(tmp_path: Path) -> None:
    losses, validations = [5.0, 4.0, 3.5, 3.0], {0: 5.5, 2: 4.25, 4: 3.25}
    time = "2026-01-01T00:00:00Z"
    lines: list[dict[str, object]] = [
        {
            "step": step,
            "epoch": step / 2,
            "loss": loss,
            "learningRate": 1e-4,
            "gradNorm": 1.0,
            "tokens": 9,
            "tokensPerSecond": 1.0,
            "time": time,
        }
        for step, loss in enumerate(losses, 1)
    ]
    lines += [
        {
            "step": step,
            "epoch": step / 2,
            "evalLoss": loss,
            "perplexity": 2.0,
            "checkpoint": None,
            "time": time,
        }
        for step, loss in validations.items()
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    draw_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.svg")
    training, validation = (
        drawn(tmp_path / "loss.svg", "training"),
        drawn(tmp_path / "loss.svg", "validation"),
    )

    assert scaled([y for _, y in training]) == pytest.approx(scaled(losses), abs=0.001)
    assert scaled([y for _, y in validation]) == pytest.approx(scaled(list(validations.values())), abs=0.001)
    assert training[1][0] == pytest.approx(validation[1][0]), "step 2 is where step 2 is"
    assert training[-1][0] == pytest.approx(validation[-1][0])


def test_a_run_without_validation_has_one_line(tmp_path: Path) -> None:
    line = {
        "step": 1,
        "epoch": 1,
        "loss": 2,
        "learningRate": 0,
        "gradNorm": 1,
        "tokens": 9,
        "tokensPerSecond": None,
        "time": "2026-01-01T00:00:00Z",
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")

    draw_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.svg")

    assert "validation" not in (tmp_path / "loss.svg").read_text()
