"""`finetune plan`: shows what would be trained.

The model and the rows are read and checked; nothing is trained.
"""

from __future__ import annotations

from pathlib import Path

import typer

from finetune_api.manifest import Manifest
from finetune_cli.plain_text import console, say_warnings


def show_plan(manifest: Manifest, *, picture: Path | None, json_wanted: bool) -> None:
    """Shows the plan, and plots the learning rate to the file `picture` if one is given.

    Raises FineTuneError for what is wrong with the job.
    """
    people = console(stderr=json_wanted)
    with people.status("reading the model and the rows"):
        from finetune_cli.plan_view import job_plan, show_tables
        from finetune_trainer.plan.prepare import prepare

        plan = job_plan(manifest, prepare(manifest.spec, planning=True))
        if picture is not None:
            from finetune_cli.learning_rate_plot import draw_learning_rate

            draw_learning_rate(plan.numbers, picture)
    say_warnings(plan.warnings)
    if json_wanted:
        typer.echo(plan.model_dump_json(by_alias=True, indent=2))
    else:
        show_tables(people, manifest, plan)
    if picture is not None:
        people.print(f"learning-rate plot: {picture}")
