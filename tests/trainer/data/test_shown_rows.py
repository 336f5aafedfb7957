from __future__ import annotations

import numpy as np
import pytest
from tests.trainer.tokenizers_for_tests import byte_level, sentencepiece, text_of

from finetune_trainer.data.shown_rows import shown_tokens, token_texts

TEXTS = [
    "The quick brown fox, and 17 more.",
    "one\n\n  two\tthree \n",
    "<|im_start|>user\nPing?<|im_end|>\n<|im_start|>assistant\nPong.<|im_end|>\n",
    "",
    "a",
]
MANY_BYTES = ["👋🏽 你好,世界 é e\u0301", "\ufffd and \ufffd\ufffd", "ends with 👋"]


@pytest.mark.parametrize("text", [*TEXTS, *MANY_BYTES])
def test_the_texts_of_all_tokens_together_are_the_text(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    texts = token_texts(tokenizer, ids)

    assert len(texts) == len(ids)
    assert "".join(texts) == text


@pytest.mark.parametrize("text", TEXTS[:1] + TEXTS[3:])
def test_words_keep_the_blanks_before_them_where_these_are_a_part_of_tokens(text: str) -> None:
    tokenizer = sentencepiece(["<|im_end|>"])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    assert "".join(token_texts(tokenizer, ids)) == text_of(tokenizer, ids)


def test_a_character_of_several_tokens_is_with_the_last_of_them() -> None:
    tokenizer = byte_level()
    ids = tokenizer("é", add_special_tokens=False)["input_ids"]

    assert len(ids) == 2
    assert token_texts(tokenizer, ids) == ["", "é"]


def test_each_token_says_whether_it_is_trained_on_and_whether_it_is_special() -> None:
    tokenizer = byte_level()
    ids = tokenizer("a<|im_end|>", add_special_tokens=False)["input_ids"]

    shown = shown_tokens(tokenizer, np.array(ids, dtype=np.int32), np.array([False, True]))

    assert [(each.token, each.id, each.trained, each.special) for each in shown] == [
        ("a", ids[0], False, False),
        ("<|im_end|>", ids[1], True, True),
    ]
