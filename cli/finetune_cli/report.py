"""`finetune report`: writes a run's page anew."""

from __future__ import annotations

from pathlib import Path

from finetune_api.failure import FailureClass, FineTuneError
from finetune_cli.plain_text import console, one_line


def write_report(run_directory: str, out: Path | None) -> None:
    """Writes the page, and prints where it is.

    Raises FineTuneError where there is no run, or the page cannot be written.
    """
    from finetune_trainer.report.page import page_of
    from finetune_trainer.storage.run_directory import RunDirectory

    run = RunDirectory.open(run_directory)
    page = page_of(run)
    path = run.write_report(page) if out is None else _written(out, page)
    console().print(one_line(f"report: {path}"))


def _written(out: Path, page: str) -> Path:
    beside = out.with_name(f".{out.name}.partial")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(out)
    except OSError as error:
        problem = f"{out}: {error.strerror}; the report is not written"
        raise FineTuneError(FailureClass.STORAGE_ERROR, problem) from error
    return out
