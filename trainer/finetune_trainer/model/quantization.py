"""Holds the frozen base model in 4 bits, by bitsandbytes: QLoRA.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs": the weights of linear layers in NF4, in
blocks of 64 values with a scale each, and the scales quantized again (double quantization). Embeddings, head
and norms stay as they are, and so does what is no linear layer, such as the experts of a mixture.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import peft
import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.lora import LoraConfig
from finetune_trainer.model.contents import QUANTIZATION_CONFIG

_BLOCK, _SCALES_IN_A_BLOCK = 64, 256
_SHOWN = 3


def quantized_bytes(parameters: int) -> int:
    """The bytes that parameters take in NF4 with double quantization: 4.127 bits each (QLoRA, section 3).

    Besides the 4 bits there is a byte for each 64 parameters, and an fp32 number for each 256 of those bytes.
    The tables that every layer has, of 1.1 kB, are not counted.
    """
    scales = -(-parameters // _BLOCK)
    return -(-parameters // 2) + scales + 4 * -(-scales // _SCALES_IN_A_BLOCK)


def quantization_config(held: torch.dtype) -> BitsAndBytesConfig:
    """How transformers quantizes a base while it loads it.

    `held` is the precision of the other weights, and of the quantized ones while they are computed with.
    """
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=held,
    )


def quantized_layers(model: PreTrainedModel) -> dict[str, torch.nn.Linear | Conv1D]:
    """The layers by name whose weights are quantized when this model is loaded so; by transformers' rule.

    The model is not quantized, and may be on the meta device.
    """
    kept = HfQuantizer.get_modules_to_not_convert(
        model, None, cast("list[str] | None", model._keep_in_fp32_modules)
    )
    return {
        name: module
        for name, module in model.named_modules()
        if (type(module) is torch.nn.Linear or isinstance(module, Conv1D))
        and should_convert_module(name, kept)
    }


def check_quantizable(lora: LoraConfig, model: PreTrainedModel) -> list[str]:
    """Checks that adapters can be trained on this model when it is quantized, and returns remarks.

    The model is not quantized, and may be on the meta device. Raises FineTuneError (InvalidSpec) with every
    field of `lora` that needs what a quantized layer has not, or when no layer can be quantized.
    """
    layers = quantized_layers(model)
    if not layers:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            "spec.quantization: nf4 holds linear layers in 4 bits, and this model has none besides its head;"
            " leave it out",
        )
    problems = []
    whole = _named(lora.modules_to_save or [], list(layers))
    if whole:
        what = "is held in 4 bits by spec.quantization, and cannot be trained in full; leave one of them out"
        problems += [f"spec.lora_config.modules_to_save: {name} {what}" for name in whole]
    parameters = _named(lora.target_parameters or [], [f"{name}.weight" for name in layers])
    if parameters:
        what = "is held in 4 bits by spec.quantization; name its module in target_modules"
        problems += [f"spec.lora_config.target_parameters: {name} {what}" for name in parameters]
    if lora.bias != "none" and any(layer.bias is not None for layer in layers.values()):
        problems.append(
            f"spec.lora_config.bias: {lora.bias} trains biases of layers that spec.quantization holds in 4"
            " bits, for which bitsandbytes computes no right gradient; take none"
        )
    if problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    return _remarks(model, layers)


def _named(wanted: list[str], names: list[str]) -> list[str]:
    """Those of `wanted` that are the end of one of the names, as PEFT reads them."""
    return [each for each in wanted if any(name == each or name.endswith(f".{each}") for name in names)]


def _remarks(model: PreTrainedModel, layers: dict[str, torch.nn.Linear | Conv1D]) -> list[str]:
    """What stays as it is besides embeddings and head, where that is much."""
    known = {id(layer.weight) for layer in layers.values()} | {
        id(parameter)
        for part in (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
        if part is not None
        for parameter in part.parameters()
    }
    others = {name: each.numel() for name, each in model.named_parameters() if id(each) not in known}
    total = sum(each.numel() for each in model.parameters())
    if sum(others.values()) * 10 < total:
        return []
    largest = sorted(others, key=lambda name: -others[name])
    shown = ", ".join(list(dict.fromkeys(name.rpartition(".")[2] for name in largest))[:_SHOWN])
    share = quantized_parameters(layers) / total
    what = f"{share:.0%} of the parameters are held in 4 bits; {shown} are no linear layers, and stay"
    return [f"spec.quantization: {what} as they are"]


def quantized_parameters(layers: dict[str, torch.nn.Linear | Conv1D]) -> int:
    """How many parameters are held in 4 bits."""
    return sum(layer.weight.numel() for layer in layers.values())


def keep_layout(model: PreTrainedModel) -> None:
    """Keeps a quantized model's weights as they are when it validates.

    On processors with AVX512-BF16 bitsandbytes packs them anew in the first forward pass without gradients,
    with scales in bf16, and computes no gradient through them from then on.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def move_scales(model: torch.nn.Module, device: torch.device) -> None:
    """Puts the scales of a quantized model's weights on the device that computes with them.

    They go with a weight that is moved whole. FSDP moves parts of weights only, and every device needs all
    scales: 0.13 bits a parameter.
    """
    if find_spec("bitsandbytes") is None:
        return
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit) and module.quant_state is not None:
            module.quant_state.to(device)


def save_quantization(model: peft.PeftModel, directory: Path) -> None:
    """Writes how the base of a model with adapters was quantized, if it was."""
    config = getattr(model.get_base_model().config, "quantization_config", None)
    if isinstance(config, BitsAndBytesConfig):
        fields = config.to_diff_dict()
        (directory / QUANTIZATION_CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def saved_quantization(adapter: Path) -> BitsAndBytesConfig | None:
    """How the base was quantized that the adapter in this directory was trained on; None if it was not."""
    file = adapter / QUANTIZATION_CONFIG
    if not file.is_file():
        return None
    fields = json.loads(file.read_text())
    return cast("BitsAndBytesConfig", BitsAndBytesConfig.from_dict(fields))  # type: ignore[no-untyped-call]


@torch.no_grad()
def round_weights(model: PreTrainedModel, config: BitsAndBytesConfig) -> None:
    """Gives a model that is not quantized the values that its weights have when it is, in its own precision.

    The model is on the CPU. The values are those that training computed with.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for layer in quantized_layers(model).values():
        weight = layer.weight.to(config.bnb_4bit_compute_dtype)
        packed, state = quantize_4bit(
            (weight.T if isinstance(layer, Conv1D) else weight).contiguous(),
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
        )
        values = dequantize_4bit(packed, state)
        layer.weight.copy_(values.T if isinstance(layer, Conv1D) else values)
