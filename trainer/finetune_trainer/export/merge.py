"""Merges a LoRA checkpoint into its base model. The result runs without peft."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import cast

import peft
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.checkpoint.card import merged_card, write_card
from finetune_trainer.checkpoint.inference import generation_config
from finetune_trainer.model.adapters import AdapterConfig, read_adapter_config, with_saved_adapter
from finetune_trainer.model.contents import (
    ADAPTER_CONFIG,
    check_ends,
    check_is_model,
    check_not_quantized,
    check_numbers,
    check_quantization,
    check_shards,
    without_leftovers,
)
from finetune_trainer.model.files import check_files, reading
from finetune_trainer.model.quantization import round_weights, saved_quantization
from finetune_trainer.model.source import fetch_model
from finetune_trainer.model.vocabulary import grow
from finetune_trainer.storage.open import Storage, open_storage
from finetune_trainer.storage.run_directory import CARD

TOLERANCE = 1e-3
"""The largest distance of logits that is accepted (see `_distance`). A right merge in fp32 stays below 1e-5,
also with 30 layers; a wrong one is above 1e-2."""

PROBE_TOKENS = 64

_FOUR_BITS = (
    "the adapter was trained on a base in 4 bits, and is merged into the values that those stand for: the"
    " model has the validation loss that training showed, with what 4 bits cost in it; on the full base, on"
    " which peft loads the adapter too, the loss is another one, and may be lower"
)


def merge(checkpoint: str, out: Path) -> list[str]:
    """Merges the adapter in `checkpoint` into its base model, writes that to `out`, and returns remarks.

    `checkpoint` is an adapter's directory, local or in object storage. `out` must not exist or be empty;
    it gets a plain transformers model in the base's precision, with a card. Two checks are made: in fp32 the
    merged model must give the same logits as the adapter, and the written files, loaded again, the same as
    the merged model. An adapter of a base in 4 bits is merged into the values that those bits stood for,
    since it was trained on them. On any failure nothing is left at `out`. Needs memory for the model in fp32.

    Raises FineTuneError: InvalidSpec when `out` is not empty or the checkpoint is not an adapter that
    can be merged, ModelNotFound when there is no checkpoint or no base model, StorageError, Unknown when
    the logits differ.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"{out}: is there already and not empty; give a directory that is not"
        )
    source = open_storage(checkpoint)
    config = _adapter_config(source)
    name, where = config.base, f"{source.path}/{ADAPTER_CONFIG}: base_model_name_or_path"
    base = fetch_model(name, where)
    check_is_model(base, where, name)
    check_shards(base, where, name)
    target = open_storage(str(out.absolute().parent))
    with warnings.catch_warnings(), source.local_copy() as adapter, target.staging(out.name) as staging:
        # peft advises to untie embeddings, which is done here.
        warnings.simplefilter("ignore")
        check_files(adapter, checkpoint)
        logits = _write_merged(base, where, adapter, staging, checkpoint)
        card = adapter / CARD
        text = card.read_text(encoding="utf-8") if card.is_file() else None
        write_card(staging, merged_card(text, name))
        written = _load(staging, "the merged model")
        _check(_probe(written), logits, f"{checkpoint}: the written model's logits", "the merged model's")
        target.publish(staging, out.name, last="config.json")
        return [] if saved_quantization(adapter) is None else [_FOUR_BITS]


def _adapter_config(checkpoint: Storage) -> AdapterConfig:
    text = checkpoint.read_text("adapter_config.json")
    if text is None:
        if checkpoint.read_text("config.json") is not None:
            raise FineTuneError(
                FailureClass.INVALID_SPEC,
                f"{checkpoint.path}: is a full model, not an adapter; it needs no merging",
            )
        hint = "give the directory of a LoRA checkpoint, such as epoch-2 in a run directory"
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND, f"{checkpoint.path}: holds no adapter_config.json; {hint}"
        )
    config = read_adapter_config(text, f"{checkpoint.path}/{ADAPTER_CONFIG}")
    if config.peft_type != "LORA":
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"{checkpoint.path}/adapter_config.json: peft_type is {config.peft_type};"
            " only LORA can be merged",
        )
    return config


def _write_merged(base: Path, where: str, adapter: Path, directory: Path, checkpoint: str) -> torch.Tensor:
    """Writes the merged model, and returns its logits (see `_probe`)."""
    model = _load(base, where)
    dtype, tied = model.dtype, bool(model.config.get_text_config().tie_word_embeddings)
    quantization = saved_quantization(adapter)
    _convert(model, torch.float32)
    if quantization is not None:
        round_weights(model, quantization)
    own = (adapter / "tokenizer_config.json").is_file()
    with reading(adapter if own else base, checkpoint if own else where):
        tokenizer = AutoTokenizer.from_pretrained(adapter if own else base, trust_remote_code=False)
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        # Rows for tokens that the adapter was trained with; it brings them itself.
        grow(model, len(tokenizer), [], mesh=None)
    adapted = with_saved_adapter(model, adapter, checkpoint)
    expected = _probe(adapted)
    _unshare(adapted)
    try:
        merged = cast("PreTrainedModel", adapted.merge_and_unload())
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"{checkpoint}: peft cannot merge this adapter: {error}"
        ) from error
    _check(_probe(merged), expected, f"{checkpoint}: the merged model's logits", "the adapter's")
    if tied:
        _tie_if_equal(merged)
    _convert(merged, dtype)
    merged.generation_config = _generation_config(merged, adapter, checkpoint, tokenizer)
    merged.save_pretrained(directory, max_shard_size="5GB")
    tokenizer.save_pretrained(directory)
    return _probe(merged)


def _generation_config(
    model: PreTrainedModel, adapter: Path, checkpoint: str, tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """The adapter's generation config if it has one, else the base's, without what cannot be used plainly."""
    base = model.generation_config
    if (adapter / GENERATION_CONFIG_NAME).is_file():
        with reading(adapter, checkpoint):
            check_numbers(adapter, checkpoint, "the adapter")
            base = GenerationConfig.from_pretrained(adapter)
            check_ends(base, checkpoint, "the adapter")
    generation, _ = generation_config(base, tokenizer)
    return generation


def _load(directory: Path, where: str) -> PreTrainedModel:
    """Loads a model in the precision that it was saved in."""
    with reading(directory, where), without_leftovers(directory) as model:
        check_quantization(directory, where, str(directory))
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        check_not_quantized(config, where, str(directory))
        return cast(
            "PreTrainedModel",
            AutoModelForCausalLM.from_pretrained(model, dtype="auto", trust_remote_code=False),
        )


def _convert(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Converts the parameters, but not the buffers: those of rotary embeddings stay in fp32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _unshare(model: torch.nn.Module) -> None:
    """Gives every module parameters of its own.

    peft adds each module's update to its weight in place. A weight that two modules share (tied embeddings,
    replicated layers) would get both updates, and the merged model would be wrong.
    """
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                setattr(module, name, torch.nn.Parameter(parameter.detach().clone(), requires_grad=False))
            seen.add(id(parameter))


def _tie_if_equal(model: PreTrainedModel) -> None:
    """Ties the embeddings again if they are still equal, and notes in the configuration whether they are."""
    embedding = cast("torch.nn.Embedding", model.get_input_embeddings())
    head = cast("torch.nn.Linear", model.get_output_embeddings())  # type: ignore[no-untyped-call]
    model.config.get_text_config().tie_word_embeddings = torch.equal(embedding.weight, head.weight)
    model.tie_weights()


@torch.no_grad()
def _probe(model: PreTrainedModel | peft.PeftModel) -> torch.Tensor:
    """The logits of random tokens, always the same ones, in fp32. Shape (PROBE_TOKENS, vocabulary)."""
    embedding = cast("torch.nn.Embedding", model.get_input_embeddings())
    tokens = torch.randint(
        len(embedding.weight), (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0)
    )
    logits: torch.Tensor = model.eval()(input_ids=tokens, use_cache=False).logits
    return logits[0].float()


def _check(logits: torch.Tensor, expected: torch.Tensor, what: str, whose: str) -> None:
    distance = _distance(logits, expected)
    if not distance <= TOLERANCE:
        hint = "nothing is written; use the adapter with peft"
        raise FineTuneError(FailureClass.UNKNOWN, f"{what} are {distance:.1%} away from {whose}; {hint}")


def _distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """How far the logits are from the expected ones, relative to how those vary over the vocabulary.

    0 means equal, about 1 unrelated. NaN when one of the logits is.
    """
    spread = expected - expected.mean(dim=-1, keepdim=True)
    return float((logits - expected).norm() / spread.norm())
