"""The command that serves a checkpoint with vLLM on one machine.

Source: vLLM's `vllm/entrypoints/openai/cli_args.py` and `vllm/engine/arg_utils.py`.
"""

from __future__ import annotations

import json
import shlex

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.fields import scheme
from finetune_trainer.export.served import TEMPLATE, Served


def vllm_command(model: Served) -> str:
    """The command line of `vllm serve`, an option a line.

    Raises FineTuneError (InvalidSpec) for a checkpoint, or a base model, that is not where vLLM reads it
    from.
    """
    here = _readable(model.path)
    options = vllm_options(model, here)
    if model.base is None:
        first = ["vllm", "serve", here]
        options = [["--served-model-name", model.name], *options]
    else:
        first = ["vllm", "serve", _readable(model.base)]
    return " \\\n    ".join(shlex.join(part) for part in [first, *options]) + "\n"


def vllm_options(model: Served, here: str) -> list[list[str]]:
    """The options for a checkpoint, or its adapter, that the server sees at `here`."""
    options: list[list[str]] = []
    if model.max_rank is not None:
        options += [
            ["--enable-lora"],
            ["--lora-modules", _module(model.name, here)],
            ["--max-lora-rank", str(model.max_rank)],
            # Of an adapter vLLM takes only the weights; where it ends its answers it takes from the base.
            ["--generation-config", here],
        ]
        if model.own_format:
            options.append(["--chat-template", f"{here}/{TEMPLATE}"])
    if model.dtype is not None:
        options.append(["--dtype", model.dtype])
    if model.context_length is not None:
        options.append(["--max-model-len", str(model.context_length)])
    return options


def _module(name: str, path: str) -> str:
    """NAME=PATH, or JSON where vLLM would read another pair out of that."""
    return json.dumps({"name": name, "path": path}) if {"=", ","} & set(name + path) else f"{name}={path}"


def _readable(path: str) -> str:
    if scheme(path) == "hf":
        return path.removeprefix("hf://")
    if scheme(path) in ("", "file"):
        return path.removeprefix("file://")
    raise FineTuneError(
        FailureClass.INVALID_SPEC,
        f"{path}: vLLM's command serves a directory of its machine, or a model of a hub; copy it there,"
        " and say with --at where it is, or merge an adapter whose base model it is",
    )
