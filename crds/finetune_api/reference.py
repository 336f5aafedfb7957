"""Generates docs/fields.md from the models: `python -m finetune_api.reference > docs/fields.md`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from finetune_api.consistency import effect
from finetune_api.explain import models_in
from finetune_api.spec import FineTuneJobSpec

INTRODUCTION = """\
# Fields of a FineTuneJob

Everything below `spec`, as `kubectl explain` would show it. Names, types and meanings are those of LLMForge's training YAML where it has
the field. Numbers may be written as `1e-4`, `"8"` or `150_323_855_360`. How fields that are left out get their value is in
[numbers.md](numbers.md).

This page is generated from the models; do not edit it.
"""


def reference() -> str:
    """The page, as Markdown."""
    return "\n".join([INTRODUCTION, *_section("spec", FineTuneJobSpec)])


def _section(path: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"## `{path}`\n"
    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        below = list(models_in(field.annotation))
        nested += [(f"{path}.{name}", each) for each in below]
        yield f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {_description(path, name, field)} |"
    yield ""
    for where, each in nested:
        yield from _section(where, each)


def _description(path: str, name: str, field: FieldInfo) -> str:
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"{text} {effect(name) if path == 'spec' else ''}".strip()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None or isinstance(default, BaseModel):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _type(annotation: object) -> str:
    """A type in words, without the constraints, which error messages name."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{str(argument).lower() if isinstance(argument, bool) else argument}`" for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument) for argument in arguments if argument is not type(None)))
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "map"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    names = {int: "integer", float: "number", str: "text", bool: "boolean"}
    return names[annotation] if isinstance(annotation, type) and annotation in names else "any"


if __name__ == "__main__":
    print(reference(), end="")
