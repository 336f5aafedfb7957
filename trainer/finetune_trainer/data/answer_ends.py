"""Which tokens end an answer. Whoever generates text stops at tokens; few stop at texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

_BEFORE = "a"
"""An answer: sentencepiece puts a blank before the first word of a text, and none after an answer."""


def token_for(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The one token that stands for a text after an answer; None when it takes several."""
    tokens = tokens_after_an_answer(tokenizer, text)
    return tokens[0] if len(tokens) == 1 else None


def token_that_ends(tokenizer: PreTrainedTokenizerBase, end_of_turn: str) -> int | None:
    """The token at which generation has to stop for an answer to end where it did in training.

    It is the one token of `end_of_turn`, or the first special one of several (as in ` <|im_end|>`). None
    when there is neither, also for an empty text.
    """
    tokens = tokens_after_an_answer(tokenizer, end_of_turn)
    if len(tokens) == 1:
        return tokens[0]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return next((token for token in tokens if token in special), None)


def tokens_after_an_answer(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text that follows an answer."""
    before, whole = (
        cast("list[int]", tokenizer(each, add_special_tokens=False, verbose=False)["input_ids"])
        for each in (_BEFORE, _BEFORE + text)
    )
    # A token that holds both the answer's end and a part of the text stands for more than the text.
    return whole[len(before) :] if whole[: len(before)] == before else whole


def stops(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[str]) -> tuple[list[int], list[str]]:
    """The tokens that stand for stopping sequences, and the sequences that no single token stands for."""
    tokens = [(token_for(tokenizer, sequence), sequence) for sequence in sequences]
    return (
        [token for token, _ in tokens if token is not None],
        [sequence for token, sequence in tokens if token is None],
    )
