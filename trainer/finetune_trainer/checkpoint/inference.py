"""What a checkpoint needs besides weights to generate text as it was trained to.

It follows from the training: the chat template writes what was trained on, and generation stops where answers
ended. So plain `generate`, `pipeline` and servers need no arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import GenerationConfig, PreTrainedTokenizerBase

from finetune_trainer.data.answer_ends import stops
from finetune_trainer.data.chat import ChatFormat
from finetune_trainer.model.files import one_line
from finetune_trainer.model.load import pad_token_id

ANSWER_BIAS = 100.0
"""Added to the scores of a classifier's labels: more than scores differ by, and little enough that single
precision still tells them apart."""

_SAMPLING: dict[str, tuple[float | None, ...]] = {
    "temperature": (None, 1.0),
    "top_p": (None, 1.0),
    "top_k": (None, 50),
    "min_p": (None,),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
}
"""The settings that only sampling uses, each with the values that mean it is not set."""


@dataclass(frozen=True)
class Inference:
    """What is written beside the weights of a checkpoint."""

    tokenizer: PreTrainedTokenizerBase
    """With the chat template that was trained on."""
    generation: GenerationConfig
    _files: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    def save(self, directory: Path) -> None:
        """Writes tokenizer, chat template and generation config.

        They never change, and a large vocabulary takes a second to become text, so that is done once.
        """
        if not self._files:
            with TemporaryDirectory(dir=directory) as written:
                self.tokenizer.save_pretrained(written)
                self.generation.save_pretrained(written)
                self._files.update(contents(Path(written)))
        for name, content in self._files.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def contents(directory: Path) -> dict[str, bytes]:
    """The files in a directory, at any depth."""
    files = (file for file in directory.rglob("*") if file.is_file())
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in files}


def inference(
    tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, base: GenerationConfig
) -> tuple[Inference, list[str]]:
    """What a model trained on this chat format needs, and remarks about what changes of its base's.

    `base` is the base model's generation config. That of a checkpoint of the same run changes no more.
    """
    trained = copy.deepcopy(tokenizer)
    if chat.chat_template is not None:
        trained.chat_template = chat.chat_template
    generation, remarks = generation_config(base, tokenizer, chat.ends)
    if chat.answers:
        _answer_with(generation, chat.answers)
    return Inference(trained, generation), remarks


def _answer_with(generation: GenerationConfig, tokens: Sequence[int]) -> None:
    """Has generation answer with the likeliest of these tokens, whatever else is likely, and end.

    With `output_scores` it gives scores whose softmax are the probabilities of the tokens.
    """
    generation.max_new_tokens = 1
    _without_chance(generation)
    generation.sequence_bias = [[[token], ANSWER_BIAS] for token in tokens]


def greedy(generation: GenerationConfig, most: int) -> GenerationConfig:
    """The same, where each token is the likeliest, and an answer has at most so many."""
    return answering(generation, min(most, generation.max_new_tokens or most))


def answering(generation: GenerationConfig, most: int, temperature: float = 0.0) -> GenerationConfig:
    """The same for answers of at most so many tokens, each drawn at `temperature`, at 0 the likeliest."""
    settings = copy.deepcopy(generation)
    settings.max_new_tokens = most
    settings.num_beams = 1  # several cannot be written while they are made
    if temperature > 0:
        settings.do_sample, settings.temperature = True, temperature
    else:
        _without_chance(settings)
    return settings


def _without_chance(generation: GenerationConfig) -> None:
    generation.do_sample = False
    for name, (unset, *_) in _SAMPLING.items():
        setattr(generation, name, unset)


def generation_config(
    base: GenerationConfig, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int] = ()
) -> tuple[GenerationConfig, list[str]]:
    """The base's generation config, which also stops at `ends`, without what cannot be saved or used plainly.

    transformers saves no config that contradicts itself, and stop strings need a tokenizer that plain
    `generate` and `pipeline` are not given: those of one token become its id. Also returns remarks about
    what was changed.
    """
    generation = copy.deepcopy(base)
    remarks = []
    sampling = [name for name, unset in _SAMPLING.items() if getattr(generation, name, None) not in unset]
    if sampling and generation.do_sample is not True:
        generation.do_sample = True
        remarks.append(f"has {', '.join(sampling)} without do_sample; checkpoints get do_sample: true")
    strings = generation.stop_strings or []
    tokens, unending = stops(tokenizer, [strings] if isinstance(strings, str) else strings)
    generation.stop_strings = None
    if unending:
        shown = ", ".join(repr(text) for text in unending)
        remarks.append(f"stops at {shown}, which no single token stands for; checkpoints do not")
    stop_at = dict.fromkeys([*end_tokens(generation), *ends, *tokens])
    if stop_at:
        generation.eos_token_id = list(stop_at) if len(stop_at) > 1 else next(iter(stop_at))
    if generation.pad_token_id is None:
        generation.pad_token_id = pad_token_id(tokenizer)
    try:
        generation.validate(strict=True)
    except ValueError as error:
        remarks.append(f"contradicts itself, so checkpoints keep only its special tokens: {one_line(error)}")
        generation = GenerationConfig(  # type: ignore[no-untyped-call]
            bos_token_id=generation.bos_token_id,
            eos_token_id=generation.eos_token_id,
            pad_token_id=generation.pad_token_id,
        )
    return generation, remarks


def end_tokens(generation: GenerationConfig) -> list[int]:
    """The tokens at which generation stops."""
    tokens = generation.eos_token_id
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)
