"""Gathers the weights that ranks hold in parts, and writes them as transformers would, a file at a time.

All ranks call these functions together. No rank holds more at once than a file and what is converted with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from finetune_trainer.model.contents import INDEX, WEIGHTS

FILE_BYTES = 5 * 10**9
"""The size of a file, as `max_shard_size` of transformers: larger only for what is converted together."""

_LAYER = re.compile(r".*?\.\d+(?=\.)")


@dataclass
class _File:
    groups: list[list[str]] = field(default_factory=list)
    size: int = 0


def adapter_weights(model: peft.PeftModel, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What PEFT saves of these weights, whole and on the CPU, under the names that they have in the model."""
    parts = dict(weights)
    saved = peft.get_peft_model_state_dict(model, state_dict=parts, save_embedding_layers=False)
    kept = {id(tensor) for tensor in saved.values()}
    return {name: _whole(weight) for name, weight in weights.items() if id(weight) in kept}


def without_tied(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights without those that are others under a second name, and that transformers does not save."""
    first: dict[int, str] = {}
    tied = model.all_tied_weights_keys
    for name, parameter in sorted(
        model.named_parameters(remove_duplicate=False), key=lambda item: item[0] in tied
    ):
        first.setdefault(id(parameter), name)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)} - set(first.values())
    ignored = set(model._keys_to_ignore_on_save or ())
    return {name: weight for name, weight in weights.items() if name not in names | ignored}


def write_gathered(
    model: PreTrainedModel, directory: Path | None, dtype: torch.dtype, weights: Mapping[str, torch.Tensor]
) -> None:
    """Writes a full model's weights in `dtype`, in files of safetensors with an index where they are several.

    The rank with a directory writes; the others take part with None.
    """
    saved = without_tied(model, weights)
    files = list(_files(saved, dtype))
    index: dict[str, str] = {}
    size = 0
    for number, file in enumerate(files, start=1):
        name = WEIGHTS if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for group in file.groups:
            parts = {each: _converted(saved[each], dtype) for each in group}
            whole = {each: _whole(weight, keep=directory is not None) for each, weight in parts.items()}
            if directory is not None:
                # The names, and what is stacked in one weight, are those of the files that were read.
                tensors |= revert_weight_conversion(model, whole)
        if directory is not None:
            contiguous = {each: tensor.contiguous() for each, tensor in tensors.items()}
            save_file(contiguous, directory / name, metadata={"format": "pt"})
            index |= dict.fromkeys(tensors, name)
            size += sum(tensor.nbytes for tensor in tensors.values())
    if directory is not None and len(files) > 1:
        metadata = {"total_parameters": sum(weight.numel() for weight in saved.values()), "total_size": size}
        text = json.dumps({"metadata": metadata, "weight_map": index}, indent=2, sort_keys=True)
        (directory / INDEX).write_text(f"{text}\n", encoding="utf-8")


def _files(weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Iterator[_File]:
    """Which weights are in which file. Those of a layer are together: some are converted together."""
    file = _File()
    for _, names in groupby(weights, key=_layer):
        group = list(names)
        size = sum(_bytes(weights[name], dtype) for name in group)
        if file.groups and file.size + size > FILE_BYTES:
            yield file
            file = _File()
        file.groups.append(group)
        file.size += size
    yield file


def _layer(name: str) -> str:
    found = _LAYER.match(name)
    return found[0] if found else name


def _bytes(weight: torch.Tensor, dtype: torch.dtype) -> int:
    return weight.numel() * (dtype.itemsize if weight.is_floating_point() else weight.itemsize)


def _converted(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weight.to(dtype) if weight.is_floating_point() else weight


def _whole(weight: torch.Tensor, *, keep: bool = True) -> torch.Tensor:
    """The weight, of which every rank has a part; on the CPU where it is kept."""
    whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
    return whole.cpu() if keep else torch.empty(0)
