"""`finetune data`: shows what the rows of a job are, and which of their tokens are trained on."""

from __future__ import annotations

import typer

from finetune_api.manifest import Manifest
from finetune_cli.plain_text import console, say_warnings


def show_data(manifest: Manifest, *, rows: int, json_wanted: bool) -> None:
    """Shows statistics of each file, and so many training rows.

    Raises FineTuneError for what is wrong with the job.
    """
    people = console(stderr=json_wanted)
    with people.status("reading the rows"):
        from finetune_trainer.workers.environment import without_bitsandbytes

        without_bitsandbytes(manifest.spec)
        from finetune_cli.data_view import job_data, show_statistics
        from finetune_cli.rows_view import show_rows
        from finetune_trainer.plan.inspection import inspect

        data = job_data(manifest, inspect(manifest.spec), rows)
    say_warnings(data.warnings)
    if json_wanted:
        typer.echo(data.model_dump_json(by_alias=True, indent=2))
        return
    show_statistics(people, manifest, data)
    show_rows(people, data.rows)
