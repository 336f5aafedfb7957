"""Objects in lines of JSON, and the words for what is wrong with them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

JsonObject = dict[str, object]

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character outside Unicode's basic plane. JSON can contain it, but no tokenizer can read it."""


class RowError(Exception):
    """A row is wrong. Each problem says where in it, what is wrong and what would be right."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems


def parse_object(text: str, form: str, keys: Sequence[str] = ()) -> JsonObject:
    """The object in a line, which has these keys; `form` shows what is wanted. Raises RowError."""
    document = _parse(text)
    if not isinstance(document, dict):
        raise RowError(f"must be an object {form}, is {kind_of(document)}")
    missing = [key for key in keys if key not in document]
    if missing:
        raise RowError(*(f"{key}: is missing; the row has {keys_of(document)}" for key in missing))
    return document


def keys_of(document: JsonObject) -> str:
    """The keys of an object, in words."""
    return ", ".join(document)[:200] or "no keys"


def listed(value: object, where: str) -> object:
    """A value, or what it holds where it is a list as a text of JSON, as in CSV. Raises RowError."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(
            f"{where}: is a text that is no JSON; write the list as JSON, or save the rows as JSON lines or"
            " Parquet, which hold lists"
        ) from error


def said_in(value: object, where: str) -> str:
    """A text of a row that says something. Raises RowError."""
    problem = fault_of(value, "row")
    if problem is not None:
        raise RowError(f"{where}: {problem}")
    return str(value)


def fault_of(value: object, owner: str = "message") -> str | None:
    """What is wrong with a value of an `owner` that must be a text that says something; None for nothing."""
    if not isinstance(value, str):
        return f"must be a text, is {kind_of(value)}"
    if not value.strip():
        return f"is empty; give it a text or leave the {owner} out"
    if _SURROGATE.search(value):
        return r"holds a \ud800 to \udfff that is half of a character; repair the text"
    return None


def _parse(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise RowError(
            f"is not JSON: {error.msg} at column {error.colno}; a line holds one whole object"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"cannot be read as JSON: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise RowError(*(f"{key}: is given twice in one object; keep one" for key in twice))
    return found


def kind_of(value: object) -> str:
    """What a value of JSON is, in words."""
    match value:
        case None:
            return "missing or null"
        case []:
            return "empty"
        case dict():
            return "an object"
        case list():
            return "a list"
        case str():
            return repr(value)[:80]
        case _:
            return json.dumps(value)[:80]
