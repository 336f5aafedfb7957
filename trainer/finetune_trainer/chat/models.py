"""The model of a checkpoint and its base, which answer as they were trained to: same text, same ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import peft
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
)
from transformers.utils import GENERATION_CONFIG_NAME

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.fields import HubRepository
from finetune_trainer.chat.checkpoint import FoundCheckpoint
from finetune_trainer.checkpoint.inference import answering, end_tokens
from finetune_trainer.data.chat import ChatFormat
from finetune_trainer.data.chat_template import TemplateRendering
from finetune_trainer.data.rendering import RenderingError
from finetune_trainer.data.rows import Message
from finetune_trainer.model.adapters import read_adapter_config, with_saved_adapter
from finetune_trainer.model.contents import ADAPTER_CONFIG, check_is_model, check_not_quantized
from finetune_trainer.model.files import reading
from finetune_trainer.model.load import base_source, read_weights
from finetune_trainer.model.quantization import saved_quantization
from finetune_trainer.model.source import fetch_model, source_name
from finetune_trainer.model.vocabulary import grow
from finetune_trainer.tasks.objective import Model, base_of

Which = Literal["base", "tuned"]
BOTH: tuple[Which, ...] = ("base", "tuned")
MAX_TOKENS = 256
"""Tokens of an answer, unless the checkpoint or its user says another number."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen."""

    max_tokens: int | None = None
    """The most tokens of an answer; None for what the checkpoint says, or else MAX_TOKENS."""
    temperature: float = 0.0
    """0 takes the likeliest token always."""


GREEDY = Sampling()


@dataclass(frozen=True)
class Answer:
    """What a model says."""

    text: str
    """Without the tokens that end it."""
    tokens: int
    """All that were made, also those that end it."""
    stopped: Literal["end", "length", "interrupt"]
    """Whether it ended by itself, had as many tokens as were allowed, or Ctrl-C was pressed."""


@dataclass(frozen=True)
class Models:
    """The models of a checkpoint. With an adapter both are one, whose adapter is left out for the base."""

    by_name: dict[Which, Model]
    sources: dict[Which, str]
    """Where each is from, for people."""
    chat: ChatFormat
    generation: GenerationConfig
    """The checkpoint's, which says where answers end."""

    @torch.inference_mode()
    def answer(
        self,
        which: Which,
        messages: Sequence[Message],
        sampling: Sampling = GREEDY,
        say: Callable[[str], None] = lambda _text: None,
    ) -> Answer:
        """What a model answers to a conversation, which ends with a question.

        `say` gets the text bit by bit while it is made. Ctrl-C ends the answer. Raises FineTuneError
        (InvalidData) when the template cannot write the conversation, or the model does not take as much.
        """
        model, tokenizer = self.by_name[which], self.chat.tokenizer
        try:
            prompt = torch.tensor([self.chat.prompt(messages)], device=model.device)
        except RenderingError as error:
            raise FineTuneError(FailureClass.INVALID_DATA, str(error)) from error
        settings = self._settings(sampling, prompt.shape[1], base_of(model))
        # A classifier's labels may be special tokens.
        said = _Said(tokenizer, say, skip_special_tokens=not self._answers_with_labels)
        left_out = which == "base" and isinstance(model, peft.PeftModel)
        stopped: Literal["end", "length", "interrupt"] = "length"
        try:
            with cast("peft.PeftModel", model).disable_adapter() if left_out else nullcontext():
                model.generate(  # type: ignore[operator]
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    generation_config=settings,
                    streamer=said,
                )
        except KeyboardInterrupt:
            said.end()  # type: ignore[no-untyped-call]
            stopped = "interrupt"
        else:
            if self._answers_with_labels or said.ids[-1] in end_tokens(settings):
                stopped = "end"
        text = tokenizer.decode(said.ids, skip_special_tokens=not self._answers_with_labels)
        return Answer(str(text), len(said.ids), stopped)

    @property
    def _answers_with_labels(self) -> bool:
        """Whether an answer is one token, a label."""
        return self.generation.sequence_bias is not None and self.generation.max_new_tokens == 1

    def _settings(self, sampling: Sampling, asked: int, model: PreTrainedModel) -> GenerationConfig:
        """The generation config for a prompt of so many tokens."""
        asked_for = 1 if self._answers_with_labels else sampling.max_tokens
        most = asked_for or self.generation.max_new_tokens or MAX_TOKENS
        taken = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if taken is not None and asked >= taken:
            what = f"the conversation has {asked} tokens, and the model takes {taken}; begin a new one"
            raise FineTuneError(FailureClass.INVALID_DATA, what)
        most = most if taken is None else min(most, taken - asked)
        return answering(self.generation, most, sampling.temperature)


class _Said(TextStreamer):
    """Hands out text as soon as it is whole words, and keeps all tokens."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None], *, skip_special_tokens: bool
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=skip_special_tokens)
        self._say = say
        self.ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt at first, and then a token at a time."""
        if not self.next_tokens_are_prompt:
            self.ids += value.flatten().tolist()
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        """Is told text that does not change any more."""
        if text:
            self._say(text)


def load_models(found: FoundCheckpoint, names: Sequence[Which] = BOTH) -> Models:
    """Loads a checkpoint, its base or both, on the first GPU or on the CPU, in bf16 or fp32.

    A base in 4 bits is held so again. Raises FineTuneError: ModelNotFound when the base is not there or a
    file is damaged, InvalidSpec when the adapter is of another model, and what storage raises.
    """
    directory = fetch_model(found.path, found.path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_adapter = (directory / ADAPTER_CONFIG).is_file()
    models: dict[Which, Model]
    if is_adapter:
        text = (directory / ADAPTER_CONFIG).read_text(encoding="utf-8")
        where = f"{found.path}/{ADAPTER_CONFIG}"
        base, where = read_adapter_config(text, where).base, f"{where}: base_model_name_or_path"
        base_directory = fetch_model(base, where)
        tokenizer = _tokenizer(directory, found.path, base_directory)
        model = _read(base_directory, base, where, tokenizer, device, directory)
        with_adapter = with_saved_adapter(model, directory, found.path)
        models = dict.fromkeys(names, with_adapter)
        sources: dict[Which, str] = {"base": base, "tuned": found.path}
    else:
        tokenizer = _tokenizer(directory, found.path, directory)
        models, sources = {}, {"tuned": found.path}
        if "base" in names:
            source, where = _base_of_run(found)
            sources = {"base": source_name(source), **sources}
            base_directory = fetch_model(source, where)
            models["base"] = _read(base_directory, sources["base"], where, tokenizer, device)
        if "tuned" in names:
            models["tuned"] = _read(directory, found.path, found.path, tokenizer, device)
    return Models(
        by_name={name: models[name].eval() for name in names},
        sources={name: sources[name] for name in names},
        chat=_chat_format(tokenizer, found.path),
        generation=_generation_config(directory, found.path, next(iter(models.values()))),
    )


def _base_of_run(found: FoundCheckpoint) -> tuple[str | HubRepository, str]:
    spec = found.spec()
    if spec is None:
        what = "is a full model, and no job.yaml beside its directory says what it was trained from"
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND, f"{found.path}: {what}; ask the tuned model alone with --only tuned"
        )
    return base_source(spec)


def _tokenizer(checkpoint: Path, where: str, base: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, whose chat template is the one that it was trained with."""
    own = (checkpoint / "tokenizer_config.json").is_file()
    with reading(checkpoint if own else base, where):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint if own else base, trust_remote_code=False)
    return cast("PreTrainedTokenizerBase", tokenizer)


def _chat_format(tokenizer: PreTrainedTokenizerBase, where: str) -> ChatFormat:
    try:
        rendering = TemplateRendering(tokenizer, where)
    except ValueError as error:
        what = "its tokenizer has no chat template, so it is not known how to ask it"
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, f"{where}: {what}") from error
    return ChatFormat(tokenizer, rendering, "instruction_tuning", f"the chat template of {where}")


def _generation_config(checkpoint: Path, where: str, model: Model) -> GenerationConfig:
    if not (checkpoint / GENERATION_CONFIG_NAME).is_file():
        return base_of(model).generation_config
    with reading(checkpoint, where):
        return GenerationConfig.from_pretrained(checkpoint)


def _read(
    directory: Path,
    name: str,
    where: str,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    adapter: Path | None = None,
) -> PreTrainedModel:
    """Reads a model, with rows for all tokens of the tokenizer; in 4 bits where `adapter` was trained so."""
    check_is_model(directory, where, name)
    with reading(directory, where):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    check_not_quantized(config, where, name)
    on_gpu = device.type == "cuda"
    quantization = None if adapter is None else saved_quantization(adapter)
    dtype = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
    if quantization is not None:
        dtype = quantization.bnb_4bit_compute_dtype
    model = read_weights(
        directory,
        where,
        AutoModelForCausalLM,
        dtype=dtype,
        attention=None,
        quantization=quantization,
        on_gpu=on_gpu,
        mesh=None,
    )
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        # Labels are tokens that the base does not have; an adapter brings their rows.
        grow(model, len(tokenizer), [], mesh=None)
    return model if quantization is not None else model.to(device)  # type: ignore[arg-type]
