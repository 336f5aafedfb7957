"""Rows as people look at them: the text of each token, and whether it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from finetune_api.status import StatusModel


class ShownToken(StatusModel):
    """A token of a row."""

    token: str
    """Its text. Of a character that several tokens stand for, all is with the last one."""
    id: int
    trained: bool
    """Whether it counts in the loss."""
    special: bool
    """Whether it is a token that no text stands for, such as the end of a turn."""


class ShownRow(StatusModel):
    """A conversation as it is trained on: after truncation."""

    place: str
    """Where it is: `train.jsonl:17`, or `train.csv: row 17`."""
    answer: Literal["chosen", "rejected"] | None
    """Of a pair, which of its answers."""
    label: str | None
    """Of a classifier's row, its label."""
    length: int
    """Its tokens before truncation."""
    tokens: tuple[ShownToken, ...]


def shown_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: NDArray[np.int32], trained: NDArray[np.bool_]
) -> tuple[ShownToken, ...]:
    """The tokens of a row with their texts; both arrays are of shape (tokens,)."""
    special = set(tokenizer.all_special_ids)
    special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    numbers = [int(token) for token in ids]
    return tuple(
        ShownToken(token=text, id=token, trained=bool(counts), special=token in special)
        for text, token, counts in zip(token_texts(tokenizer, numbers), numbers, trained, strict=True)
    )


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of those before it; together they are the text of all."""

    def text(begin: int, end: int) -> str:
        tokens = list(ids[begin:end])
        decoded = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast("str", decoded)

    texts = []
    before, whole = 0, 0
    for end in range(1, len(ids) + 1):
        # Two tokens are read at once, since a tokenizer may leave out a blank at the beginning of a text.
        known, now = text(before, whole), text(before, end)
        if now.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(now[len(known) :])
        before, whole = whole, end
    return texts
