"""`spec.lora_config`: every field of PEFT's `LoraConfig`, under PEFT's names and with PEFT's meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from finetune_api.fields import Flag, Integer, JsonObject, Number, ShortText, SpecModel, TextList, TextOrList

ALL_LINEAR = "all-linear"

Rank = Annotated[Integer, Field(ge=1, le=65536)]
Index = Annotated[Integer, Field(ge=0, le=2**31 - 1)]


class LoraConfig(SpecModel):
    """Low-rank adapters instead of full-parameter training; `{}` is a complete configuration.

    Fields left out take PEFT's defaults, except `target_modules`, which is then `all-linear`.
    Source: peft 0.21.2, `peft.LoraConfig`.
    """

    r: Rank = 8
    """Rank of the adapters."""
    lora_alpha: Annotated[Integer, Field(ge=1, le=2**31 - 1)] = 8
    """Scale: adapters are multiplied by lora_alpha / r."""
    lora_dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Probability with which inputs of the adapters are dropped in training."""
    target_modules: TextOrList = ALL_LINEAR
    """Modules that get adapters: names, a regular expression, or `all-linear` for every linear layer but the head."""
    exclude_modules: TextOrList | None = None
    """Modules that get none."""
    task_type: Literal["CAUSAL_LM"] | None = None
    """PEFT's own task type; only CAUSAL_LM is trained here."""
    modules_to_save: TextList | None = None
    """Modules that are trained in full and saved with the adapter."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    fan_in_fan_out: Flag = False
    """True for layers that store weights as (fan in, fan out), such as GPT-2's."""
    init_lora_weights: Annotated[JsonValue, Field(json_schema_extra={"x-open": True})] = True
    """True, false, or the name of an initialisation: gaussian, olora, pissa, pissa_niter_N, orthogonal, mica."""
    use_rslora: Flag = False
    """Scale by lora_alpha / sqrt(r)."""
    use_dora: Flag = False
    """Weight-decomposed adapters (DoRA)."""
    lora_bias: Flag = False
    """Give B a bias."""
    layers_to_transform: Annotated[JsonValue, Field(json_schema_extra={"x-open": True})] = None
    """Index or indices of the layers that get adapters."""
    layers_pattern: TextOrList | None = None
    """Name of the list of layers, when layers_to_transform is set."""
    rank_pattern: Annotated[dict[ShortText, Rank], Field(max_length=1024)] | None = None
    """Ranks that differ from r, by module name or regular expression."""
    alpha_pattern: Annotated[dict[ShortText, Rank], Field(max_length=1024)] | None = None
    """Alphas that differ from lora_alpha, by module name or regular expression."""
    layer_replication: Annotated[list[Annotated[list[Index], Field(min_length=2, max_length=2)]], Field(max_length=1024)] | None = None
    """Ranges [start, end) of layers that are stacked into a larger model."""
    target_parameters: TextList | None = None
    """Parameters (not modules) that get adapters."""
    trainable_token_indices: Annotated[JsonValue, Field(json_schema_extra={"x-open": True})] = None
    """Token ids whose embeddings are trained, or a map from embedding module to ids."""
    ensure_weight_tying: Flag = False
    """Keep tied embeddings tied when they are targeted."""
    alora_invocation_tokens: Annotated[list[Index], Field(max_length=1024)] | None = None
    """Token ids that switch an activated LoRA on."""
    use_qalora: Flag = False
    qalora_group_size: Annotated[Integer, Field(ge=1, le=65536)] = 16
    megatron_config: JsonObject | None = None
    megatron_core: ShortText | None = "megatron.core"
    loftq_config: JsonObject | None = None
    eva_config: JsonObject | None = None
    corda_config: JsonObject | None = None
    lora_ga_config: JsonObject | None = None
    velora_config: JsonObject | None = None
    monteclora_config: JsonObject | None = None
    kasa_config: JsonObject | None = None
    arrow_config: JsonObject | None = None
    use_bdlora: JsonObject | None = None
    runtime_config: JsonObject | None = None
    base_model_name_or_path: Annotated[str, Field(max_length=4096)] | None = None
    """Written by PEFT; model_id decides."""
    revision: ShortText | None = None
    """Written by PEFT."""
    peft_type: Literal["LORA"] | None = None
    peft_version: ShortText | None = None
    """Written by PEFT."""
    auto_mapping: JsonObject | None = None
    """Written by PEFT."""
    inference_mode: Literal[False] = False
    """Adapters that are only used cannot be trained."""
