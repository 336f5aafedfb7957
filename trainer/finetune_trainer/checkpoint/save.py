"""Writes the files of a checkpoint: the trained weights, ready for use, and `state/` to resume from."""

from __future__ import annotations

import copy
from pathlib import Path

import peft
import torch
import torch.distributed as dist

from finetune_trainer.checkpoint.card import write_card
from finetune_trainer.checkpoint.inference import Inference
from finetune_trainer.checkpoint.state import Collected, Position, save_parts, save_state
from finetune_trainer.checkpoint.streamed import adapter_weights, write_gathered
from finetune_trainer.data.pairs import Reference
from finetune_trainer.model.quantization import save_quantization
from finetune_trainer.tasks.objective import Model


def write_checkpoint(
    directory: Path,
    *,
    model: Model,
    dtype: torch.dtype,
    inference: Inference,
    position: Position,
    collected: Collected,
    reference: Reference | None,
    card: str,
) -> None:
    """Writes the files of a checkpoint or snapshot into an empty directory. The caller commits them.

    `dtype` is the precision of a full model's weights (see `save_weights`), `card` the text of README.md.
    What was collected in parts, all ranks must write together: each its parts of the state, and rank 0 all
    else.
    """
    exact = isinstance(model, peft.PeftModel) or dtype == torch.float32
    if collected.in_parts:
        _write_together(directory, model, dtype, inference, position, collected, reference, exact=exact)
        if dist.get_rank() == 0:
            write_card(directory, card)
        return
    save_weights(model, directory, dtype, collected.weights)
    inference.save(directory)
    write_card(directory, card)
    save_state(directory, position, collected, reference, weights=not exact)


def _write_together(
    directory: Path,
    model: Model,
    dtype: torch.dtype,
    inference: Inference,
    position: Position,
    collected: Collected,
    reference: Reference | None,
    *,
    exact: bool,
) -> None:
    dist.barrier()  # the directory is there, and empty
    first = dist.get_rank() == 0
    if isinstance(model, peft.PeftModel):
        weights = adapter_weights(model, collected.weights)
        if first:
            save_weights(model, directory, dtype, weights)
    else:
        write_gathered(model, directory if first else None, dtype, collected.weights)
        if first:
            _save_config(model, directory, dtype)
    if first:
        inference.save(directory)
        save_state(directory, position, collected, reference)
    save_parts(directory, collected, weights=not exact)


def write_description(directory: Path, *, model: Model, dtype: torch.dtype, inference: Inference) -> None:
    """Writes the small files of a checkpoint, to see before training that they can be written."""
    if isinstance(model, peft.PeftModel):
        model.peft_config["default"].save_pretrained(str(directory))
        save_quantization(model, directory)
    else:
        _save_config(model, directory, dtype)
    inference.save(directory)


def save_weights(
    model: Model,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes the trained weights and the model's configuration.

    A PEFT model's adapter is written, as it is, or a full model in `dtype` and in shards of 5 GB. `weights`
    default to the model's own. With an adapter goes how its base is quantized, if it is.
    """
    if isinstance(model, peft.PeftModel):
        model.create_or_update_model_card = _no_card  # type: ignore[assignment, method-assign]
        # The vocabulary is never resized here, so base embeddings need no copy; "auto" would ask the hub.
        model.save_pretrained(
            str(directory), safe_serialization=True, save_embedding_layers=False, state_dict=weights
        )
        save_quantization(model, directory)
    else:
        weights = model.state_dict() if weights is None else weights
        model.save_pretrained(directory, max_shard_size="5GB", state_dict=_converted(weights, dtype))
        _save_config(model, directory, dtype)


def _no_card(_directory: str) -> None:
    """In place of PEFT's card: a checkpoint has one of its own."""


def _save_config(model: Model, directory: Path, dtype: torch.dtype) -> None:
    """Writes config.json with the precision of the saved weights; transformers writes that of the model."""
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)


def _converted(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights in this precision. Those that share memory still do, so that tied ones are written once."""
    if dtype == torch.float32:
        return weights
    converted: dict[object, torch.Tensor] = {}
    result = {}
    for name, weight in weights.items():
        key = weight.data_ptr(), weight.shape, weight.stride()
        if key not in converted:
            converted[key] = weight.to("cpu", dtype) if weight.is_floating_point() else weight
        result[name] = converted[key]
    return result
