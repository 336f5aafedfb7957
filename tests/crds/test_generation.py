from __future__ import annotations

import pytest
from pydantic import ValidationError

from finetune_api.generation import PromptFormat

ROLES = {"system": "{instruction}", "user": "{instruction}", "assistant": "{instruction}"}


def problems_of(**keys: str | bool) -> str:
    with pytest.raises(ValidationError) as raised:
        PromptFormat.model_validate(ROLES | keys)
    return str(raised.value)


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_each_role_must_contain_the_content_of_its_message(role: str) -> None:
    assert f"{role} must contain {{instruction}}" in problems_of(**{role: "text"})
    assert f"{role} must contain {{instruction}}" in problems_of(**{role: "{{instruction}}"})


def test_every_role_that_is_wrong_is_told() -> None:
    told = problems_of(system="", assistant="{instructions}", system_in_last_user=True)

    assert "system must contain {instruction}" in told
    assert "assistant must contain {instruction}" in told
    assert "assistant has {instructions}, which stands for nothing" in told
    assert "system_in_last_user needs system_in_user: true" in told


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{instruction} }", "assistant cannot be read: Single '}'"),
        ("{instruction} {", "assistant cannot be read: Single '{'"),
        ('{"text": {instruction}}', "write a brace that is part of the text twice"),
        ("{instruction} {}", "assistant has {}, which stands for nothing"),
        ("{instruction!r}", "assistant has {instruction!r}, which stands for nothing"),
        ("{instruction:>9}", "assistant has {instruction:>9}, which stands for nothing"),
        ("{instruction.__class__}", "assistant has {instruction.__class__}, which stands for nothing"),
        ("{instruction}{system}", "assistant has {system}, which is only known in user"),
    ],
)
def test_nothing_but_the_content_stands_in_braces(text: str, problem: str) -> None:
    assert problem in problems_of(assistant=text)


def test_the_system_message_is_in_user_exactly_with_system_in_user() -> None:
    assert "user must contain {system}" in problems_of(system_in_user=True)
    assert "user has {system}, which is only known in user and with system_in_user: true" in problems_of(
        user="{system}{instruction}"
    )
    assert PromptFormat.model_validate(
        ROLES | {"system_in_user": True, "user": "{system}{instruction}"}
    ).system_in_user


def test_braces_of_the_text_are_written_twice() -> None:
    text = '{{"answer": "{instruction}"}}'

    assert PromptFormat.model_validate(ROLES | {"assistant": text}).assistant == text
