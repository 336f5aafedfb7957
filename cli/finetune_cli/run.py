"""`finetune run`: trains on this machine, shows how it goes, and at the end a summary or the status."""

from __future__ import annotations

from collections.abc import Callable

import typer
from rich.console import Console

from finetune_api.manifest import Manifest
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_cli.plain_text import console, say_problems
from finetune_cli.progress_bar import TerminalProgress
from finetune_cli.progress_lines import LineProgress
from finetune_cli.status_view import show_next, show_summary


def run_here(
    manifest: Manifest,
    *,
    storage: str | None,
    devices: int | None,
    restart: bool = False,
    form: Callable[[Manifest, FineTuneJobStatus], str] | None,
) -> int:
    """Trains and returns the exit code; with `restart` a run that is there is deleted, and trained anew.

    `form` gives what goes to standard output, None a summary for people.

    Raises FineTuneError, with nothing written, for what is wrong before training.
    """
    people = console(stderr=form is not None)
    with progress_on(people) as progress:
        from finetune_trainer.local import DEFAULT_STORAGE, run_locally

        ended = run_locally(
            manifest,
            storage=storage or DEFAULT_STORAGE,
            devices=devices,
            restart=restart,
            observer=progress,
        )
    if form is not None:
        typer.echo(form(manifest, ended.status).rstrip("\n"))
    else:
        people.print()
        show_summary(people, ended.status, ended.run_directory, report=ended.report)
        show_next(people, ended.status, ended.run_directory, adapter=manifest.spec.lora_config is not None)
    if ended.status.failure is not None:
        say_problems(ended.status.failure.message.splitlines())
    return exit_code(ended.status)


def progress_on(people: Console) -> TerminalProgress | LineProgress:
    """A bar where lines can be written over, else plain lines."""
    return TerminalProgress(people, "starting") if people.is_interactive else LineProgress(people)


def exit_code(status: FineTuneJobStatus) -> int:
    """0 when training succeeded, 130 when Ctrl-C stopped it, else 1."""
    match status.phase:
        case Phase.SUCCEEDED:
            return 0
        case Phase.SUSPENDED:
            return 130
        case _:
            return 1
