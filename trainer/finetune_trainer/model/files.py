"""What the files of a model say before any weight is read: quantized, an adapter, leftovers, pointers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedConfig

from finetune_api.failure import FailureClass, FineTuneError

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"

_POINTER = "version https://git-lfs.github.com/spec/"
LARGEST_POINTER = 1024
"""The most bytes that a pointer of git-lfs may have, by its specification."""


def is_pointer(text: str) -> bool:
    """Whether the beginning of a file is that of a pointer, which git-lfs leaves where it has not fetched."""
    return text.startswith(_POINTER)


def check_no_pointers(directory: Path, where: str, source: str) -> None:
    """Raises FineTuneError (ModelNotFound) when files of a model or an adapter are pointers of git-lfs."""
    pointers = [
        file.name
        for file in sorted(directory.iterdir())
        if file.is_file()
        and file.stat().st_size <= LARGEST_POINTER
        and is_pointer(file.read_bytes()[: len(_POINTER)].decode(errors="replace"))
    ]
    refuse_pointers(pointers, where, source)


def refuse_pointers(pointers: list[str], where: str, source: str) -> None:
    """Raises FineTuneError (ModelNotFound) when there are any."""
    if pointers:
        what = f"{', '.join(pointers)} {'is a pointer' if len(pointers) == 1 else 'are pointers'} of git-lfs"
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND,
            f"{where}: {source}: {what}, not the content; run `git lfs pull` where it was cloned",
        )


def check_is_model(directory: Path, where: str, source: str) -> None:
    """Raises FineTuneError (ModelNotFound) when the directory holds an adapter."""
    adapter = directory / ADAPTER_CONFIG
    if not (directory / CONFIG).is_file() and adapter.is_file():
        base = json.loads(adapter.read_text()).get("base_model_name_or_path") or "its base model"
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND,
            f"{where}: {source} is an adapter of {base}, not a model; give {base} here, and the adapter in"
            " spec.initial_adapter_model_ckpt_path, or merge it with `finetune merge`",
        )


def check_shards(directory: Path, where: str, source: str) -> None:
    """Raises FineTuneError (ModelNotFound) when weights that the index lists are not there."""
    index = directory / INDEX
    if not index.is_file():
        return
    listed = set(json.loads(index.read_text())["weight_map"].values())
    absent = sorted(name for name in listed if not (directory / name).is_file())
    if absent:
        shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND,
            f"{where}: {source} lacks {len(absent)} of {len(listed)} files of weights: {shown}",
        )


def check_not_quantized(config: PreTrainedConfig, where: str, source: str) -> None:
    """Raises FineTuneError (InvalidSpec) when the weights are quantized."""
    for each in (config, config.get_text_config()):
        found = getattr(each, "quantization_config", None)
        if found:
            fields = found if isinstance(found, dict) else found.to_dict()
            method = fields.get("quant_method") or "an unknown method"
            raise FineTuneError(
                FailureClass.INVALID_SPEC,
                f"{where}: {source} is quantized ({method}), and quantized weights cannot be trained here;"
                " give the model that it was made from, in bf16, fp16 or fp32",
            )


def leftover_adapter(directory: Path) -> bool:
    """Whether an adapter lies beside the weights of a full model."""
    return (directory / CONFIG).is_file() and (directory / ADAPTER_CONFIG).is_file()


@contextmanager
def without_leftovers(directory: Path) -> Iterator[Path]:
    """The model's directory without the adapter beside it, which transformers would load with the model."""
    if not leftover_adapter(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="finetune-model-") as name:
        for file in directory.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(name) / file.name).symlink_to(file.absolute())
        yield Path(name)
