"""The model: its tokenizer, its shape without weights, and itself, with adapters or in full."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import peft
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.import_utils import is_flash_attn_2_available

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.numbers import ResolvedPrecision
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.adapters import check_adapter, check_targets, load_adapter, with_adapters
from finetune_trainer.model_source import fetch_model, source_name


@dataclass(frozen=True)
class Shape:
    """A model's sizes, known from its configuration without loading a weight."""

    total_parameters: int
    """Of the base model and the adapters."""
    trainable_parameters: int
    layers: int
    hidden_size: int
    vocabulary: int
    context_length: int | None
    """Most tokens the model takes; None when its configuration does not say."""
    warnings: tuple[str, ...]


def load_config(spec: FineTuneJobSpec) -> PreTrainedConfig:
    """The model's configuration. Raises FineTuneError (ModelNotFound) when there is none or its architecture is unknown."""
    source = spec.initial_base_model_ckpt_path or spec.model_id
    field = "initial_base_model_ckpt_path" if spec.initial_base_model_ckpt_path else "model_id"
    path = fetch_model(source, f"spec.{field}", weights=False)
    try:
        return cast("PreTrainedConfig", AutoConfig.from_pretrained(path, trust_remote_code=False))
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, f"spec.{field}: {source_name(source)} cannot be read: {reason}") from error


def load_tokenizer(spec: FineTuneJobSpec) -> PreTrainedTokenizerBase:
    """The tokenizer of `model_id`.

    A tokenizer without a pad token gets its end-of-text token as filling: padding is masked by position, so the choice changes
    nothing. Raises FineTuneError (ModelNotFound) when there is no tokenizer, or one with neither token.
    """
    path = fetch_model(spec.model_id, "spec.model_id", weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND, f"spec.model_id: {spec.model_id} has no tokenizer that can be read: {reason}"
        ) from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        missing = "its tokenizer has neither a pad token nor an end-of-text token; set pad_token in its tokenizer_config.json"
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, f"spec.model_id: {spec.model_id}: {missing}")
    return cast("PreTrainedTokenizerBase", tokenizer)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills short rows."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def shape(spec: FineTuneJobSpec, config: PreTrainedConfig) -> Shape:
    """The sizes of the model that the spec trains.

    Raises FineTuneError (InvalidSpec) when lora_config does not fit the model, or the adapter to go on from does not fit lora_config.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    text = config.get_text_config()
    warnings: list[str] = []
    trained: torch.nn.Module = model
    if spec.lora_config is not None:
        warnings = check_targets(spec.lora_config, model, tied=bool(text.tie_word_embeddings))
        trained = with_adapters(model, spec.lora_config, on_meta=True)
        if spec.initial_adapter_model_ckpt_path is not None:
            check_adapter(trained, fetch_model(spec.initial_adapter_model_ckpt_path, "spec.initial_adapter_model_ckpt_path"))
    return Shape(
        total_parameters=_count(trained),
        trainable_parameters=_count(trained, trainable=True),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocabulary=text.vocab_size,
        context_length=getattr(text, "max_position_embeddings", None),
        warnings=tuple(warnings),
    )


def load_model(
    spec: FineTuneJobSpec, *, dtype: ResolvedPrecision, on_gpu: bool, resumed: Path | None = None
) -> PreTrainedModel | peft.PeftModel:
    """The model to train, on the CPU, in train mode.

    What was trained is taken from the checkpoint `resumed`, if there is one. Frozen weights are held in `dtype`; what is trained is
    held in fp32, since AdamW's small updates vanish in bf16. New adapters depend on the spec's seed alone.
    """
    if resumed is not None and spec.lora_config is None:
        weights = resumed
    else:
        source = spec.initial_base_model_ckpt_path or spec.model_id
        weights = fetch_model(source, "spec.initial_base_model_ckpt_path" if spec.initial_base_model_ckpt_path else "spec.model_id")
    held = torch.bfloat16 if dtype == "bf16" and spec.lora_config is not None else torch.float32
    attention = "flash_attention_2" if uses_flash_attention(spec, on_gpu=on_gpu) else None
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        weights, dtype=held, attn_implementation=attention, trust_remote_code=False
    )
    if spec.recomputes_activations:
        model.activation_checkpointing_enable()
    if spec.lora_config is None:
        return cast("PreTrainedModel", model.train())

    adapter = resumed
    if adapter is None and spec.initial_adapter_model_ckpt_path is not None:
        adapter = fetch_model(spec.initial_adapter_model_ckpt_path, "spec.initial_adapter_model_ckpt_path")
    torch.manual_seed(spec.seed)
    adapted = with_adapters(model, spec.lora_config)
    if adapter is not None:
        load_adapter(adapted, adapter)
    _describe_base(adapted, spec)
    return adapted.train()


def uses_flash_attention(spec: FineTuneJobSpec, *, on_gpu: bool) -> bool:
    """Whether attention comes from the flash-attn package: asked for, on a GPU, and installed."""
    return bool(spec.flash_attention_2) and on_gpu and is_flash_attn_2_available()


def save_weights(model: PreTrainedModel | peft.PeftModel, directory: Path, spec: FineTuneJobSpec) -> None:
    """Writes what was trained: a PEFT adapter, or a model in shards of 5 GB; and how to generate with it."""
    if isinstance(model, peft.PeftModel):
        # The vocabulary is never resized here, so base embeddings need no copy; "auto" would ask the hub.
        model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    else:
        model.save_pretrained(directory, max_shard_size="5GB")
    generation = copy.deepcopy(model.generation_config)
    if generation is not None:
        if spec.generation_config is not None and spec.generation_config.stopping_sequences:
            generation.stop_strings = spec.generation_config.stopping_sequences
        generation.save_pretrained(directory)


def _describe_base(model: peft.PeftModel, spec: FineTuneJobSpec) -> None:
    config = cast("peft.LoraConfig", model.peft_config["default"])
    config.base_model_name_or_path = source_name(spec.initial_base_model_ckpt_path or spec.model_id)
    # PEFT expands all-linear into a set; its order, and with it the file, would differ from run to run.
    if isinstance(config.target_modules, set | list):
        config.target_modules = sorted(config.target_modules)


def _count(model: torch.nn.Module, *, trainable: bool = False) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trainable)
