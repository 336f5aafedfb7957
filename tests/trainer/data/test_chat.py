from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer.tokenizers_for_tests import (
    CHATML,
    CHATML_TAGGED,
    CHATML_TOKENS,
    LLAMA3_TOKENS,
    byte_level,
    published_template,
    sentencepiece,
    text_of,
    trained_texts,
)
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.generation import GenerationConfig, PromptFormat
from finetune_trainer.data.chat import ChatFormat, Encoded, Task, chat_format, inside
from finetune_trainer.data.encoding import ConversationEncoder
from finetune_trainer.data.rows import Lines, Message, Row

ROLES = {"s": "system", "u": "user", "a": "assistant"}


def talk(roles: str, *contents: str) -> tuple[Message, ...]:
    """A conversation: `talk("ua", "Ping?", "Pong.")` is a user's message and an answer."""
    return tuple(Message(ROLES[role], content) for role, content in zip(roles, contents, strict=True))


def format_of(
    tokenizer: PreTrainedTokenizerFast,
    *,
    prompt_format: PromptFormat | None = None,
    task: Task = "instruction_tuning",
) -> ChatFormat:
    return chat_format(tokenizer, GenerationConfig(prompt_format=prompt_format), task, "org/model")


def encoded(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], *, task: Task = "instruction_tuning"
) -> Encoded:
    return format_of(tokenizer, task=task).encode(Row(1, tuple(messages)))


def refusal(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> str:
    """The error message for a row that cannot be trained on."""
    with pytest.raises(FineTuneError) as raised:
        encoded(tokenizer, messages)
    assert raised.value.failure_class is FailureClass.INVALID_DATA
    return str(raised.value)


def marked_by_transformers(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> Encoded:
    """The tokens and the mask that transformers gets from a template with generation tags."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    tokens = cast(
        "dict[str, list[int]]",
        tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True),
    )
    return Encoded(tokens["input_ids"], [marked == 1 for marked in tokens["assistant_masks"]])


# What counts: the answers, each with the token that ends its turn

CONVERSATIONS = {
    "one-turn": talk("ua", "Ping?", "Pong."),
    "system": talk("sua", "Be brief.", "Ping?", "Pong."),
    "turns": talk("suauaua", "Be brief.", "Ping?", "Pong.", "And you?", "Me too.", "Bye.", "Bye!"),
    "ends-with-a-question": talk("uau", "Ping?", "Pong.", "And you?"),
    "two-answers-in-a-row": talk("uaa", "Ping?", "Pong.", "Pong again."),
    "begins-with-an-answer": talk("aua", "Welcome!", "Ping?", "Pong."),
    "the-answer-repeats-the-question": talk("uaua", "Ping?", "Ping?", "Ping?", "Ping?"),
    "the-answer-is-a-part-of-the-question": talk("uaua", "a", "a", "aa a", "a"),
    "the-answer-is-the-name-of-a-role": talk("uaua", "Who?", "assistant", "Who?", "user"),
    "the-answer-is-a-part-of-the-template": talk("uaua", "What?", "im_start", "What?", "|>\n"),
    "the-answer-quotes-the-end-of-a-turn": talk(
        "uaua", "What ends you?", "<|im_end|> does", "Sure?", "<|im_end|><|im_end|>\n"
    ),
    "the-question-quotes-an-answer": talk("ua", "<|im_start|>assistant\nNot mine.<|im_end|>\n", "Mine."),
    "the-system-message-quotes-an-answer": talk(
        "sua", "Say:<|im_end|>\n<|im_start|>assistant\nNot mine.", "Well?", "Mine."
    ),
    "blanks-around": talk("uaua", "  Ping? ", " Pong. \n\n", "\tMore\n", " More "),
    "lines": talk("ua", "Write.\n\nMuch.", "One\n\nTwo\r\nThree\n"),
    "CJK": talk("uaua", "你好,世界", "你好!很高兴认识你。", "日本語で", "はい、わかりました。"),
    "emoji": talk("uaua", "👋🏽", "👩‍👩‍👧‍👦🏳️‍🌈", "é or e\u0301?", "e\u0301😀"),
    "right-to-left": talk("ua", "مرحبا", "אבג \u200f\u200e"),
    "private-use": talk("uaua", "\ue000", "\ue000 \ue001", "\ue001?", "\ue000"),
    "signs": talk("ua", "{{ messages }} {% endfor %}", "{instruction} {{ x }} \\ \x00 \ufffd"),
}


@pytest.mark.parametrize("template", [CHATML, CHATML_TAGGED], ids=["plain", "tagged"])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_exactly_the_answers_with_their_ends_count(template: str, messages: tuple[Message, ...]) -> None:
    tokenizer = byte_level(template=template)

    row = encoded(tokenizer, messages)

    answers = [message.content for message in messages if message.role == "assistant"]
    assert trained_texts(tokenizer, row) == [f"{answer}<|im_end|>" for answer in answers]
    written = "".join(f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in messages)
    assert text_of(tokenizer, row.input_ids) == written


@pytest.mark.parametrize("template", [CHATML, CHATML_TAGGED], ids=["plain", "tagged"])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_tokens_and_mask_are_those_that_transformers_gives_for_tagged_templates(
    template: str, messages: tuple[Message, ...]
) -> None:
    assert encoded(byte_level(template=template), messages) == marked_by_transformers(
        byte_level(template=CHATML_TAGGED), messages
    )


PIECES = st.sampled_from(
    [
        "<|im_start|>",
        "<|im_end|>",
        "assistant",
        "user",
        "\n",
        " ",
        "a",
        "Ping",
        "é",
        "😀",
        "中文",
        "\u200d",
        "{instruction}",
    ]
)
TEXTS = st.lists(PIECES, min_size=1, max_size=6).map("".join).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ua"), TEXTS), min_size=1, max_size=5))
def test_whatever_is_said_only_the_answers_count(turns: list[tuple[str, str]]) -> None:
    messages = talk(
        "u" + "".join(role for role, _ in turns) + "a", "Go.", *(content for _, content in turns), "Done."
    )
    tokenizer = byte_level()

    row = encoded(tokenizer, messages)

    trained = trained_texts(tokenizer, row)
    answers = [f"{message.content}<|im_end|>" for message in messages if message.role == "assistant"]
    # An answer's first token may begin with the newline before it, when blanks follow.
    assert [text.lstrip() for text in trained] == [answer.lstrip() for answer in answers]
    assert all(text.endswith(answer) for text, answer in zip(trained, answers, strict=True))


@pytest.mark.parametrize("template", [CHATML, CHATML_TAGGED], ids=["plain", "tagged"])
def test_a_pad_token_that_also_ends_turns_changes_nothing(template: str) -> None:
    tokenizer = byte_level(template=template, eos_token="<|im_end|>", pad_token="<|im_end|>")

    assert trained_texts(tokenizer, encoded(tokenizer, CONVERSATIONS["turns"])) == [
        "Pong.<|im_end|>",
        "Me too.<|im_end|>",
        "Bye!<|im_end|>",
    ]


def test_an_end_of_turn_outside_of_the_generation_tags_counts_too() -> None:
    tokenizer = byte_level(
        template=CHATML_TAGGED.replace(
            "+ '<|im_end|>' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|im_end|>' }}"
        )
    )

    assert trained_texts(tokenizer, encoded(tokenizer, CONVERSATIONS["one-turn"])) == ["Pong.<|im_end|>"]


@pytest.mark.parametrize(
    ("span", "counted"),
    [
        ((0, 2), "T..."),
        ((2, 5), ".T.."),
        ((3, 4), ".T.."),
        ((1, 3), "TT.."),
        ((4, 6), ".TT."),
        ((2, 2), "...."),
        ((5, 9), "..TT"),
    ],
)
def test_a_token_that_an_answer_begins_or_ends_in_counts(span: tuple[int, int], counted: str) -> None:
    assert inside([(0, 2), (2, 5), (5, 7), (7, 9)], [span]) == [sign == "T" for sign in counted]


def test_all_tokens_count_in_causal_lm() -> None:
    row = encoded(byte_level(), talk("su", "Be brief.", "Once upon a time."), task="causal_lm")

    assert len(row.input_ids) > 10
    assert all(row.trained)
    assert len(row.trained) == len(row.input_ids)


def test_the_tiny_model_has_such_a_template(tiny_model: Path) -> None:
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(tiny_model))

    row = encoded(tokenizer, CONVERSATIONS["turns"])

    assert trained_texts(tokenizer, row) == ["Pong.<|im_end|>", "Me too.<|im_end|>", "Bye!<|im_end|>"]


# Chat templates of well-known families

FAMILIES = {
    "llama3": LLAMA3_TOKENS,
    "qwen2_5": CHATML_TOKENS,
    "qwen3": CHATML_TOKENS,
    "qwen3_instruct_2507": CHATML_TOKENS,
    "gemma": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    "gemma3": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    "phi3": ("<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
}


def of_family(name: str, template: str) -> PreTrainedTokenizerFast:
    tokens = FAMILIES[name]
    return byte_level(
        tokens, template=published_template(template), bos_token=tokens[0], eos_token=tokens[-1]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_masks_of_published_templates_are_those_of_their_tagged_twins(name: str) -> None:
    plain, tagged = of_family(name, name), of_family(name, f"{name}_training")
    # Qwen3 writes thoughts before the last answer alone, its twin before each.
    messages = (
        CONVERSATIONS["one-turn"] if name == "qwen3" else talk("uaua", " Ping?\n", " Pong.\n", "a", "a")
    )

    ours, theirs = encoded(plain, messages), marked_by_transformers(tagged, messages)

    assert ours.input_ids == theirs.input_ids
    # TRL also marks the newlines around a turn, and what Phi-3 writes at the end of a conversation.
    around = [
        text.removeprefix("\n") if name == "qwen2_5" else text for text in trained_texts(tagged, theirs)
    ]
    assert [text.rstrip() for text in trained_texts(plain, ours)] == [
        text.removesuffix("<|endoftext|>").rstrip() for text in around
    ]


TAGGED_TWINS = [name for name in FAMILIES if name != "phi3"]


@pytest.mark.parametrize("name", TAGGED_TWINS)
def test_generation_tags_of_published_templates_are_followed(name: str) -> None:
    tokenizer = of_family(name, f"{name}_training")

    assert encoded(tokenizer, CONVERSATIONS["one-turn"]) == marked_by_transformers(
        tokenizer, CONVERSATIONS["one-turn"]
    )


def test_phi_3_ends_turns_and_conversations_with_different_tokens_and_the_turn_counts() -> None:
    tokenizer = of_family("phi3", "phi3")

    assert trained_texts(tokenizer, encoded(tokenizer, CONVERSATIONS["turns"])) == [
        "Pong.<|end|>",
        "Me too.<|end|>",
        "Bye!<|end|>",
    ]


def test_content_that_a_template_strips_is_trained_as_it_is_written() -> None:
    tokenizer = of_family("llama3", "llama3")

    row = encoded(tokenizer, talk("uaua", "Say: Pong. ", "  Pong.\n", "Pong. again", "Pong. \n"))

    assert trained_texts(tokenizer, row) == ["Pong.<|eot_id|>", "Pong.<|eot_id|>"]


THOUGHT = "<think>\nHm.\n</think>\n\nPong."
QWEN3 = {
    "no-thoughts": (["Pong.", "Me too."], ["Pong.", "<think>\n\n</think>\n\nMe too."]),
    "thoughts": ([THOUGHT, THOUGHT], ["Pong.", THOUGHT]),
    "earlier-thoughts": ([THOUGHT, "Me too."], ["Pong.", "<think>\n\n</think>\n\nMe too."]),
    "an-answer-that-is-in-the-tag": (["think", "think"], ["think", "<think>\n\n</think>\n\nthink"]),
}


@pytest.mark.parametrize(("answers", "trained"), QWEN3.values(), ids=QWEN3)
def test_qwen3_trains_what_its_template_writes_after_asking(answers: list[str], trained: list[str]) -> None:
    tokenizer = of_family("qwen3", "qwen3")

    row = encoded(tokenizer, talk("uaua", "Ping?", answers[0], "And you?", answers[1]))

    assert trained_texts(tokenizer, row) == [f"{text}<|im_end|>" for text in trained]


def test_an_answer_that_a_template_asks_for_otherwise_is_refused() -> None:
    other = CHATML.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>model\n' }}")

    problem = refusal(byte_level(template=other), CONVERSATIONS["one-turn"])

    assert problem.startswith("messages[1]: the chat template of org/model")
    assert "spec.generation_config.prompt_format" in problem


def test_an_answer_that_changes_what_follows_is_refused() -> None:
    echo = CHATML.replace(
        "message['content'] +",
        "message['content'] + (messages[1]['content'] if loop.last and not loop.first else '') +",
    )

    problem = refusal(byte_level(template=echo), talk("uau", "Ping?", "Pong.", "And you?"))

    assert problem.startswith(
        "messages[1].content: changes how the chat template of org/model writes what follows"
    )
    assert "spec.generation_config.prompt_format" in problem


def test_a_template_that_leaves_answers_out_is_an_error_of_the_spec() -> None:
    with pytest.raises(FineTuneError, match=r"spec\.generation_config\.prompt_format: ") as raised:
        format_of(byte_level(template=CHATML.replace("message['content']", "'something'")))

    assert raised.value.failure_class is FailureClass.INVALID_SPEC


def test_a_template_that_refuses_a_conversation_says_why() -> None:
    problem = refusal(of_family("gemma", "gemma"), CONVERSATIONS["system"])

    assert problem.startswith("messages: the chat template of org/model")
    assert "System role not supported" in problem


@pytest.mark.parametrize("call", ["strftime_now('%d %b %Y')", 'strftime_now( "%d %b %Y" )'])
def test_today_is_the_same_day_whenever_a_run_is_resumed(call: str) -> None:
    dated = byte_level(template=f"{{{{ {call} }}}}\n{CHATML}")

    row = encoded(dated, CONVERSATIONS["one-turn"])

    assert text_of(dated, row.input_ids).startswith("26 Jul 2024\n")


# BOS

BOS_CHATML = "{{ bos_token }}" + CHATML


def test_a_bos_that_the_template_writes_is_there_once() -> None:
    tokenizer = byte_level(("<s>", *CHATML_TOKENS), template=BOS_CHATML, bos_token="<s>")
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id, "the tokenizer would put one more"

    ids = encoded(tokenizer, CONVERSATIONS["one-turn"]).input_ids

    assert [token == tokenizer.bos_token_id for token in ids] == [True] + [False] * (len(ids) - 1)


def test_a_bos_that_the_template_leaves_out_is_left_out() -> None:
    tokenizer = byte_level(("<s>", *CHATML_TOKENS), bos_token="<s>")

    assert tokenizer.bos_token_id not in encoded(tokenizer, CONVERSATIONS["one-turn"]).input_ids
    assert tokenizer.bos_token_id not in format_of(tokenizer).prompt(CONVERSATIONS["one-turn"])


def test_a_bos_that_is_there_twice_is_refused() -> None:
    tokenizer = byte_level(("<s>", *CHATML_TOKENS), template="{{ bos_token }}" + BOS_CHATML, bos_token="<s>")

    assert "begins with <s> twice" in refusal(tokenizer, CONVERSATIONS["one-turn"])


# Answers of weight 0


UNTRAINED = (
    Message("user", "Ping?"),
    Message("assistant", "No.", trained=False),
    Message("user", "And now?"),
    Message("assistant", "Pong."),
)


@pytest.mark.parametrize("template", [CHATML, CHATML_TAGGED], ids=["plain", "tagged"])
def test_an_answer_of_weight_0_is_context_alone(template: str) -> None:
    tokenizer = byte_level(template=template)

    row = encoded(tokenizer, UNTRAINED)

    assert trained_texts(tokenizer, row) == ["Pong.<|im_end|>"]
    assert "No.<|im_end|>" in text_of(tokenizer, row.input_ids)


def test_an_answer_of_weight_0_in_a_prompt_format() -> None:
    tokenizer = of_family("llama3", "llama3")

    row = format_of(tokenizer, prompt_format=LLAMA3).encode(Row(1, UNTRAINED))

    assert trained_texts(tokenizer, row) == ["Pong.<|eot_id|>"]


def test_a_template_that_marks_more_than_answers_cannot_leave_one_out() -> None:
    tokenizer = byte_level(template="{% generation %}{{ ' ' }}{% endgeneration %}" + CHATML_TAGGED)

    assert "weight 0" in refusal(tokenizer, UNTRAINED)


# What is asked of a model

NO_END = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_template_that_ends_no_turn_gives_a_warning() -> None:
    tokenizer = byte_level(template=NO_END)

    endless = format_of(tokenizer)

    assert len(endless.warnings) == 1
    assert "org/model" in endless.warnings[0]
    assert "where to stop" in endless.warnings[0]
    assert trained_texts(tokenizer, endless.encode(Row(1, CONVERSATIONS["turns"]))) == [
        "Pong.",
        "Me too.",
        "Bye!",
    ]


@pytest.mark.parametrize(
    ("template", "task"),
    [(CHATML, "instruction_tuning"), (CHATML_TAGGED, "instruction_tuning"), (NO_END, "causal_lm")],
)
def test_other_templates_give_none(template: str, task: Task) -> None:
    assert format_of(byte_level(template=template), task=task).warnings == ()


@pytest.mark.parametrize("template", [CHATML, CHATML_TAGGED], ids=["plain", "tagged"])
def test_a_prompt_ends_where_an_answer_begins(template: str) -> None:
    tokenizer = byte_level(template=template)

    prompt = format_of(tokenizer).prompt(talk("su", "Be brief.", "Ping?"))

    assert text_of(tokenizer, prompt).endswith("user\nPing?<|im_end|>\n<|im_start|>assistant\n")


def test_a_tokenizer_without_chat_template_needs_a_prompt_format() -> None:
    with pytest.raises(FineTuneError, match=r"spec\.generation_config\.prompt_format: .*org/model") as raised:
        format_of(byte_level(template=None))

    assert raised.value.failure_class is FailureClass.INVALID_SPEC


def test_a_template_that_is_broken_is_an_error_of_the_spec() -> None:
    with pytest.raises(FineTuneError, match=r"spec\.generation_config\.prompt_format: ") as raised:
        format_of(byte_level(template="{% for %}"))

    assert raised.value.failure_class is FailureClass.INVALID_SPEC


def test_a_tokenizer_that_does_not_know_its_characters_is_refused() -> None:
    with pytest.raises(FineTuneError, match=r"spec\.model_id: org/model: ") as raised:
        chat_format(ByT5Tokenizer(), None, "instruction_tuning", "org/model")

    assert raised.value.failure_class is FailureClass.INVALID_SPEC


# LLMForge's prompt formats

LLAMA3 = PromptFormat(
    system="<|start_header_id|>system<|end_header_id|>\n\n{instruction}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{instruction}<|eot_id|>",
    trailing_assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
    bos="<|begin_of_text|>",
)
MISTRAL = PromptFormat(
    system="{instruction} + ",
    user="[INST] {system}{instruction} [/INST]",
    assistant=" {instruction}</s>",
    bos="<s>",
    system_in_user=True,
)
PASS_THROUGH = PromptFormat(system="{instruction}", user="{instruction}", assistant="{instruction}")
MISTRAL_TOKENS = ("<s>", "</s>", "[INST]", "[/INST]")


def test_llama_3_by_hand_is_what_its_template_writes() -> None:
    tokenizer = of_family("llama3", "llama3")

    by_hand = format_of(tokenizer, prompt_format=LLAMA3)

    assert by_hand.encode(Row(1, CONVERSATIONS["turns"])) == encoded(tokenizer, CONVERSATIONS["turns"])
    assert by_hand.prompt(CONVERSATIONS["turns"][:2]) == format_of(tokenizer).prompt(
        CONVERSATIONS["turns"][:2]
    )


def test_an_answer_whose_first_token_begins_with_the_blank_before_it_counts_whole() -> None:
    tokenizer = sentencepiece(MISTRAL_TOKENS, bos_token="<s>")

    row = format_of(tokenizer, prompt_format=MISTRAL).encode(
        Row(1, talk("uaua", "the", "the class", "the", "the"))
    )

    tokens = tokenizer.convert_ids_to_tokens(row.input_ids)
    trained = [token for token, counts in zip(tokens, row.trained, strict=True) if counts]
    assert "".join(trained) == "▁the▁class</s>▁the</s>"
    assert trained[0] == "▁the"


def test_pass_through_writes_contents_alone() -> None:
    tokenizer = byte_level(template=None)
    pass_through = format_of(tokenizer, prompt_format=PASS_THROUGH, task="causal_lm")

    row = pass_through.encode(Row(1, talk("u", " Once upon a time.\n")))

    assert text_of(tokenizer, row.input_ids) == "Once upon a time."
    assert all(row.trained)
    assert pass_through.warnings == ()


def test_pass_through_warns_that_nothing_ends_an_answer() -> None:
    endless = format_of(byte_level(template=None), prompt_format=PASS_THROUGH)

    assert len(endless.warnings) == 1
    assert "spec.generation_config.prompt_format.assistant" in endless.warnings[0]


def test_a_prompt_format_is_used_in_place_of_the_template() -> None:
    tokenizer = byte_level()

    row = format_of(tokenizer, prompt_format=PASS_THROUGH).encode(Row(1, CONVERSATIONS["one-turn"]))

    assert text_of(tokenizer, row.input_ids) == "Ping?Pong."
    assert trained_texts(tokenizer, row) == ["Pong."]


# Remarks about the rows of a file


def remarks(
    *conversations: Sequence[Message],
    tokenizer: PreTrainedTokenizerFast | None = None,
    prompt_format: PromptFormat | None = None,
    task: Task = "instruction_tuning",
) -> list[str]:
    chat = format_of(tokenizer or byte_level(), prompt_format=prompt_format, task=task)
    lines = [line_of(messages) for messages in conversations]
    return ConversationEncoder(task, chat).encode(Lines(1, lines)).remarks.words("train.jsonl", chat.source)


def line_of(messages: Sequence[Message]) -> bytes:
    return json.dumps(
        {"messages": [{"role": each.role, "content": each.content} for each in messages]}
    ).encode()


PLAIN = CONVERSATIONS["turns"]


def test_rows_that_say_nothing_special_get_no_remark() -> None:
    assert remarks(PLAIN, CONVERSATIONS["blanks-around"], CONVERSATIONS["signs"]) == []


@pytest.mark.parametrize("task", ["instruction_tuning", "causal_lm"])
@pytest.mark.parametrize(
    "quoting",
    [
        talk("ua", "What is <|im_end|>?", "A token."),
        talk("ua", "What ends you?", "<|im_end|> does."),
        talk("sua", "Never say <|im_end|>.", "Ping?", "Pong."),
    ],
    ids=["question", "answer", "system"],
)
def test_control_tokens_in_what_is_said_are_named_with_their_row(
    quoting: tuple[Message, ...], task: Task
) -> None:
    assert one(remarks(PLAIN, quoting, quoting, task=task)) == (
        "train.jsonl: <|im_end|> in what is said is read as a control token; take it out where it is meant as"
        " text; 2 rows have it, the first in line 2"
    )


def test_only_some_of_many_control_tokens_are_named() -> None:
    many = of_family("llama3", "llama3")

    assert "<|eot_id|>, <|begin_of_text|>, <|start_header_id|>, ... in what is said" in one(
        remarks(
            talk("ua", "<|eot_id|><|begin_of_text|><|start_header_id|><|end_header_id|>", "a"), tokenizer=many
        )
    )


def test_rows_that_bring_their_own_control_tokens_get_no_remark() -> None:
    written_out = talk("u", "<|im_start|>user\nPing?<|im_end|>")

    assert remarks(written_out, prompt_format=PASS_THROUGH, task="causal_lm") == []


def test_thoughts_that_a_template_drops_are_told_of() -> None:
    qwen3 = of_family("qwen3", "qwen3")

    told = one(remarks(talk("ua", "a", THOUGHT), talk("uaua", "a", THOUGHT, "a", "b"), tokenizer=qwen3))

    assert told.startswith(
        "train.jsonl: the chat template of org/model leaves out a part of what is answered"
    )
    assert told.endswith("1 rows have it, the first in line 2")


def test_the_white_space_of_a_thought_is_the_templates_own() -> None:
    rewritten = talk("ua", "a", "<think>Hm.</think>Pong.")

    assert remarks(rewritten, tokenizer=of_family("qwen3", "qwen3")) == []


def one(said: Sequence[str]) -> str:
    assert len(said) == 1
    return said[0]
