"""The tokens of a classifier's labels.

A label that is a token of the tokenizer already stays what it is; another one becomes a token of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from finetune_api.failure import FailureClass, FineTuneError

_FIELD = "spec.classifier_config.label_tokens"


@dataclass(frozen=True)
class NewToken:
    """A token that the model does not know yet."""

    token: int
    written: tuple[int, ...]
    """The tokens that it was written with before."""


def add_labels(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[NewToken]:
    """Makes every label a token, and returns those that are new, in the order of the labels.

    They are no special tokens, which decoding may leave out. Raises FineTuneError (InvalidSpec) with a
    problem for each label that is not one token then.
    """
    known = len(tokenizer)
    vocabulary = tokenizer.get_vocab()
    missing = {
        label: written
        for label in labels
        if (written := _tokens(tokenizer, label)) != [vocabulary.get(label)]
    }
    tokenizer.add_tokens(
        [AddedToken(label, single_word=True, normalized=False, special=False) for label in missing]
    )
    problems = [
        f"{_FIELD}: {label!r} is {len(tokens)} tokens of this tokenizer, and cannot be made one; choose"
        " another text"
        for label in labels
        if len(tokens := _tokens(tokenizer, label)) != 1
    ]
    if problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    new = (
        (token, missing[label])
        for label, token in label_tokens(tokenizer, labels).items()
        if label in missing
    )
    return [NewToken(token, tuple(written)) for token, written in new if token >= known]


def label_tokens(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> dict[str, int]:
    """The token of each label, in a tokenizer that has them."""
    return {label: _tokens(tokenizer, label)[0] for label in labels}


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
