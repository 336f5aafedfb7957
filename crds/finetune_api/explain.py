"""Turns pydantic's errors into lines for the person who wrote the document.

spec.lora_config.r: must be at least 1, is 0
spec.learning_rte: is not a known field; did you mean learning_rate?
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterator, Mapping
from typing import get_args

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

_LONGEST_SHOWN = 60
_MOST_SUGGESTIONS = 3
_SHORTEST_PART = 4
_SIMILAR = 0.6
"""difflib's ratio above which a name is suggested; `load_in_4bit` and `lora_bias` have 0.56."""

_WHOLE = "must be a whole number, is {given}"
_NUMBER = "must be a number, is {given}"
_MAP = "must be a map of fields, is {given}"
_REASONS = {
    "missing": "is required",
    "greater_than_equal": "must be at least {ge}, is {given}",
    "greater_than": "must be more than {gt}, is {given}",
    "less_than_equal": "must be at most {le}, is {given}",
    "less_than": "must be less than {lt}, is {given}",
    "literal_error": "must be {expected}, is {given}",
    "value_error": "{error}",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_type": _WHOLE,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": _NUMBER,
    "bool_type": "must be true or false, is {given}",
    "bool_parsing": "must be true or false, is {given}",
    "string_type": "must be a text, is {given}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "model_type": _MAP,
    "model_attributes_type": _MAP,
    "dict_type": _MAP,
    "list_type": "must be a list, is {given}",
    "too_short": "must have at least {min_length} entries, has {actual_length}",
    "too_long": "must have at most {max_length} entries, has {actual_length}",
    "invalid-json-value": "must be a text, a number, true, false, a list or a map, is {given}",
    "recursion_loop": "must not contain itself",
}
"""Words for pydantic's kinds of errors; other kinds are our own and say what must be."""


def explain(
    error: ValidationError,
    model: type[BaseModel],
    document: Mapping[str, JsonValue],
    root: str,
    hints: Mapping[str, str] | None = None,
    unsuggested: Container[str] = (),
) -> list[str]:
    """A line `path: what is wrong` for every error in a document, whose own path is `root`.

    `hints` has what to say about certain unknown keys; about the others, fields with similar names are said,
    without those in `unsuggested`.
    """
    lines = []
    for detail in error.errors(include_url=False):
        path, owner = _locate(detail["loc"], model, document)
        reason = _reason(detail)
        if detail["type"] == "extra_forbidden":
            key = str(detail["loc"][-1])
            hint = (hints or {}).get(key) or _suggestion(key, owner, model, root, unsuggested)
            reason = f"is not a known field; {hint}" if hint else "is not a known field"
        lines.append(f"{root}{path}: {reason}")
    return lines


def _reason(detail: ErrorDetails) -> str:
    words = _REASONS.get(detail["type"])
    given = _shown(detail["input"])
    if words is None:
        return f"{detail['msg']}, is {given}"
    reason = words.format(**detail.get("ctx", {}), given=given)
    if detail["type"] == "string_type" and isinstance(detail["input"], bool | int | float):
        reason += "; put it in quotes"
    return reason


def _shown(value: object) -> str:
    """A value as it was written, roughly."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case dict():
            return "a map"
        case list():
            return "a list"
        case _:
            text = repr(value)
            return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _locate(
    loc: tuple[int | str, ...], model: type[BaseModel], document: Mapping[str, JsonValue]
) -> tuple[str, type[BaseModel]]:
    """The path of an error as a person writes it, and the model that owns its last key.

    pydantic puts the tags of unions and, for keys of maps, `[key]` into a location; neither is part of the
    document.
    """
    path = ""
    owner = model
    current: JsonValue = dict(document)
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if (
            isinstance(current, dict)
            and isinstance(part, str)
            and (part in current or (last and part in owner.model_fields))
        ):
            field = owner.model_fields.get(part)
            path += f".{part}" if field or re.fullmatch(r"\w+", part) else f"[{part}]"
            current = current.get(part)
            if field is not None and not last:
                owner = next(models_in(field.annotation), owner)
        elif isinstance(current, list) and isinstance(part, int) and part < len(current):
            path += f"[{part}]"
            current = current[part]
    return path, owner


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The models that a field's type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def _suggestion(
    key: str, owner: type[BaseModel], model: type[BaseModel], root: str, unsuggested: Container[str]
) -> str:
    """`did you mean ...?` for an unknown key, or nothing.

    A field of that name elsewhere (a mistake of indentation) comes before the owner's fields with a longer
    or a similar name.
    """
    elsewhere = [path for path in _paths(model, root) if path.rpartition(".")[2] == key]
    if len(elsewhere) == 1:
        return f"did you mean {elsewhere[0]}?"
    names = {_plain(name): name for name in owner.model_fields if name not in unsuggested}
    meant = [plain for plain in names if _plain(key) in plain] if len(_plain(key)) >= _SHORTEST_PART else []
    if not 0 < len(meant) <= _MOST_SUGGESTIONS:
        meant = difflib.get_close_matches(_plain(key), names, n=1, cutoff=_SIMILAR)
    return f"did you mean {' or '.join(names[plain] for plain in meant)}?" if meant else ""


def _paths(model: type[BaseModel], root: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{root}.{name}"
        for part in models_in(field.annotation):
            yield from _paths(part, f"{root}.{name}")


def _plain(key: str) -> str:
    """A key without what spellings differ in: `loraConfig` and `lora_config` are one."""
    return re.sub(r"[^a-z0-9]", "", key.lower())
