"""What a model's files say before a weight is read: quantized, an adapter, leftovers, shards missing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.failure import FailureClass, FineTuneError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUANTIZATION_CONFIG = "quantization_config.json"
"""In a checkpoint of an adapter: how the base was quantized that it was trained on, for transformers'
BitsAndBytesConfig."""

_NUMBERS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
)
"""What transformers compares or computes with when it reads a generation config, or generates."""


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
    """Raises FineTuneError (ModelNotFound) when weights that the index lists are not there.

    As transformers does, looks at no index where all weights are in one file.
    """
    if (directory / INDEX).is_file():
        there = {file.name for file in directory.iterdir() if file.is_file()}
        check_listed((directory / INDEX).read_text(), there, f"{where}: {directory}", f"{where}: {source}")


def check_listed(index: str, there: Collection[str], directory: str, source: str) -> None:
    """The same, by the text of the index and the names of all files.

    Both `directory`, where the index is, and `source` have the field before them.
    """
    if WEIGHTS in there:
        return
    by_weight = json.loads(index).get("weight_map")
    if not isinstance(by_weight, dict) or not all(isinstance(name, str) for name in by_weight.values()):
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND,
            f"{directory}/{INDEX} has no weight_map, which names the file of each weight;"
            " copy it there again",
        )
    listed = set(by_weight.values())
    absent = sorted(listed - set(there))
    if absent:
        shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND,
            f"{source} lacks {len(absent)} of {len(listed)} files of weights: {shown}",
        )


def check_quantization(directory: Path, where: str, source: str) -> None:
    """Raises FineTuneError (ModelNotFound) when config.json does not say how weights are quantized."""
    found = json.loads((directory / CONFIG).read_text()).get("quantization_config")
    if found is not None and not isinstance(found, dict):
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND,
            f"{where}: {source} has a config.json with quantization_config {found!r}; it must be an object"
            " with quant_method, and not be there where the weights are not quantized",
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


def check_ends(generation: GenerationConfig, where: str, source: str) -> None:
    """Raises FineTuneError (ModelNotFound) when what ends generation is neither tokens nor texts."""
    for name, kind, right in (
        ("eos_token_id", int, "a token's id or a list of them"),
        ("stop_strings", str, "a text or a list of them"),
    ):
        value = getattr(generation, name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(each, kind) for each in values):
            raise FineTuneError(
                FailureClass.MODEL_NOT_FOUND,
                f"{where}: {source} has a generation_config.json with {name} {value!r}; it must be {right}",
            )


def check_numbers(directory: Path, where: str, source: str) -> None:
    """Raises FineTuneError (ModelNotFound) for each number in generation_config.json that is none."""
    fields = json.loads((directory / GENERATION_CONFIG).read_text())
    problems = [
        f"{where}: {source} has a generation_config.json with {name} {fields[name]!r}; it must be a number"
        for name in _NUMBERS
        if fields.get(name) is not None
        and (isinstance(fields[name], bool) or not isinstance(fields[name], int | float))
    ]
    if problems:
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, *problems)


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
