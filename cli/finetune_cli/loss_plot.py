"""The picture of a run's losses."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import MaxNLocator

from finetune_cli.picture import BLUE, ORANGE, picture
from finetune_trainer.report.metrics import EvaluationLine, StepLine, lines_in


def draw_losses(metrics: Path, path: Path) -> None:
    """Draws training and validation loss by optimizer step from a run's `metrics.jsonl`."""
    lines = list(lines_in(metrics.read_text(encoding="utf-8")))
    steps = [line for line in lines if isinstance(line, StepLine)]
    evaluations = [line for line in lines if isinstance(line, EvaluationLine)]
    with picture(path) as axes:
        axes.plot(
            [line.step for line in steps],
            [line.loss for line in steps],
            color=BLUE,
            linewidth=1.4,
            label="training",
            gid="training",
        )
        if evaluations:
            losses = [line.eval_loss for line in evaluations]
            axes.plot(
                [line.step for line in evaluations],
                losses,
                color=ORANGE,
                linewidth=2,
                marker="o",
                label="validation",
                gid="validation",
            )
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
