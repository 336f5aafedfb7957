"""LoRA adapters by PEFT: from the spec's fields, and from an adapter that is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import peft
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.lora import ALL_LINEAR, LoraConfig

SHOWN_MODULES = 12
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def _peft_config(lora: LoraConfig) -> peft.LoraConfig:
    """PEFT's own configuration: the fields that were set, PEFT's defaults for the rest, `all-linear` for target_modules.

    Raises FineTuneError (InvalidSpec) with PEFT's words where PEFT refuses a combination.
    """
    fields = lora.model_dump(exclude_unset=True, exclude_none=True)
    try:
        return peft.LoraConfig(**{"target_modules": ALL_LINEAR, **fields, "task_type": "CAUSAL_LM"})
    except (ValueError, TypeError, ImportError) as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.lora_config: {error}") from error


def with_adapters(model: PreTrainedModel, lora: LoraConfig, *, on_meta: bool = False) -> peft.PeftModel:
    """The model with new adapters. Raises FineTuneError (InvalidSpec) with PEFT's words where PEFT refuses the configuration."""
    config = _peft_config(lora)
    try:
        return cast("peft.PeftModel", peft.get_peft_model(model, config, low_cpu_mem_usage=on_meta))
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.lora_config: {error}") from error


def check_targets(lora: LoraConfig, model: PreTrainedModel, *, tied: bool) -> list[str]:
    """Names in target_modules must exist: PEFT itself says nothing as long as one of them does."""
    names = [name for name, _ in model.named_modules()]
    targets = lora.target_modules
    if isinstance(targets, str):
        if targets != ALL_LINEAR and not any(re.fullmatch(targets, name) for name in names):
            raise FineTuneError(
                FailureClass.INVALID_SPEC, f"spec.lora_config.target_modules: {targets!r} matches no module; {_existing(model)}"
            )
        return []
    absent = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in names)]
    if targets and len(absent) == len(targets):
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"spec.lora_config.target_modules: no module is called {', '.join(absent)}; {_existing(model)}"
        )
    warnings = [f"spec.lora_config.target_modules: no module is called {target}; the others get adapters" for target in absent]
    if tied and {"embed_tokens", "lm_head"} & set(targets):
        warnings.append(
            "spec.lora_config.target_modules: this model ties embed_tokens to lm_head; finetune merge unties them, and the model grows"
        )
    return warnings


def _existing(model: PreTrainedModel) -> str:
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, kinds)})
    shown = ", ".join(names[:SHOWN_MODULES]) + (", ..." if len(names) > SHOWN_MODULES else "")
    return f"this model has {shown}"


def check_adapter(model: torch.nn.Module, adapter: Path) -> None:
    """Raises FineTuneError (ModelNotFound, InvalidSpec) when the adapter in this directory does not fit the model's adapters.

    Reads names and shapes only; the model may be without weights.
    """
    where = "spec.initial_adapter_model_ckpt_path"
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, f"{where}: {adapter} holds no {ADAPTER_WEIGHTS}; give an adapter's directory")
    wanted = {name: tuple(tensor.shape) for name, tensor in peft.get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    with safe_open(adapter / ADAPTER_WEIGHTS, "pt") as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no dict
    for name in sorted(wanted.keys() - there.keys()):
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{where}: the adapter has no {name}, which spec.lora_config asks for")
    for name in sorted(there.keys() - wanted.keys()):
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{where}: the adapter has {name}, which spec.lora_config does not ask for")
    for name in sorted(name for name in wanted if wanted[name] != there[name]):
        shapes = f"is of shape {there[name]} in the adapter, and spec.lora_config makes it {wanted[name]}; r must be the adapter's"
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{where}: {name} {shapes}")


def load_adapter(model: peft.PeftModel, adapter: Path) -> None:
    """Puts the adapter's weights in; `check_adapter` says whether they fit."""
    peft.set_peft_model_state_dict(model, peft.load_peft_weights(str(adapter), device="cpu"))
