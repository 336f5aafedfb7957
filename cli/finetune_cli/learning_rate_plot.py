"""The picture of a run's learning rate."""

from __future__ import annotations

from pathlib import Path

from finetune_api.numbers import Numbers
from finetune_cli.picture import BLUE, GREY, picture

POINTS = 2000
"""Most steps that are drawn; a picture has no more pixels."""


def draw_learning_rate(numbers: Numbers, path: Path) -> None:
    """Draws the learning rate of every optimizer step into the file `path`.

    The other schedules that decay are drawn in grey, for comparison.
    """
    stride = max(1, numbers.total_steps // POINTS)
    updates = sorted(
        {
            *range(0, numbers.total_steps, stride),
            min(numbers.num_warmup_steps, numbers.total_steps - 1),
            numbers.total_steps - 1,
        }
    )
    with picture(path) as axes:
        for scheduler in ("linear", "cosine"):
            if scheduler != numbers.lr_scheduler_type:
                other = numbers.model_copy(update={"lr_scheduler_type": scheduler})
                axes.plot(
                    updates,
                    [other.learning_rate_at(update) for update in updates],
                    color=GREY,
                    linestyle="--",
                    label=scheduler,
                )
        rates = [numbers.learning_rate_at(update) for update in updates]
        axes.plot(
            updates,
            rates,
            color=BLUE,
            linewidth=2.2,
            label=f"{numbers.lr_scheduler_type} (this job)",
            gid="this-job",
        )
        axes.set_title(
            f"{numbers.num_warmup_steps} warm-up steps to {numbers.learning_rate:g}, then"
            f" {numbers.lr_scheduler_type}"
        )
        axes.set_xlabel(f"optimizer step ({numbers.steps_per_epoch} per epoch)")
        axes.set_ylabel("learning rate")
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
