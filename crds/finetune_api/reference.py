"""Generates docs/fields.md from the models: `python -m finetune_api.reference > docs/fields.md`."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

from finetune_api.consistency import effect
from finetune_api.explain import models_in
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

INTRODUCTION = """\
# Fields of a FineTuneJob

Everything below [`spec`](#spec), which you write, and [`status`](#status), which the operator writes;
`kubectl explain` shows the same.

This page is generated from the models; do not edit it.
"""
OF_THE_SPEC = """\
Names, types and meanings are those of LLMForge's training YAML where it has the field. Numbers may be written
as `1e-4` or `150_323_855_360`, and in a bare LLMForge YAML, which no API server reads, also in quotes. How
fields that are left out get their value is in [numbers.md](numbers.md).
"""
OF_THE_STATUS = """\
A field is absent until it is known. What phases, conditions and events mean is in
[on-a-cluster.md](on-a-cluster.md).
"""


def reference() -> str:
    """The page, as Markdown."""
    spec = _sections([("spec",)], FineTuneJobSpec, defaults=True)
    status = _sections([("status",)], FineTuneJobStatus, defaults=False)
    return "\n".join([INTRODUCTION, next(spec), OF_THE_SPEC, *spec, next(status), OF_THE_STATUS, *status])


def _sections(paths: Sequence[tuple[str, ...]], model: type[BaseModel], *, defaults: bool) -> Iterator[str]:
    """The section of a model that is at these paths, and those of the models in it.

    Each model comes once, with all of its paths.
    """
    headings = [f"`{'.'.join(path)}`" for path in paths]
    yield f"## {', '.join(headings)}\n"
    yield "| field | type | default | |" if defaults else "| field | type | |"
    yield "|---|---|---|---|" if defaults else "|---|---|---|"
    nested: dict[type[BaseModel], list[tuple[str, ...]]] = {}
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        for each in models_in(field.annotation):
            nested.setdefault(each, []).extend((*path, name) for path in paths)
        cells = [
            f"`{name}`",
            type_in_words(field.annotation),
            *([default_in_words(field)] if defaults else []),
            _description(paths[0], name, field),
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""
    for each, below in nested.items():
        yield from _sections(below, each, defaults=defaults)


def _description(path: tuple[str, ...], name: str, field: FieldInfo) -> str:
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"{text} {effect(name) if path == ('spec',) else ''}".strip()


def default_in_words(field: FieldInfo) -> str:
    """The default of a field as a cell of a Markdown table; empty where there is none to show."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None or isinstance(default, BaseModel):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def type_in_words(annotation: object) -> str:
    """A type in words, without the constraints, which error messages name."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return type_in_words(arguments[0])
    if origin is Literal:
        return ", ".join(
            f"`{str(argument).lower() if isinstance(argument, bool) else argument}`" for argument in arguments
        )
    if origin in (Union, types.UnionType):
        return " or ".join(
            dict.fromkeys(type_in_words(argument) for argument in arguments if argument is not type(None))
        )
    if origin in (list, tuple):
        return f"list of {type_in_words(arguments[0])}"
    if origin is dict:
        return "map"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return ", ".join(f"`{member}`" for member in annotation)
    names = {int: "integer", float: "number", str: "text", bool: "boolean", AwareDatetime: "time"}
    return names[annotation] if isinstance(annotation, type) and annotation in names else "any"


if __name__ == "__main__":
    print(reference(), end="")
