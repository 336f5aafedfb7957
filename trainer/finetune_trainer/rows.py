"""Reads chat rows: JSON lines of `{"messages": [{"role": ..., "content": ...}, ...]}`, every one checked before any is used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.storage import open_input

ROLES = ("system", "user", "assistant")
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
"""Message keys that a chat template may drop without a word: training on such rows would teach something else."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation, a system message first if it has one."""

    line: int
    """1-based line of the file."""
    messages: tuple[Message, ...]


class _RowError(Exception):
    """What is wrong with a row: where in it, and what would be right."""


def read_rows(path: str, task: str) -> tuple[list[Row], list[str]]:
    """All rows of a file that a spec names, and remarks about keys that are ignored. Blank lines do not count.

    A system message is moved to the front, as in LLMForge. Raises FineTuneError: InvalidData with every bad line as
    `path:line: where: what`, or what `open_input` raises.
    """
    rows: list[Row] = []
    problems: list[str] = []
    ignored: Counter[str] = Counter()
    first_lines: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            row, unknown = _row(number, line, task)
        except _RowError as problem:
            problems.append(f"{path}:{number}: {problem}")
            continue
        rows.append(row)
        for key in unknown:
            ignored[key] += 1
            first_lines.setdefault(key, number)
    if not rows and not problems:
        problems.append(f'{path}: is empty; give one {{"messages": [...]}} a line')
    if problems:
        raise FineTuneError(FailureClass.INVALID_DATA, *problems)
    return rows, [f"{path}:{first_lines[key]}: {key} is ignored, here and in {count - 1} other rows" for key, count in ignored.items()]


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their 1-based numbers."""
    with open_input(path) as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                reason = f"byte {error.start + 1} is not UTF-8; save the file as UTF-8 text"
                raise FineTuneError(FailureClass.INVALID_DATA, f"{path}:{number}: {reason}") from error
            if line.strip():
                yield number, line


def _row(number: int, line: str, task: str) -> tuple[Row, list[str]]:
    """The row on a line, and the keys of it that are ignored."""
    document = _parse(line)
    if not isinstance(document, dict):
        raise _RowError(f'must be an object {{"messages": [...]}}, is {_kind(document)}')
    if "messages" not in document:
        keys = ", ".join(document) or "none"
        raise _RowError(f"messages: is missing; the row has the keys {keys}")
    turns = document["messages"]
    if not isinstance(turns, list) or not turns:
        raise _RowError(f"messages: must be a list of at least one message, is {_kind(turns)}")
    unknown = [key for key in document if key != "messages"]
    messages = []
    for index, turn in enumerate(turns):
        messages.append(_message(turn, f"messages[{index}]"))
        unknown += [f"messages[].{key}" for key in turn if key not in ("role", "content")]
    _check_roles(messages, task)
    messages.sort(key=lambda message: message.role != "system")
    return Row(number, tuple(messages)), list(dict.fromkeys(unknown))


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, dict):
        raise _RowError(f'{where}: must be an object {{"role": ..., "content": ...}}, is {_kind(turn)}')
    for key in TOOL_KEYS:
        if turn.get(key):
            raise _RowError(f"{where}.{key}: tool calls are not supported; leave such rows out")
    role = turn.get("role")
    if role not in ROLES:
        raise _RowError(f"{where}.role: must be system, user or assistant, is {_kind(role)}")
    content = turn.get("content")
    if isinstance(content, list):
        raise _RowError(f"{where}.content: must be a text; lists of parts, such as images, are not supported")
    if not isinstance(content, str):
        raise _RowError(f"{where}.content: must be a text, is {_kind(content)}")
    if not content.strip():
        raise _RowError(f"{where}.content: is empty; give it a text or leave the message out")
    return Message(role, content)


def _check_roles(messages: list[Message], task: str) -> None:
    roles = [message.role for message in messages]
    if roles.count("system") > 1:
        raise _RowError(f"messages: has {roles.count('system')} system messages; at most one is possible")
    if "user" not in roles:
        raise _RowError("messages: has no user message")
    if task == "instruction_tuning" and "assistant" not in roles:
        raise _RowError("messages: has no assistant message, so there is nothing to train on; with spec.task causal_lm all tokens count")


def _parse(line: str) -> object:
    try:
        return json.loads(line, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise _RowError(f"is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise _RowError("is nested too deeply to be a row") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _RowError(f"{twice}: is given twice; keep one")
    return found


def _kind(value: object) -> str:
    match value:
        case None:
            return "missing or null"
        case []:
            return "empty"
        case dict():
            return "an object"
        case list():
            return "a list"
        case _:
            return repr(value)[:80]
