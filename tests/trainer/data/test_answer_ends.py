from __future__ import annotations

import pytest
from tests.trainer.tokenizers_for_tests import byte_level, sentencepiece

from finetune_trainer.data.answer_ends import stops, token_for, token_that_ends, tokens_after_an_answer

CHATML = byte_level()
LLAMA_2 = sentencepiece(["<s>", "</s>"], eos_token="</s>")


def test_the_end_of_a_turn_is_its_one_token() -> None:
    assert token_that_ends(CHATML, "<|im_end|>") == CHATML.convert_tokens_to_ids("<|im_end|>")
    assert token_that_ends(LLAMA_2, "</s>") == LLAMA_2.convert_tokens_to_ids("</s>")


@pytest.mark.parametrize("text", [" <|im_end|>", "\n<|im_end|>\n<|endoftext|>", "END <|im_end|>"])
def test_of_several_tokens_the_first_special_one_ends_a_turn(text: str) -> None:
    assert token_that_ends(CHATML, text) == CHATML.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("text", ["", "### End of answer"])
def test_nothing_and_plain_words_end_no_turn(text: str) -> None:
    assert token_that_ends(CHATML, text) is None


def test_a_text_is_tokenized_as_it_is_after_an_answer() -> None:
    # Alone it would begin with the blank that sentencepiece puts before words.
    assert LLAMA_2.convert_ids_to_tokens(tokens_after_an_answer(LLAMA_2, "#")) == ["#"]
    assert token_for(LLAMA_2, "#") == LLAMA_2.convert_tokens_to_ids("#")


def test_a_stopping_sequence_is_one_token_or_none() -> None:
    # A special token among others would stop at more than the sequence.
    tokens, unending = stops(CHATML, ["<|im_start|>", "User: <|im_end|>", "\n"])
    assert tokens == CHATML.convert_tokens_to_ids(["<|im_start|>", "Ċ"])
    assert unending == ["User: <|im_end|>"]
