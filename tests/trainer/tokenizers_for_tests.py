"""Tokenizers that are trained in a second, and chat templates of well-known model families."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from finetune_trainer.data.chat import Encoded

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] +"
    " '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TAGGED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] =="
    " 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{%"
    " else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\n' }}{% endif %}"
)
"""Writes the same text as CHATML, with the assistant's turns between generation tags."""

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def byte_level(
    special_tokens: Sequence[str] = CHATML_TOKENS, *, template: str | None = CHATML, **names: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2, Llama 3 and Qwen have.

    `names` are bos_token, eos_token and pad_token. A tokenizer with a bos_token puts it before every text
    that it encodes with special tokens.
    """
    tokenizer = Tokenizer.from_str(_byte_level_bpe(tuple(special_tokens)))
    if "bos_token" in names:
        bos = names["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return _fast(tokenizer, template, names)


def sentencepiece(
    special_tokens: Sequence[str], *, template: str | None = None, **names: str
) -> PreTrainedTokenizerFast:
    """A BPE tokenizer whose words begin with a blank, as Llama 2 and Mistral have."""
    return _fast(Tokenizer.from_str(_sentencepiece_bpe(tuple(special_tokens))), template, names)


def published_template(name: str) -> str:
    """The chat template of a model family, from the package trl."""
    trl = find_spec("trl")
    assert trl is not None
    assert trl.origin is not None
    return (Path(trl.origin).parent / "chat_templates" / f"{name}.jinja").read_text()


def trained_texts(tokenizer: PreTrainedTokenizerFast, encoded: Encoded) -> list[str]:
    """The text of each unbroken run of tokens that count in the loss."""
    runs: list[list[int]] = []
    previous = False
    for token, trained in zip(encoded.input_ids, encoded.trained, strict=True):
        if trained and not previous:
            runs.append([])
        if trained:
            runs[-1].append(token)
        previous = trained
    return [text_of(tokenizer, run) for run in runs]


def text_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """The text of tokens, special tokens included."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


@cache
def _byte_level_bpe(special_tokens: tuple[str, ...]) -> str:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return _trained(bpe, special_tokens, pre_tokenizers.ByteLevel.alphabet())


@cache
def _sentencepiece_bpe(special_tokens: tuple[str, ...]) -> str:
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    return _trained(bpe, ("<unk>", *special_tokens), [])


def _trained(bpe: Tokenizer, special_tokens: tuple[str, ...], alphabet: list[str]) -> str:
    """Trains the tokenizer on a part of Python's documentation, and returns it as JSON."""
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(special_tokens), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(list(topics.values())[:20], trainer)
    return str(bpe.to_str())


def _fast(tokenizer: Tokenizer, template: str | None, names: dict[str, str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)  # type: ignore[no-untyped-call]
