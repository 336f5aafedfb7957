"""`finetune push`: uploads a checkpoint of a run to a hub."""

from __future__ import annotations

from finetune_cli.plain_text import console, one_line, say_warnings


def push_checkpoint(
    run: str,
    name: str,
    *,
    checkpoint: str | None,
    merged: bool,
    public: bool,
    revision: str | None,
    message: str | None,
) -> None:
    """Uploads, and prints where the model is and how it is loaded.

    Raises FineTuneError when it cannot be done.
    """
    people = console()
    with people.status("merging and uploading" if merged else "uploading"):
        from finetune_trainer.export.push import push

        pushed = push(
            run,
            name,
            checkpoint=checkpoint,
            merged=merged,
            public=public,
            revision=revision,
            message=message,
        )
    say_warnings(pushed.remarks)
    what = f"{pushed.checkpoint}, merged," if merged else pushed.checkpoint
    people.print(one_line(f"{pushed.files} files of {what} are at {pushed.address}"))
    at = f", revision={pushed.revision!r}" if pushed.revision else ""
    people.print("\nLoad it, with peft installed for an adapter:\n")
    people.print("    from transformers import AutoModelForCausalLM, AutoTokenizer\n")
    for kind, variable in (("AutoTokenizer", "tokenizer"), ("AutoModelForCausalLM", "model")):
        people.print(one_line(f"    {variable} = {kind}.from_pretrained({pushed.name!r}{at})"))
