"""How a run ended: the FineTuneJob with its status, as from `kubectl get -o yaml`, and a short summary."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator

import yaml
from pydantic import JsonValue
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_api.manifest import Manifest
from finetune_api.status import Checkpoint, FineTuneJobStatus, Phase, Plan, shortened
from finetune_cli.plain_text import one_line
from finetune_cli.progress_words import SHOWN_SAMPLES, clock, compared, epochs_of, measured

PHASE_STYLES = {Phase.SUCCEEDED: "bold green", Phase.FAILED: "bold red", Phase.SUSPENDED: "bold yellow"}


def document(manifest: Manifest, status: FineTuneJobStatus) -> dict[str, JsonValue]:
    """The FineTuneJob with its status."""
    return {
        **manifest.document,
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True),
    }


def as_json(manifest: Manifest, status: FineTuneJobStatus) -> str:
    """The same as `kubectl get -o json` writes it."""
    return json.dumps(document(manifest, status), indent=2, ensure_ascii=False)


def as_yaml(manifest: Manifest, status: FineTuneJobStatus) -> str:
    """The same as `kubectl get -o yaml` writes it."""
    return yaml.safe_dump(document(manifest, status), sort_keys=False, allow_unicode=True, width=120)


FORMS: dict[str, Callable[[Manifest, FineTuneJobStatus], str] | None] = {
    "table": None,
    "yaml": as_yaml,
    "json": as_json,
}
"""What writes the end of a run to standard output; None where it is a summary for people."""


def show_summary(
    console: Console, status: FineTuneJobStatus, run_directory: str, *, report: str | None = None
) -> None:
    """The end of a run in a few lines: phase, losses, checkpoints, answers, where they are.

    `report` is the path of its page, if there is one. Why it failed is not repeated here.
    """
    reason = "" if status.phase is Phase.FAILED else f": {status.message}"
    console.print(
        Text.assemble(
            (f"{status.phase}", PHASE_STYLES.get(status.phase or Phase.RUNNING, "bold")), one_line(reason)
        )
    )
    for name, value in _facts(status, run_directory):
        console.print(f"  {name:16} {one_line(value)}")
    if report is not None:
        console.print(f"  {'report':16} {one_line(report)}")
    if status.checkpoints:
        console.print()
        console.print(_checkpoints(status.checkpoints, status.plan))
    for sample in status.samples[:SHOWN_SAMPLES]:
        console.print()
        for line in compared(sample):
            console.print(shortened(line, console.width))


def show_next(console: Console, status: FineTuneJobStatus, run_directory: str, *, adapter: bool) -> None:
    """What to do with a run that has succeeded; `adapter` says whether its checkpoints are adapters."""
    if status.phase is not Phase.SUCCEEDED or status.best_checkpoint is None:
        return
    console.print("\nnext:")
    console.print(f"  finetune chat {shlex.quote(run_directory)}")
    if adapter:
        console.print(f"  finetune merge {shlex.quote(status.best_checkpoint.path)} merged")


def _facts(status: FineTuneJobStatus, run_directory: str) -> Iterator[tuple[str, str]]:
    if status.progress is not None:
        yield "epochs completed", status.progress.epochs
        if status.progress.train_loss is not None:
            yield "training loss", f"{status.progress.train_loss:.3f} in the last step"
    if status.evaluation is not None:
        yield (
            "last validation",
            measured(status.evaluation).removeprefix("validation "),
        )
    if status.start_time is not None and status.completion_time is not None:
        yield "time", clock(status.completion_time - status.start_time)
    yield "run directory", run_directory
    if status.best_checkpoint is not None:
        yield "best checkpoint", status.best_checkpoint.path
    if status.pushed is not None:
        yield "pushed to", f"{status.pushed.url}{', merged' if status.pushed.merged else ''}"


def _checkpoints(checkpoints: list[Checkpoint], plan: Plan | None) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("checkpoint", no_wrap=True)
    compared = any(each.eval_loss is not None and each.perplexity is None for each in checkpoints)
    for heading in ("after epoch", "step", "validation loss", *([] if compared else ["perplexity"])):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for checkpoint in checkpoints:
        loss = "" if checkpoint.eval_loss is None else f"{checkpoint.eval_loss:.3f}"
        perplexity = "" if checkpoint.perplexity is None else f"{checkpoint.perplexity:.4g}"
        flags = ", ".join(
            flag for flag, given in (("best", checkpoint.best), ("latest", checkpoint.latest)) if given
        )
        epochs = f"{epochs_of(checkpoint, plan, 2):g}"
        numbers = [epochs, str(checkpoint.step), loss, *([] if compared else [perplexity])]
        table.add_row(checkpoint.name, *numbers, flags)
    return table
