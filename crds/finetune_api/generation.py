"""`spec.generation_config`: how a conversation becomes text, in LLMForge's (and RayLLM's) words."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from finetune_api.fields import VALIDATIONS, Flag, SpecModel

TemplateText = Annotated[str, Field(max_length=16384)]

_LAST_NEEDS_FIRST = "system_in_last_user needs system_in_user: true"
_CEL: list[JsonValue] = [
    {"rule": rule, "message": message}
    for rule, message in {
        "self.system.contains('{instruction}')": "system must contain {instruction}",
        "self.user.contains('{instruction}')": "user must contain {instruction}",
        "self.assistant.contains('{instruction}')": "assistant must contain {instruction}",
        "!self.system_in_user || self.user.contains('{system}')": "user must contain {system}",
        "!self.system_in_last_user || self.system_in_user": _LAST_NEEDS_FIRST,
    }.items()
]
"""What the API server can check without parsing the templates; it is deceived by escaped braces (`{{`)."""


class PromptFormat(SpecModel):
    """A prompt format of LLMForge: the ten keys of RayLLM's `PromptFormat`, with its rules and defaults.

    `{instruction}` stands for the content of a message, `{system}` for the system message where
    `system_in_user` is set. They are filled in by Python's `str.format`, so that a brace that is part of the
    text is written twice.
    """

    model_config = ConfigDict(json_schema_extra={VALIDATIONS: _CEL})

    system: TemplateText
    """Text of a system message; must contain `{instruction}`."""
    user: TemplateText
    """Text of a user message; must contain `{instruction}`, and `{system}` with `system_in_user`."""
    assistant: TemplateText
    """Text of an assistant message, with its end-of-turn token; must contain `{instruction}`."""
    trailing_assistant: TemplateText = ""
    """What prompts the model to answer. Inference only."""
    bos: TemplateText = ""
    """Put once before everything."""
    default_system_message: TemplateText = ""
    """The system message of rows that have none."""
    add_system_tags_even_if_message_is_empty: Flag = False
    """Write the system text even when there is no system message."""
    system_in_user: Flag = False
    """Put the system text into the first user message, at `{system}`."""
    system_in_last_user: Flag = False
    """Put it into the last user message instead. Inference only."""
    strip_whitespace: Flag = True
    """Strip white space around the content of each message."""

    @model_validator(mode="after")
    def _placeholders(self) -> Self:
        in_user = ("instruction", "system") if self.system_in_user else ("instruction",)
        needed = {"system": ("instruction",), "user": in_user, "assistant": ("instruction",)}
        problems = [
            problem
            for role, names in needed.items()
            for problem in _misplaced(role, getattr(self, role), names)
        ]
        if self.system_in_last_user and not self.system_in_user:
            problems.append(_LAST_NEEDS_FIRST)
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _misplaced(role: str, template: str, names: tuple[str, ...]) -> list[str]:
    """What is wrong with the placeholders of a text."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        return [f"{role} cannot be read: {error}; write a brace that is part of the text twice"]
    found = {
        name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        for _, name, spec, conversion in parts
        if name is not None
    }
    problems = [f"{role} must contain {{{name}}}" for name in names if name not in found]
    for name in sorted(found.difference(names)):
        if name == "system":
            problems.append(
                f"{role} has {{system}}, which is only known in user and with system_in_user: true"
            )
        else:
            problems.append(
                f"{role} has {{{name}}}, which stands for nothing;"
                " write a brace that is part of the text twice"
            )
    return problems


class GenerationConfig(SpecModel):
    """How prompts are written and where answers stop; for models whose tokenizer has no chat template."""

    prompt_format: PromptFormat | None = None
    """Used instead of the tokenizer's own chat template."""
    stopping_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=64)] | None
    ) = None
    """Texts that end an answer; those of one token end generation with the checkpoint."""
