"""`finetune merge`: merges a LoRA checkpoint into its base model."""

from __future__ import annotations

from pathlib import Path

from finetune_cli.plain_text import console, one_line, say_warnings


def merge_checkpoint(checkpoint: str, out: Path) -> None:
    """Merges, and prints where the model is.

    Raises FineTuneError, with nothing written, when it cannot be done.
    """
    people = console()
    with people.status("merging"):
        from finetune_trainer.export.merge import merge

        remarks = merge(checkpoint, out)
    say_warnings(remarks)
    people.print(one_line(f"merged model: {out}"))
