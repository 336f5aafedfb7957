"""Changes of single fields of a manifest: `spec.learning_rate=2e-4`, made before it is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.yaml_text import parse_value

_FORM = re.compile(r"(?P<path>spec(\.[^.\[\]=\s]+|\[[^\[\]]+\])+)=(?P<value>.*)", re.DOTALL)
_WITHOUT_SPEC = re.compile(r"(?!spec\b)[a-z]\w*(\.\w+)*=")
_PART = re.compile(r"\.([^.\[\]=\s]+)|\[([^\[\]]+)\]")


@dataclass(frozen=True)
class ChangedField:
    """A field of a spec, and the value that it is to have instead of the manifest's."""

    keys: tuple[str, ...]
    """Below `spec`: `("lora_config", "r")`. Of an item of a list it is its number, from 0."""
    value: JsonValue
    """None is a field that is absent."""

    @property
    def path(self) -> str:
        """The field as errors name it."""
        return _path(self.keys)


def changed_field(text: str) -> ChangedField:
    """Reads `spec.FIELD=VALUE`, of which the value is YAML: `2e-4`, `[a, b]`, `{r: 8}`.

    A key with dots stands in brackets, as does the number of an item: `spec.cluster.env[0].value=1`. Raises
    FineTuneError (InvalidSpec) for a text of another form, and for a value that is no YAML.
    """
    parts = _FORM.fullmatch(text)
    if parts is None:
        hint = f"; did you mean spec.{text}?" if _WITHOUT_SPEC.match(text) else ""
        raise FineTuneError(FailureClass.INVALID_SPEC, f"must be spec.FIELD=VALUE, is {text!r}{hint}")
    path = parts["path"]
    keys = tuple(dotted or bracketed for dotted, bracketed in _PART.findall(path.removeprefix("spec")))
    return ChangedField(keys, parse_value(parts["value"], path))


def with_changes(spec: Mapping[str, JsonValue], changes: Sequence[ChangedField]) -> dict[str, JsonValue]:
    """A spec, as it was written, with these changes made one after the other.

    Maps on the way to a field that are not there are made; what they hold is checked afterwards, with all
    else. Raises FineTuneError (InvalidSpec) with every change that has no place in the document.
    """
    problems: list[str] = []
    changed: JsonValue = dict(spec)
    for change in changes:
        try:
            changed = _changed(changed, change.keys, change.value, ())
        except ValueError as error:
            problems.append(f"{change.path}: {error}")
    if problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    return cast("dict[str, JsonValue]", changed)


def _changed(value: JsonValue, keys: Sequence[str], new: JsonValue, passed: tuple[str, ...]) -> JsonValue:
    """A value with what is at these keys in it replaced; what others share with it stays as it is."""
    if not keys:
        return new
    key, *rest = keys
    match value:
        case None | dict():
            above = value or {}
            return {**above, key: _changed(above.get(key), rest, new, (*passed, key))}
        case list() if not key.isdecimal() or int(key) >= len(value):
            raise ValueError(f"{_path(passed)} is a list of {len(value)}, which has no {key}")
        case list():
            items = list(value)
            items[int(key)] = _changed(items[int(key)], rest, new, (*passed, key))
            return items
        case _:
            raise ValueError(f"{_path(passed)} is {value!r}, which has no fields")


def _path(keys: Sequence[str]) -> str:
    return "spec" + "".join(f".{key}" if re.fullmatch(r"[a-zA-Z_]\w*", key) else f"[{key}]" for key in keys)
