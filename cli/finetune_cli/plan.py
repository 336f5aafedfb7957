"""`finetune plan`: shows what would be trained.

The model and the rows are read and checked; nothing is trained.
"""

from __future__ import annotations

from pathlib import Path

import typer

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import Manifest
from finetune_cli.plain_text import console, one_line, say_warnings


def show_plan(manifest: Manifest, *, picture: Path | None, rows: int, json_wanted: bool) -> None:
    """Shows the plan and so many training rows, and plots the learning rate to the file `picture`, if given.

    Raises FineTuneError for what is wrong with the job.
    """
    people = console(stderr=json_wanted)
    with people.status("reading the model and the rows"):
        from finetune_trainer.workers.environment import without_bitsandbytes

        without_bitsandbytes(manifest.spec)
        from finetune_cli.plan_view import job_plan, show_tables
        from finetune_cli.rows_view import show_rows
        from finetune_trainer.plan.earlier_run import earlier_run
        from finetune_trainer.plan.inspection import inspect

        earlier = earlier_run(manifest.spec)
        inspection = inspect(manifest.spec)
        if earlier is not None:
            earlier.check(inspection.prepared)
        plan = job_plan(manifest, inspection.prepared, inspection.first_rows(rows))
        if picture is not None:
            from finetune_cli.learning_rate_plot import draw_learning_rate

            draw_learning_rate(plan.numbers, picture)
    say_warnings(plan.warnings)
    if earlier is not None:
        people.print(one_line(earlier.words(plan.numbers)))
    if json_wanted:
        typer.echo(plan.model_dump_json(by_alias=True, indent=2))
    else:
        show_tables(people, manifest, plan)
        show_rows(people, plan.rows)
    if picture is not None:
        people.print(f"learning-rate plot: {picture}")


def show_fitting(manifest: Manifest) -> None:
    """Writes the manifest of the nearest settings that fit the device; what is different goes to people.

    Raises FineTuneError for what is wrong with the job, where it names no device, and where nothing fits.
    """
    people = console(stderr=True)
    with people.status("reading the model and the rows"):
        from finetune_trainer.plan.deepspeed_file import deepspeed_here
        from finetune_trainer.plan.fit import device_of, fitted, job_of
        from finetune_trainer.plan.prepare import prepare

        prepared = prepare(manifest.spec, planning=True)
        device = device_of(manifest.spec)
        if device is None:
            what = "names no accelerator whose memory is known; give accelerator_type:A10G, say"
            raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.worker_resources: {what}")
        settings = fitted(job_of(prepared, deepspeed_here(manifest.spec)[0], on_gpu=True), device)
    say_warnings((*manifest.warnings, *prepared.warnings))
    people.print("the job fits as it is" if settings is None else settings.words)
    changed = manifest if settings is None else manifest.model_copy(update={"spec": settings.spec})
    typer.echo(changed.to_yaml(), nl=False)
