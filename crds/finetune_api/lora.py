"""`spec.lora_config`: every field of PEFT's `LoraConfig`, under PEFT's names and with PEFT's meaning."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Tag
from pydantic_core import PydanticCustomError

from finetune_api.fields import (
    Flag,
    Integer,
    JsonObject,
    LongText,
    Number,
    ShortText,
    SpecModel,
    TextList,
    TextOrList,
    UnbuiltBlock,
    one_of,
)

ALL_LINEAR = "all-linear"
INITIALISATIONS = ("gaussian", "olora", "pissa", "orthogonal", "mica")
"""PEFT's initialisations that need no pass over the data and no quantized base model, and that an adapter can
be loaded with again."""
NEEDS_DATA = "needs a pass over the data before training, which is not supported yet"
NEEDS_LOSS = "adds a term to the loss, which is not supported yet"
QUANTIZES = "quantizes the base model in a way of its own, which is not supported"
INITIALISATIONS_IN_FOUR_BITS = ("gaussian",)
"""Those of `INITIALISATIONS` that do without the base's weights in full, besides true and false.

PEFT begins `olora` on quantized weights too, but changes them: on another base the adapter is another one."""
NOT_IN_FOUR_BITS = {
    "velora_config": "is not there for layers in 4 bits",
    "use_bdlora": "would be ignored by layers in 4 bits",
}
"""Fields that PEFT does not build on a base in 4 bits, and why."""
UNBUILT_INITIALISATIONS = {
    "eva": NEEDS_DATA,
    "corda": NEEDS_DATA,
    "lora_ga": NEEDS_DATA,
    "loftq": QUANTIZES,
    "pissa_niter_N": (
        "starts from a random approximation that nobody who loads the adapter can repeat;"
        " pissa can be repeated"
    ),
}
"""PEFT's other initialisations, and why they are refused; N is a number of iterations."""
UNBUILT_BLOCKS = {
    "eva_config": NEEDS_DATA,
    "corda_config": NEEDS_DATA,
    "lora_ga_config": NEEDS_DATA,
    "megatron_config": "is for Megatron's layers, which are not supported",
    "arrow_config": "routes between adapters that are trained already",
    "monteclora_config": NEEDS_LOSS,
    "kasa_config": NEEDS_LOSS,
}
UNBUILT_SWITCHES = {
    "use_qalora": "needs a base that GPTQ has quantized, which is not supported",
    "inference_mode": "would leave the adapter untrained",
}
"""Fields of PEFT that are refused, and why; so is a `loftq_config` that says something."""


def unbuilt_initialisation(name: str) -> str | None:
    """Why an initialisation of PEFT's is refused; None when it is not."""
    return UNBUILT_INITIALISATIONS.get(re.sub(r"_niter_\d+$", "_niter_N", name))


def _initialisation(name: str) -> str:
    if name not in INITIALISATIONS and unbuilt_initialisation(name) is None:
        raise PydanticCustomError(
            "initialisation", "must be true, false or one of {known}", {"known": ", ".join(INITIALISATIONS)}
        )
    return name


Rank = Annotated[Integer, Field(ge=1, le=65536)]
Index = Annotated[Integer, Field(ge=0, le=2**31 - 1)]
Indices = Annotated[list[Index], Field(max_length=65536)]
Initialisation = Annotated[
    Annotated[Flag, Tag("flag")] | Annotated[ShortText, AfterValidator(_initialisation), Tag("text")],
    one_of(f"true, false or one of {', '.join(INITIALISATIONS)}"),
    Field(json_schema_extra={"enum": [True, False, *INITIALISATIONS]}),
]
Layers = Annotated[
    Annotated[Index, Tag("number")] | Annotated[Indices, Tag("list")],
    one_of("a layer's index or a list of them"),
]
TokenIndices = Annotated[
    Annotated[Indices, Tag("list")]
    | Annotated[dict[ShortText, Indices], Field(max_length=64), Tag("object")],
    one_of("a list of token ids, or a map from modules to such lists"),
]


class RuntimeConfig(SpecModel):
    """What PEFT's `LoraRuntimeConfig` says."""

    ephemeral_gpu_offload: Flag = False
    """Use a GPU for the parts of an initialisation that the CPU is slow at."""


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
    """Modules with adapters: names, a regular expression, or `all-linear`: all linear ones but the head."""
    exclude_modules: TextOrList | None = None
    """Modules that get no adapters."""
    task_type: Literal["CAUSAL_LM"] | None = None
    """PEFT's own task type; only CAUSAL_LM is trained here."""
    modules_to_save: TextList | None = None
    """Modules that are trained in full and saved with the adapter."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    fan_in_fan_out: Flag = False
    """True for layers that store weights as (fan in, fan out), such as GPT-2's."""
    init_lora_weights: Initialisation = True
    """True, false, or the name of an initialisation: gaussian, olora, pissa, orthogonal, mica."""
    use_rslora: Flag = False
    """Scale by lora_alpha / sqrt(r)."""
    use_dora: Flag = False
    """Weight-decomposed adapters (DoRA)."""
    lora_bias: Flag = False
    """Give B a bias."""
    layers_to_transform: Layers | None = None
    """Index or indices of the layers that get adapters."""
    layers_pattern: TextOrList | None = None
    """Name of the list of layers, when layers_to_transform is set."""
    rank_pattern: Annotated[dict[ShortText, Rank], Field(max_length=1024)] = Field(default_factory=dict)
    """Ranks that differ from r, by module name or regular expression."""
    alpha_pattern: Annotated[dict[ShortText, Rank], Field(max_length=1024)] = Field(default_factory=dict)
    """Alphas that differ from lora_alpha, by module name or regular expression."""
    layer_replication: (
        Annotated[list[Annotated[list[Index], Field(min_length=2, max_length=2)]], Field(max_length=1024)]
        | None
    ) = None
    """Ranges [start, end) of layers that are stacked into a larger model."""
    target_parameters: TextList | None = None
    """Parameters (not modules) that get adapters."""
    trainable_token_indices: TokenIndices | None = None
    """Token ids whose embeddings are trained, or a map from embedding module to ids."""
    ensure_weight_tying: Flag = False
    """Keep tied embeddings tied when they are targeted."""
    alora_invocation_tokens: Annotated[list[Index], Field(max_length=1024)] | None = None
    """Token ids that switch an activated LoRA on."""
    use_qalora: Flag = False
    """Quantization-aware adapters (QA-LoRA)."""
    qalora_group_size: Annotated[Integer, Field(ge=1, le=65536)] = 16
    """Group size of QA-LoRA."""
    megatron_config: UnbuiltBlock | None = None
    """Arguments of Megatron's parallel layers."""
    megatron_core: ShortText = "megatron.core"
    """The module that holds Megatron's layers."""
    loftq_config: JsonObject = Field(default_factory=dict)
    """Arguments of the initialisation loftq."""
    eva_config: UnbuiltBlock | None = None
    """Arguments of the initialisation eva."""
    corda_config: UnbuiltBlock | None = None
    """Arguments of the initialisation corda."""
    lora_ga_config: UnbuiltBlock | None = None
    """Arguments of the initialisation lora_ga."""
    velora_config: JsonObject | None = None
    """Arguments of VeLoRA, which compresses activations."""
    monteclora_config: UnbuiltBlock | None = None
    """Arguments of MonteCLoRA, which samples adapters."""
    kasa_config: UnbuiltBlock | None = None
    """Arguments of KaSA, which adapts singular values."""
    arrow_config: UnbuiltBlock | None = None
    """Arguments of Arrow, which routes between adapters."""
    use_bdlora: JsonObject | None = None
    """Arguments of block-diagonal adapters (BD-LoRA)."""
    runtime_config: RuntimeConfig = RuntimeConfig()
    """How PEFT computes; it changes nothing that is saved."""
    base_model_name_or_path: LongText | None = None
    """Written by PEFT; model_id decides."""
    revision: ShortText | None = None
    """Written by PEFT."""
    peft_type: Literal["LORA"] | None = None
    """Written by PEFT."""
    peft_version: ShortText | None = None
    """Written by PEFT."""
    auto_mapping: JsonObject | None = None
    """Written by PEFT."""
    inference_mode: Flag = False
    """Written by PEFT."""
