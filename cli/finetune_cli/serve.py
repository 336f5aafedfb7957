"""`finetune serve`: writes what serves a checkpoint: a command of vLLM, or a manifest. Nothing is run."""

from __future__ import annotations

import typer

from finetune_api.yaml_text import dump
from finetune_cli.plain_text import say_warnings


def write_server(
    run: str, kind: str, *, checkpoint: str | None, name: str | None, at: str | None, image: str | None
) -> None:
    """Writes the command or manifest of a kind, `vllm`, `kserve` or `rayservice`, to standard output.

    Raises FineTuneError when the checkpoint cannot be served so.
    """
    from finetune_trainer.export.kserve import inference_service
    from finetune_trainer.export.rayservice import IMAGE, ray_service, requested_name
    from finetune_trainer.export.served import served
    from finetune_trainer.export.vllm import vllm_command

    model = served(run, checkpoint=checkpoint, name=name, at=at)
    remarks = list(model.remarks)
    if kind == "vllm":
        text = vllm_command(model)
    elif kind == "kserve":
        text = dump(inference_service(model))
    else:
        text = dump(ray_service(model, image or IMAGE))
        if requested_name(model) != model.name:
            remarks.append(f"requests ask for the adapter as the model {requested_name(model)}")
    say_warnings(remarks)
    typer.echo(text, nl=False)
