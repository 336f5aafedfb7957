from __future__ import annotations

import re
import time
from collections.abc import Sequence

import pytest
from tests.trainer.chat_families import DEEPSEEK_ASSISTANT, DEEPSEEK_END, FAMILIES, WITH_TWIN, WRITTEN
from tests.trainer.data.test_chat import THOUGHT, encoded, marked_by_transformers, refusal, talk
from tests.trainer.tokenizers_for_tests import CHATML, byte_level, trained_texts

from finetune_trainer.data.chat_template import TemplateRendering
from finetune_trainer.data.rows import Message

QUESTION_FIRST = {
    "one-turn": talk("ua", "Ping?", "Pong."),
    "turns": talk("uauaua", "Ping?", "Pong.", "And you?", "Me too.", "Bye.", "Bye!"),
    "blanks": talk("uaua", " Ping?\n", "  Pong.", "a", "a"),
}
SYSTEM = {"system": talk("suaua", "Be brief.", "Ping?", "Pong.", "And you?", "Me too.")}
ANSWER_FIRST = {
    "answer-first": talk("aua", "Hello! How can I help?", "Tell me a joke.", "No."),
    "answer-after-system": talk("saua", "Be brief.", "Hello!", "Ping?", "Pong."),
}
TWO_ANSWERS = {"two-answers": talk("uaaua", "Ping?", "Pong.", "Pong again.", "And you?", "Me too.")}
CONVERSATIONS = QUESTION_FIRST | SYSTEM | ANSWER_FIRST | TWO_ANSWERS

ALTERNATING = {"llama2", "mistral", "mistral_v0_3", "cohere", "cohere2", "gemma", "gemma3"}
"""Families whose templates refuse two answers in a row, and one without a question."""
WITHOUT_SYSTEM = {"mistral", "gemma"}


def conversations_of(family: str) -> dict[str, tuple[Message, ...]]:
    """What the family's template can write."""
    system = {} if family in WITHOUT_SYSTEM else SYSTEM
    return QUESTION_FIRST | system | ({} if family in ALTERNATING else ANSWER_FIRST | TWO_ANSWERS)


# Against transformers' own mask

ROLE = {
    "deepseek_r1_distill": DEEPSEEK_ASSISTANT,
    "deepseekv3": DEEPSEEK_ASSISTANT,
    "gptoss": "<|start|>assistant",
}
"""What TRL marks as well, though a prompt has it already."""
OPENED = {
    "nemotron_3_nano": "<think>",
    "nemotron_3_ultra": "<think>",
    "qwen3_5_nothink": "<think>\n\n</think>\n\n",
    "qwen3_5_think": "<think>\n",
    "qwen3_6": "<think>\n",
    "qwen3_8": "<think>\n",
}
"""The same where prompts open a thought."""
LAST_ALONE = {"qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"}
"""Families that write a thought before the last answer alone, and their twins before every answer."""
OTHER_TEXT = {"glm4moe"}
"""Its twin ends turns, which the family's own template does not."""
COMPARED = sorted(WITH_TWIN.keys() - OTHER_TEXT)


@pytest.mark.parametrize("family", COMPARED)
def test_the_mask_is_the_one_that_transformers_has_from_marks(family: str) -> None:
    plain, twin = FAMILIES[family].tokenizer, FAMILIES[family].twin
    chosen = QUESTION_FIRST if family in LAST_ALONE else conversations_of(family)
    for name, messages in chosen.items():
        only_last = slice(-1, None) if family in LAST_ALONE else slice(None)

        ours = trained_texts(plain, encoded(plain, messages))[only_last]
        theirs = trained_texts(twin, marked_by_transformers(twin, messages))[only_last]

        if family in WRITTEN:
            assert encoded(plain, messages) == marked_by_transformers(twin, messages), name
        given = ROLE.get(family) or OPENED.get(family, "")
        assert all(text.startswith(given) for text in theirs), name
        assert "".join(text.strip() for text in ours) == "".join(
            _without_ends(text, family, given) for text in theirs
        ), name


def _without_ends(text: str, family: str, given: str) -> str:
    """TRL's marks without the lines around a turn, the conversation's end, and what prompts have already."""
    text = text.replace(given, "").strip()
    if family in ("phi3", "phi3_5"):
        return text.removesuffix("</s>").strip()
    # In GPT-OSS, answers that are not the last end with another token, which does not count here.
    return text.replace("<|end|>", "") if family == "gptoss" else text


# By hand

R1, THINKING, OFF = "deepseek_r1_distill", "qwen3_5_think", "qwen3_5_nothink"
BY_HAND = {
    "R1-asks-for-a-thought-that-it-does-not-write": (R1, "ua", ["Pong."], [f"Pong.{DEEPSEEK_END}"]),
    "R1-in-turns": (R1, "uaua", ["A.", "B."], [f"A.{DEEPSEEK_END}", f"B.{DEEPSEEK_END}"]),
    "R1-after-system": (R1, "sua", ["Pong."], [f"Pong.{DEEPSEEK_END}"]),
    "R1-begins-with-an-answer": (
        R1,
        "aua",
        ["Hello!", "Pong."],
        [f"Hello!{DEEPSEEK_END}", f"Pong.{DEEPSEEK_END}"],
    ),
    "R1-drops-thoughts": (R1, "ua", [THOUGHT], [f"\n\nPong.{DEEPSEEK_END}"]),
    "an-answer-that-begins-as-a-thought-does": (R1, "ua", ["<th>"], [f"<th>{DEEPSEEK_END}"]),
    "thinking-in-turns": (THINKING, "uaua", ["A.", "B."], ["A.<|im_end|>", "\n</think>\n\nB.<|im_end|>"]),
    "thinking-aloud": (
        THINKING,
        "uaua",
        [THOUGHT, THOUGHT],
        ["Pong.<|im_end|>", "Hm.\n</think>\n\nPong.<|im_end|>"],
    ),
    "thinking-begins-with-an-answer": (
        THINKING,
        "aua",
        ["Hello!", "Pong."],
        ["Hello!<|im_end|>", "\n</think>\n\nPong.<|im_end|>"],
    ),
    "thinking-off-in-turns": (OFF, "uaua", ["A.", "B."], ["A.<|im_end|>", "B.<|im_end|>"]),
    "thinking-although-it-is-off": (
        OFF,
        "uaua",
        ["A.", THOUGHT],
        ["A.<|im_end|>", "Hm.\n</think>\n\nPong.<|im_end|>"],
    ),
    "begins-with-an-answer-after-a-system-message-of-its-own": (
        "qwen2_5",
        "aua",
        ["Hello!", "No."],
        ["Hello!<|im_end|>", "No.<|im_end|>"],
    ),
    "begins-with-an-answer-after-a-date": (
        "llama3_1",
        "aua",
        ["Hello!", "No."],
        ["Hello!<|eot_id|>", "No.<|eot_id|>"],
    ),
    "is-asked-for-after-a-message-alone": (
        "granite",
        "aua",
        ["Hello!", "No."],
        ["Hello!<|end_of_text|>", "No.<|end_of_text|>"],
    ),
    "system-message-in-the-last-question": (
        "mistral_v0_3",
        "suaua",
        ["A.", "B."],
        [" A.</s>", " B.</s>"],
    ),
    "second-answer-in-a-row": (
        "qwen3",
        "uaaua",
        ["A.", "B.", "C."],
        ["A.<|im_end|>", "B.<|im_end|>", "<think>\n\n</think>\n\nC.<|im_end|>"],
    ),
}


@pytest.mark.parametrize(("family", "roles", "answers", "trained"), BY_HAND.values(), ids=BY_HAND)
def test_an_answer_begins_where_its_turn_leaves_the_prompt(
    family: str, roles: str, answers: Sequence[str], trained: list[str]
) -> None:
    tokenizer = FAMILIES[family].tokenizer
    given = iter(answers)
    messages = talk(roles, *(next(given) if role == "a" else "Ping?" for role in roles))

    assert trained_texts(tokenizer, encoded(tokenizer, messages)) == trained


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_all_that_it_can_write(family: str) -> None:
    tokenizer = FAMILIES[family].tokenizer
    for name, messages in conversations_of(family).items():
        trained = trained_texts(tokenizer, encoded(tokenizer, messages))

        answers = [message.content.strip() for message in messages if message.role == "assistant"]
        assert re.search(".*".join(map(re.escape, answers)), "".join(trained), re.DOTALL), name
        assert not re.search("Ping|you|Be brief|joke", "".join(trained)), name


@pytest.mark.parametrize("family", sorted(ALTERNATING))
def test_what_a_template_refuses_is_refused_with_its_own_reason(family: str) -> None:
    for messages in (ANSWER_FIRST["answer-first"], TWO_ANSWERS["two-answers"]):
        assert "must alternate" in refusal(FAMILIES[family].tokenizer, messages)


# How long it takes


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "llama3_1", "mistral_v7", R1, "qwen3_5_think"])
@pytest.mark.parametrize("said", ["Hm {}. ", "<think>\nHm.\n</think>\n\nPong {}."], ids=["plain", "thoughts"])
def test_a_conversation_is_written_as_often_however_long_it_is(
    family: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendering = TemplateRendering(FAMILIES[family].tokenizer, family)
    assert rendering.end_of_turn
    written: list[int] = []
    render = TemplateRendering._render

    def counted(
        self: TemplateRendering, messages: Sequence[Message], *, ask: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        written.append(len(messages))
        return render(self, messages, ask=ask)

    monkeypatch.setattr(TemplateRendering, "_render", counted)
    for turns in (4, 40, 400):
        written.clear()
        messages = talk("ua" * (turns // 2), *(said.format(number) for number in range(turns)))

        _, answers = rendering.answers(messages)

        assert len(answers) == turns // 2
        assert len(written) <= 8


def test_a_conversation_of_400_turns_takes_less_than_a_second() -> None:
    tokenizer = byte_level(template=CHATML)
    messages = talk("ua" * 200, *(f"Some words of turn {number}." for number in range(400)))
    began = time.process_time()

    row = encoded(tokenizer, messages)

    assert time.process_time() - began < 1
    assert len(trained_texts(tokenizer, row)) == 200
