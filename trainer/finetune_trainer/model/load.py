"""Loads a model's configuration, its tokenizer, its shape without weights, and the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypedDict, cast

import peft
import torch
from safetensors import safe_open
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.experimental import implicit_replication
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.fields import HubRepository
from finetune_api.lora import LoraConfig
from finetune_api.numbers import ResolvedPrecision
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.label_tokens import NewToken, add_labels
from finetune_trainer.model.adapters import (
    check_adapter,
    check_patterns,
    check_shardable,
    check_targets,
    load_adapter,
    peft_remarks,
    with_adapters,
)
from finetune_trainer.model.attention import uses_flash_attention
from finetune_trainer.model.contents import (
    check_ends,
    check_is_model,
    check_not_quantized,
    check_numbers,
    check_quantization,
    check_shards,
    leftover_adapter,
    without_leftovers,
)
from finetune_trainer.model.files import one_line, reading
from finetune_trainer.model.liger import put_kernels
from finetune_trainer.model.parts import plain, read_in_parts, whole_shapes
from finetune_trainer.model.quantization import (
    check_quantizable,
    keep_layout,
    quantization_config,
    quantized_layers,
    quantized_parameters,
)
from finetune_trainer.model.reach import freeze_unreached, sees_later_tokens
from finetune_trainer.model.remarks import transformers_remarks
from finetune_trainer.model.sizes import NO_SIZES, Sizes, sizes_of
from finetune_trainer.model.source import fetch_model, lacks_weights, source_name, source_revision
from finetune_trainer.model.trial import findings
from finetune_trainer.model.vocabulary import embedding_names, grow
from finetune_trainer.tasks.task import task_of

SHOWN_WEIGHTS = 3

_ALIGNMENT = 64
"""Bytes; that of what PyTorch allocates on a CPU."""
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SAFETENSORS_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Shape:
    """A model's sizes, which are known from its configuration without loading weights."""

    total_parameters: int
    """Parameters of the base model and the adapters."""
    trainable_parameters: int
    layers: int
    hidden_size: int
    vocabulary: int
    context_length: int | None
    """The most tokens that the model takes; None when its configuration does not say."""
    warnings: tuple[str, ...]
    quantized_parameters: int = 0
    """Those of `total_parameters` that are held in 4 bits."""
    sizes: Sizes = NO_SIZES
    end_to_end: bool = False
    """Whether its rows can be laid end to end."""
    scores_in_chunks: bool = False
    """Whether the scores over the vocabulary can be made some positions at a time."""


class LoadingInfo(TypedDict):
    """What transformers reports about the weights that it read."""

    missing_keys: set[str]
    mismatched_keys: set[tuple[str, tuple[int, ...], tuple[int, ...]]]
    """For each its name, the size that was found and the size that the model needs."""


def load_config(spec: FineTuneJobSpec) -> PreTrainedConfig:
    """Loads the model's configuration, with the vocabulary that it is trained with.

    Raises FineTuneError: ModelNotFound when there is none, when its architecture is unknown, or when the
    directory is an adapter's; InvalidSpec when the weights are quantized.
    """
    source, where = base_source(spec)
    path, name = fetch_model(source, where, weights=False), source_name(source)
    check_is_model(path, where, name)
    with reading(path, where):
        check_quantization(path, where, name)
        config = cast("PreTrainedConfig", AutoConfig.from_pretrained(path, trust_remote_code=False))
        check_not_quantized(config, where, name)
    if spec.classifier_config is not None:
        text = config.get_text_config()
        text.vocab_size = max(text.vocab_size, _vocabulary(spec)[0])
    return config


def check_weights(spec: FineTuneJobSpec) -> None:
    """Raises FineTuneError (ModelNotFound) where the directory of the base model holds no weights."""
    source, where = base_source(spec)
    if lacks_weights(source):
        what = f"{source_name(source)} holds no weights (*.safetensors); give a model's directory"
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, f"{where}: {what}")


def remarks_on_weights(spec: FineTuneJobSpec) -> list[str]:
    """A remark where the base model's weights are not on this machine."""
    source, where = base_source(spec)
    if any(fetch_model(source, where, weights=False).glob("*.safetensors")):
        return []
    what = "the weights are not on this machine; the plan is made from configuration and tokenizer alone"
    return [f"{where}: {source_name(source)}: {what}"]


def load_generation_config(spec: FineTuneJobSpec) -> GenerationConfig:
    """Loads the base model's generation config, or makes it of its configuration, as transformers does.

    Raises FineTuneError as `load_config` does.
    """
    source, where = base_source(spec)
    path = fetch_model(source, where, weights=False)
    with reading(path, where):
        if (path / GENERATION_CONFIG_NAME).is_file():
            check_numbers(path, where, source_name(source))
            generation = GenerationConfig.from_pretrained(path)
            check_ends(generation, where, source_name(source))
            return generation
        return GenerationConfig.from_model_config(load_config(spec))


def load_tokenizer(spec: FineTuneJobSpec) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of `model_id`; with classifier_config its labels are tokens of it.

    Raises FineTuneError: ModelNotFound when there is none, or when it has neither a pad token nor an
    end-of-text token to pad with; InvalidSpec where a label cannot be a token.
    """
    tokenizer, _ = _with_labels(spec.model_id, _labels(spec))
    return tokenizer


def _labels(spec: FineTuneJobSpec) -> tuple[str, ...]:
    return () if spec.classifier_config is None else tuple(spec.classifier_config.label_tokens)


def _with_labels(
    model_id: str, labels: Sequence[str]
) -> tuple[PreTrainedTokenizerBase, tuple[NewToken, ...]]:
    """A model's tokenizer with these labels, and the tokens that it has got for them."""
    path = fetch_model(model_id, "spec.model_id", weights=False)
    with reading(path, "spec.model_id"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        missing = (
            "its tokenizer has neither a pad token nor an end-of-text token;"
            " set pad_token in its tokenizer_config.json"
        )
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, f"spec.model_id: {model_id}: {missing}")
    return cast("PreTrainedTokenizerBase", tokenizer), tuple(add_labels(tokenizer, labels))


def _new_tokens(spec: FineTuneJobSpec) -> tuple[NewToken, ...]:
    return () if spec.classifier_config is None else _vocabulary(spec)[1]


def _vocabulary(spec: FineTuneJobSpec) -> tuple[int, tuple[NewToken, ...]]:
    """How many tokens a job's tokenizer has with its labels, and which of them are new."""
    return _vocabulary_of(spec.model_id, _labels(spec))


@lru_cache
def _vocabulary_of(model_id: str, labels: tuple[str, ...]) -> tuple[int, tuple[NewToken, ...]]:
    # A plan asks for it with every setting that it tries.
    tokenizer, new = _with_labels(model_id, labels)
    return len(tokenizer), new


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that pads short rows: the pad token, or without one the end-of-text token.

    Padding is masked by position, so the choice changes nothing.
    """
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def shape(spec: FineTuneJobSpec, config: PreTrainedConfig) -> Shape:
    """The sizes of the model that the spec trains.

    Raises FineTuneError: InvalidSpec when lora_config does not fit the model, or
    initial_adapter_model_ckpt_path does not fit lora_config; ModelNotFound when the model is not a causal
    language model.
    """
    model = _without_weights(spec, config)
    if sees_later_tokens(task_of(spec).model_class, config):
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, f"{base_source(spec)[1]}: {_not_causal(config)}")
    text = config.get_text_config()
    warnings = _remarks(spec, freeze_unreached(model))
    found = findings(task_of(spec).model_class, config)
    if spec.padding == "longest" and not found.end_to_end:
        warnings.append(_padded(config))
    trained: torch.nn.Module = model
    quantized = 0
    if spec.lora_config is not None:
        if spec.quantization is not None:
            warnings += check_quantizable(spec.lora_config, model)
            quantized = quantized_parameters(quantized_layers(model))
        warnings += check_targets(spec.lora_config, model, tied=bool(text.tie_word_embeddings))
        lora = _with_new_tokens(spec.lora_config, model, _new_tokens(spec))
        with peft_remarks(lora, warnings):
            trained = adapted = with_adapters(model, lora, on_meta=True)
        warnings += check_patterns(spec.lora_config, adapted)
        if spec.initial_adapter_model_ckpt_path is not None:
            where = "spec.initial_adapter_model_ckpt_path"
            adapter = fetch_model(spec.initial_adapter_model_ckpt_path, where)
            with reading(adapter, where):
                check_adapter(adapted, adapter)
    return Shape(
        total_parameters=_count(trained),
        trainable_parameters=_count(trained, trainable=True),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocabulary=text.vocab_size,
        context_length=getattr(text, "max_position_embeddings", None),
        warnings=tuple(warnings),
        quantized_parameters=quantized,
        sizes=sizes_of(cast("PreTrainedModel | peft.PeftModel", trained)),
        end_to_end=found.end_to_end,
        scores_in_chunks=found.scores is not None,
    )


def _without_weights(spec: FineTuneJobSpec, config: PreTrainedConfig) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            model: PreTrainedModel = task_of(spec).model_class.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except Exception as error:
        source, where = base_source(spec)
        if type(config) not in AutoModelForCausalLM._model_mapping:
            what = f"a {config.model_type} is not a causal language model that transformers knows"
        else:
            name = source if isinstance(source, str) else source.repo_id
            what = f"{name} has a config.json of which no model can be made: {one_line(error)}"
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, f"{where}: {what}") from error
    return model


def check_kernels(spec: FineTuneJobSpec, *, on_gpu: bool) -> list[str]:
    """Tries Liger's kernels on the model without weights, where they are asked for; returns remarks.

    `on_gpu` says whether the workers have GPUs: they need not be here. Raises FineTuneError as `put_kernels`
    does, and as `shape` does for a model that cannot be made.
    """
    if spec.liger_switches is None:
        return []
    remarks: list[str] = []
    with transformers_remarks("spec.model_id", remarks):
        model = _without_weights(spec, load_config(spec))
    return [*remarks, *put_kernels(model, spec, on_gpu=on_gpu)]


def _padded(config: PreTrainedConfig) -> str:
    return (
        "spec.padding: rows of a micro-batch are padded to the longest, since it is not sure that a"
        f" {config.model_type} keeps rows that are laid end to end apart"
    )


def _not_causal(config: PreTrainedConfig) -> str:
    cure = (
        "set is_decoder: true in its config.json, or give a causal language model"
        if getattr(config, "is_decoder", None) is False
        else "give a causal language model"
    )
    return f"this {config.model_type} sees the tokens that it is to predict, and would only copy them; {cure}"


def _remarks(spec: FineTuneJobSpec, frozen: list[str]) -> list[str]:
    source, where = base_source(spec)
    remarks = []
    if frozen:
        parts = ", ".join(name.rpartition(".")[2] for name in frozen)
        remarks.append(f"{where}: text does not reach {parts}; they stay as they are, and get no adapters")
    if leftover_adapter(fetch_model(source, where, weights=False)):
        remarks.append(
            f"{where}: {source_name(source)} has an adapter_config.json beside a full model's weights, and is"
            " trained without that adapter; delete it, since transformers loads it with the model"
        )
    return remarks


def load_model(
    spec: FineTuneJobSpec,
    *,
    dtype: ResolvedPrecision,
    on_gpu: bool,
    resumed: Path | None = None,
    mesh: DeviceMesh | None = None,
) -> PreTrainedModel | peft.PeftModel:
    """Loads the model to train, in train mode and on the CPU, or on this worker's GPU when it is quantized.

    With `resumed`, a checkpoint's directory, the trained weights come from there. Frozen weights are held
    in `dtype`, or in 4 bits where the spec says so, and trained ones in fp32, because AdamW's small updates
    vanish in bf16. New adapters depend only on the spec's seed. With `mesh`, which is of CPUs, every rank
    calls this and reads its parts of the base model only; adapters are whole, and so is a base in 4 bits,
    which is then on the CPU. Raises FineTuneError (ModelNotFound) when weights are missing or damaged.
    """
    if mesh is not None:
        check_in_parts(spec)
    source, where = base_source(spec)
    weights = resumed if resumed is not None and spec.lora_config is None else fetch_model(source, where)
    held = torch.bfloat16 if dtype == "bf16" and spec.lora_config is not None else torch.float32
    attention = "flash_attention_2" if uses_flash_attention(spec, on_gpu=on_gpu) else None
    model_class = task_of(spec).model_class
    where = where if weights != resumed else "the checkpoint to resume from"
    # The scales of a weight are quantized together, so it is read whole.
    cut = mesh if spec.quantization is None else None
    model = read_weights(
        weights,
        where,
        model_class,
        dtype=held,
        attention=attention,
        quantization=None if spec.quantization is None else quantization_config(held),
        on_gpu=on_gpu and mesh is None,
        mesh=cut,
    )
    new = _new_tokens(spec)
    if spec.classifier_config is not None and weights != resumed:
        grow(model, load_config(spec).get_text_config().vocab_size, new, cut)
    freeze_unreached(model)
    put_kernels(model, spec, on_gpu=on_gpu)
    if spec.lora_config is None:
        if cut is None:
            _align_trained(model)
        return cast("PreTrainedModel", model.train())

    adapter = resumed
    if adapter is None and spec.initial_adapter_model_ckpt_path is not None:
        adapter = fetch_model(spec.initial_adapter_model_ckpt_path, "spec.initial_adapter_model_ckpt_path")
    torch.manual_seed(spec.seed)
    copied = spec.lora_config.modules_to_save or []
    lora = _with_new_tokens(spec.lora_config, model, new)
    with whole_shapes(model, copied) if cut is not None else nullcontext():
        adapted = with_adapters(model, lora)
    if adapter is not None:
        # Modules that are trained in full are parts, and what is read is whole.
        with reading(adapter, "the adapter"), implicit_replication() if cut is not None else nullcontext():
            load_adapter(adapted, adapter)
    _describe_base(adapted, spec)
    if cut is None:
        _align_trained(adapted)
    return adapted.train()


def _with_new_tokens(lora: LoraConfig, model: PreTrainedModel, new: Sequence[NewToken]) -> LoraConfig:
    """The adapters, with which the rows of new tokens are trained: others' stay as they are."""
    if not new:
        return lora
    tokens = [each.token for each in new]
    return lora.model_copy(update={"trainable_token_indices": dict.fromkeys(embedding_names(model), tokens)})


@torch.no_grad()
def _align_trained(model: torch.nn.Module) -> None:
    """Moves trained weights to where PyTorch would have put them itself.

    The last bit of a product of matrices depends on where in memory they begin, and weights that were mapped
    from a file begin where that file has them: a run that is resumed reads another one. Frozen weights come
    from the same file always, and its pages are shared by the workers of a machine.
    Source: Intel MKL, "Obtaining Numerically Reproducible Results".
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.data_ptr() % _ALIGNMENT:
            parameter.data = parameter.data.clone()


def check_in_parts(spec: FineTuneJobSpec) -> None:
    """Checks that several devices can hold a part of the model each.

    Raises FineTuneError (InvalidSpec) with a problem for each field that needs whole weights.
    """
    if spec.lora_config is not None:
        check_shardable(spec.lora_config)
        if _new_tokens(spec):
            what = (
                "with lora_config, new tokens need whole embeddings, and with fsdp each device holds a part;"
                " set spec.parallelism to ddp, or choose labels that are tokens of the model"
            )
            raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.classifier_config.label_tokens: {what}")


def saved_dtype(spec: FineTuneJobSpec) -> torch.dtype:
    """The precision of a full model's checkpoints: `export_dtype`, by default the base model's.

    Adapters are saved in fp32, as they are trained.

    Raises FineTuneError as `load_config` does.
    """
    if spec.lora_config is not None:
        return torch.float32
    if spec.export_dtype != "auto":
        return _DTYPES[spec.export_dtype]
    config = load_config(spec)
    named = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if isinstance(named, torch.dtype):
        return named
    source, where = base_source(spec)
    path = fetch_model(source, where)
    with reading(path, where):
        return _precision_of_weights(path)


def _precision_of_weights(directory: Path) -> torch.dtype:
    """The precision of the first weight, as transformers takes it where config.json names none."""
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - the file itself cannot be iterated over
                dtype = _SAFETENSORS_DTYPES.get(weights.get_slice(name).get_dtype())
                if dtype is not None:
                    return dtype
    return torch.float32


def base_source(spec: FineTuneJobSpec) -> tuple[str | HubRepository, str]:
    """The source of the base model's weights, and the field of the spec that names it."""
    if spec.initial_base_model_ckpt_path is not None:
        return spec.initial_base_model_ckpt_path, "spec.initial_base_model_ckpt_path"
    return spec.model_id, "spec.model_id"


def read_weights(
    path: Path,
    where: str,
    model_class: type[AutoModelForCausalLM],
    *,
    dtype: torch.dtype,
    attention: str | None,
    quantization: BitsAndBytesConfig | None,
    on_gpu: bool,
    mesh: DeviceMesh | None,
) -> PreTrainedModel:
    """Loads a model, and fails when weights are missing, which transformers itself fills at random.

    It is on the CPU, or where it is quantized with `on_gpu`, on this worker's GPU.
    """
    quantized: dict[str, object] = {}
    if quantization is not None:
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        quantized = {"quantization_config": quantization, "device_map": {"": device}}
    with reading(path, where), without_leftovers(path) as directory:
        check_shards(path, where, str(path))
        reader = model_class
        if mesh is not None:
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
            reader = cast("type[AutoModelForCausalLM]", read_in_parts(model_class, config, mesh))
        loaded = reader.from_pretrained(
            directory,
            distributed_config=DistributedConfig() if mesh is not None else None,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **quantized,
        )
    # With output_loading_info it gives a pair.
    model, loading = cast("tuple[PreTrainedModel, LoadingInfo]", loaded)
    absent = sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])})
    if absent:
        shown = ", ".join(absent[:SHOWN_WEIGHTS]) + (", ..." if len(absent) > SHOWN_WEIGHTS else "")
        what = f"has no weights for {shown} in the sizes that its config.json says; give a complete model"
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, f"{where}: {path} {what}")
    if quantization is not None:
        keep_layout(model)
    return plain(model) if mesh is not None else model


def _describe_base(model: peft.PeftModel, spec: FineTuneJobSpec) -> None:
    config = cast("peft.LoraConfig", model.peft_config["default"])
    source, _ = base_source(spec)
    config.base_model_name_or_path, config.revision = source_name(source), source_revision(source)
    # PEFT expands all-linear into a set; its order, and with it the file, would differ from run to run.
    if isinstance(config.target_modules, set | list):
        config.target_modules = sorted(config.target_modules)


def _count(model: torch.nn.Module, *, trainable: bool = False) -> int:
    return sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trainable
    )
