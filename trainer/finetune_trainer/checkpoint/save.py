"""Writes the files of a checkpoint: the trained weights, ready for use, and `state/` to resume from."""

from __future__ import annotations

import copy
from pathlib import Path

import peft
import torch
from transformers import PreTrainedTokenizerBase

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.checkpoint.state import Collected, Position, save_state
from finetune_trainer.tasks.objective import Model


def write_checkpoint(
    directory: Path,
    *,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    spec: FineTuneJobSpec,
    position: Position,
    collected: Collected,
) -> None:
    """Writes the files of a checkpoint or snapshot into an empty directory. The caller commits them."""
    save_weights(model, directory, spec, collected.weights)
    tokenizer.save_pretrained(directory)
    save_state(directory, position, collected)


def save_weights(
    model: Model, directory: Path, spec: FineTuneJobSpec, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Writes the trained weights, and the configuration to generate text with.

    A PEFT model's adapter is written, or a full model in shards of 5 GB. `weights` default to
    the model's own.
    """
    if isinstance(model, peft.PeftModel):
        # The vocabulary is never resized here, so base embeddings need no copy; "auto" would ask the hub.
        model.save_pretrained(
            str(directory), safe_serialization=True, save_embedding_layers=False, state_dict=weights
        )
    else:
        model.save_pretrained(directory, max_shard_size="5GB", state_dict=weights)
    generation = copy.deepcopy(model.generation_config)
    if generation is not None:
        if spec.generation_config is not None and spec.generation_config.stopping_sequences:
            generation.stop_strings = spec.generation_config.stopping_sequences
        generation.save_pretrained(directory)
