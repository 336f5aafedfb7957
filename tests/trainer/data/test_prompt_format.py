from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from finetune_api.generation import PromptFormat
from finetune_trainer.data.prompt_format import FormatRendering
from finetune_trainer.data.rendering import RenderingError
from finetune_trainer.data.rows import Message

LLAMA_3 = PromptFormat(
    bos="<|begin_of_text|>",
    system="<|start_header_id|>system<|end_header_id|>\n\n{instruction}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{instruction}<|eot_id|>",
    trailing_assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
)
MISTRAL = PromptFormat(
    bos="<s>",
    system="{instruction} + ",
    user="[INST] {system}{instruction} [/INST]",
    assistant=" {instruction}</s>",
    system_in_user=True,
)
LLAMA_2 = PromptFormat(
    bos="<s>",
    system="<<SYS>>\n{instruction}\n<</SYS>>\n\n",
    user="[INST] {system}{instruction} [/INST]",
    assistant=" {instruction} </s><s>",
    trailing_assistant=" ",
    system_in_user=True,
)
PASS_THROUGH = PromptFormat(
    system="{instruction}", user="{instruction}", assistant="{instruction}", strip_whitespace=False
)

SYSTEM, FIRST, SECOND = Message("system", "Be brief."), Message("user", "Ping?"), Message("user", "Again?")
PONG, YES = Message("assistant", "Pong."), Message("assistant", "Yes.")
TWO_TURNS = [FIRST, PONG, SECOND, YES]


def answers(prompt_format: PromptFormat, *messages: Message) -> list[str]:
    text, spans = FormatRendering(prompt_format).answers(messages)
    return [text[start:end] for start, end in spans]


# LLMForge's formats, word for word


def test_llama_3() -> None:
    assert (
        FormatRendering(LLAMA_3).text([SYSTEM, *TWO_TURNS])
        == "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nPing?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nPong.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAgain?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
    )
    assert answers(LLAMA_3, SYSTEM, *TWO_TURNS) == ["Pong.<|eot_id|>", "Yes.<|eot_id|>"]


def test_mistral() -> None:
    assert (
        FormatRendering(MISTRAL).text([SYSTEM, *TWO_TURNS])
        == "<s>[INST] Be brief. + Ping? [/INST] Pong.</s>[INST] Again? [/INST] Yes.</s>"
    )
    assert answers(MISTRAL, SYSTEM, *TWO_TURNS) == ["Pong.</s>", "Yes.</s>"]


def test_pass_through_for_continued_pre_training() -> None:
    assert (
        FormatRendering(PASS_THROUGH).text([Message("user", "  Once upon a time\n")])
        == "  Once upon a time\n"
    )
    assert answers(PASS_THROUGH, FIRST, Message("assistant", " Pong. ")) == [" Pong. "]


def test_llama_2_with_the_system_message_inside_the_first_question() -> None:
    assert (
        FormatRendering(LLAMA_2).text([SYSTEM, *TWO_TURNS])
        == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nPing? [/INST] Pong. </s><s>[INST] Again? [/INST] Yes."
        " </s><s>"
    )


# Prompts


def test_a_prompt_ends_with_trailing_assistant() -> None:
    assert (
        FormatRendering(LLAMA_3).prompt([FIRST])
        == "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nPing?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_a_prompt_is_how_the_text_of_its_answer_begins() -> None:
    for prompt_format in (LLAMA_3, MISTRAL, LLAMA_2, PASS_THROUGH):
        rendering = FormatRendering(prompt_format)
        assert rendering.text([SYSTEM, *TWO_TURNS]).startswith(rendering.prompt([SYSTEM, *TWO_TURNS[:3]]))


def test_system_in_last_user_holds_for_prompts_alone() -> None:
    rendering = FormatRendering(MISTRAL.model_copy(update={"system_in_last_user": True}))

    assert (
        rendering.prompt([SYSTEM, FIRST, PONG, SECOND])
        == "<s>[INST] Ping? [/INST] Pong.</s>[INST] Be brief. + Again? [/INST]"
    )
    assert (
        rendering.text([SYSTEM, FIRST, PONG, SECOND])
        == "<s>[INST] Be brief. + Ping? [/INST] Pong.</s>[INST] Again? [/INST]"
    )


# System messages


def tagged(**keys: bool | str) -> FormatRendering:
    texts: dict[str, bool | str] = {
        "system": "[S:{instruction}]",
        "user": "[U:{instruction}]",
        "assistant": "[A:{instruction}]",
    }
    return FormatRendering(PromptFormat.model_validate(texts | keys))


def test_the_default_system_message_is_for_rows_that_have_none() -> None:
    rendering = tagged(default_system_message="Be kind.")

    assert rendering.text([FIRST]) == "[S:Be kind.][U:Ping?]"
    assert rendering.text([SYSTEM, FIRST]) == "[S:Be brief.][U:Ping?]"


def test_system_tags_are_left_out_without_a_system_message_unless_asked_for() -> None:
    assert tagged().text([FIRST]) == "[U:Ping?]"
    assert tagged(add_system_tags_even_if_message_is_empty=True).text([FIRST]) == "[S:][U:Ping?]"


def test_system_tags_go_into_the_first_question_where_the_system_message_goes() -> None:
    inside: dict[str, bool | str] = {"system_in_user": True, "user": "[U:{system}{instruction}]"}

    assert tagged(**inside).text(TWO_TURNS) == "[U:Ping?][A:Pong.][U:Again?][A:Yes.]"
    assert (
        tagged(**inside, add_system_tags_even_if_message_is_empty=True).text(TWO_TURNS)
        == "[U:[S:]Ping?][A:Pong.][U:Again?][A:Yes.]"
    )


def test_a_system_message_that_has_no_question_to_go_into_is_refused() -> None:
    with pytest.raises(RenderingError, match="no user message"):
        FormatRendering(MISTRAL).text([SYSTEM, PONG])


def test_the_first_question_takes_the_system_message_also_when_the_assistant_begins() -> None:
    assert (
        FormatRendering(MISTRAL).text([SYSTEM, PONG, FIRST, YES])
        == "<s> Pong.</s>[INST] Be brief. + Ping? [/INST] Yes.</s>"
    )


# Answers and white space


def test_white_space_around_contents_is_stripped_unless_told_otherwise() -> None:
    messages = [
        Message("system", " Be brief. "),
        Message("user", " Ping?\n"),
        Message("assistant", "\tPong. "),
    ]

    assert tagged().text(messages) == "[S:Be brief.][U:Ping?][A:Pong.]"
    assert tagged(strip_whitespace=False).text(messages) == "[S: Be brief. ][U: Ping?\n][A:\tPong. ]"


@pytest.mark.parametrize(
    ("assistant", "answer", "end_of_turn"),
    [
        ("A: {instruction}<end>\n", "Pong.<end>", "<end>"),
        ("A: {instruction} <end> \n", "Pong. <end>", " <end>"),
        ("{instruction}\n", "Pong.", ""),
        ("A: {instruction}", "Pong.", ""),
        ("{{A}} {instruction} {{/A}}", "Pong. {/A}", " {/A}"),
        ("A: {instruction} | {instruction}.\n", "Pong. | Pong..", "."),
    ],
)
def test_an_answer_ends_with_what_the_format_writes_after_it_without_white_space(
    assistant: str, answer: str, end_of_turn: str
) -> None:
    prompt_format = PromptFormat(system="{instruction}", user="{instruction}", assistant=assistant)

    assert answers(prompt_format, FIRST, PONG) == [answer]
    assert FormatRendering(prompt_format).end_of_turn == end_of_turn


@pytest.mark.parametrize(
    "content",
    [
        "{instruction}",
        "{system}",
        "{}",
        "{0}",
        "}{",
        "{{instruction}}",
        "%s",
        r"\1",
        "Ping?",
        "[/INST]",
        "</s>",
    ],
)
def test_a_content_is_never_taken_for_a_part_of_the_format(content: str) -> None:
    messages = [Message("system", content), Message("user", content), Message("assistant", content)]

    assert FormatRendering(MISTRAL).text(messages) == f"<s>[INST] {content} + {content} [/INST] {content}</s>"
    assert answers(MISTRAL, *messages) == [f"{content}</s>"]


TEXTS = st.text(min_size=1).filter(str.strip)


@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.sampled_from([LLAMA_3, MISTRAL, LLAMA_2])
)
def test_every_answer_is_its_content_and_the_end_of_its_turn(
    turns: list[tuple[str, str]], prompt_format: PromptFormat
) -> None:
    messages = [
        message
        for question, answer in turns
        for message in (Message("user", question), Message("assistant", answer))
    ]
    end_of_turn = prompt_format.assistant.partition("{instruction}")[2]

    assert answers(prompt_format, *messages) == [answer.strip() + end_of_turn for _, answer in turns]


# As a chat template


def by_chat_template(prompt_format: PromptFormat, messages: Sequence[Message], *, ask: bool = False) -> str:
    """What transformers writes with the format's chat template."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    rendered = render_jinja_template(
        conversations=[turns],
        chat_template=FormatRendering(prompt_format).chat_template,
        add_generation_prompt=ask,
    )
    texts, _ = cast("tuple[list[str], object]", rendered)
    return texts[0]


LITERALS = st.text(
    st.characters(exclude_characters="{}\0", exclude_categories=["Cs"]), max_size=8
) | st.sampled_from(
    [
        "'",
        '"',
        "\\",
        "\n",
        "\r\n",
        "{{",
        "}}",
        "{{%",
        "%}}",
        "-%}}",
        "{{#",
        "#}}",
        "{{{{ x }}}}",
        "CONTENT",
        "BOS",
        "ns",
    ]
)


@st.composite
def formats(draw: st.DrawFn) -> PromptFormat:
    """Prompt formats of any text."""
    in_user = draw(st.booleans())
    return PromptFormat(
        system=f"{draw(LITERALS)}{{instruction}}{draw(LITERALS)}",
        user=draw(LITERALS)
        + ("{system}" if in_user else "")
        + draw(LITERALS)
        + "{instruction}"
        + draw(LITERALS),
        assistant=f"{draw(LITERALS)}{{instruction}}{draw(LITERALS)}",
        trailing_assistant=draw(LITERALS),
        bos=draw(LITERALS),
        default_system_message=draw(LITERALS),
        add_system_tags_even_if_message_is_empty=draw(st.booleans()),
        system_in_user=in_user,
        system_in_last_user=in_user and draw(st.booleans()),
        strip_whitespace=draw(st.booleans()),
    )


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Conversations with or without a system message, of turns in any order."""
    contents = st.text(max_size=6) | st.sampled_from(["{instruction}", "{{ x }}", "\r\n x \u3000", "'"])
    turns = st.builds(Message, st.sampled_from(["user", "assistant"]), contents)
    system = st.lists(st.builds(Message, st.just("system"), contents), max_size=1)
    return [*draw(system), *draw(st.lists(turns, min_size=1, max_size=4))]


@given(formats() | st.sampled_from([LLAMA_3, MISTRAL, LLAMA_2, PASS_THROUGH]), conversations())
def test_its_chat_template_writes_the_same_texts(
    prompt_format: PromptFormat, messages: list[Message]
) -> None:
    rendering = FormatRendering(prompt_format)
    try:
        text = rendering.text(messages)
    except RenderingError:
        with pytest.raises(TemplateError, match="There is no user message to put the system message into"):
            by_chat_template(prompt_format, messages)
        return

    assert by_chat_template(prompt_format, messages) == text
    assert by_chat_template(prompt_format, messages, ask=True) == rendering.prompt(messages)
