"""Reads and checks rows that are lines of JSON: conversations, and what they share with other rows.

A conversation is `{"messages": [{"role": ..., "content": ...}, ...]}`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Generic, TypeVar

from finetune_trainer.data.remarks import Remarks

BLOCK_BYTES = 2**18
"""How much of a file is looked at together. On the way to tokens a text takes a hundred times its size."""
ROLES = ("system", "user", "assistant")
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
"""Keys of a message that a chat template may drop silently: the row would then teach something else."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character outside Unicode's basic plane. JSON can contain it, but no tokenizer can read it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    trained: bool = True
    """Whether an answer counts in the loss; not where its `weight` is 0, as in OpenAI's rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation. Its system message, if it has one, comes first."""

    line: int
    """The 1-based line of the file."""
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of a file that follow each other."""

    first: int
    """The 1-based number of the first one."""
    lines: list[bytes]
    """Each with its line break."""


Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class ParsedLines(Generic[Parsed]):
    """The rows in some lines of a file."""

    rows: list[Parsed]
    problems: list[str]
    """Those of all lines that are no row, as `line: where: what`."""
    remarks: Remarks


class RowError(Exception):
    """A row is wrong. Each problem says where in it, what is wrong and what would be right."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems


def blocks(stream: BinaryIO) -> Iterator[Lines]:
    """The lines of a file, about BLOCK_BYTES of them at a time, or one line that is longer."""
    first = 1
    # Not str.splitlines, which also splits at characters that JSON allows inside a string.
    while lines := stream.readlines(BLOCK_BYTES):
        yield Lines(first, lines)
        first += len(lines)


def parse_rows(lines: Lines, task: str) -> ParsedLines[Row]:
    """The conversations in some lines. Blank lines are skipped; a system message is moved to the front.

    The latter is as in LLMForge. What is remarked are the keys that are ignored.
    """
    return parse_lines(lines, partial(_row, task))


def parse_lines(
    lines: Lines, read: Callable[[int, str], tuple[Parsed, Iterable[str]]]
) -> ParsedLines[Parsed]:
    """What `read` makes of the number and the text of each line that is not blank.

    It returns a row and the keys that are ignored, which are remarked, or raises RowError.
    """
    rows: list[Parsed] = []
    problems: list[str] = []
    remarks = Remarks()
    for number, raw in enumerate(lines.lines, start=lines.first):
        try:
            text = raw.decode("utf-8-sig")
            if not text.strip():
                continue
            row, unknown = read(number, text)
        except UnicodeDecodeError as error:
            problems.append(
                f"{number}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8 text"
            )
        except RowError as bad:
            problems += [f"{number}: {problem}" for problem in bad.problems]
        else:
            rows.append(row)
            for key in unknown:
                remarks.ignored(key, number)
    return ParsedLines(rows, problems, remarks)


def _row(task: str, number: int, text: str) -> tuple[Row, list[str]]:
    messages, unknown = read_conversation(text, task)
    return Row(number, messages), unknown


def read_conversation(text: str, task: str) -> tuple[tuple[Message, ...], list[str]]:
    """The messages of a row, the system message first, and its keys that are ignored. Raises RowError."""
    document = parse_object(text, '{"messages": [...]}', ["messages"])
    unknown = [key for key in document if key != "messages"]
    messages, unknown_in_messages = read_messages(document["messages"], "messages", task)
    _check_roles(messages, task)
    return tuple(messages), [*unknown, *unknown_in_messages]


def parse_object(text: str, form: str, keys: Sequence[str]) -> dict[str, object]:
    """The object in a line, which has these keys; `form` shows what is wanted. Raises RowError."""
    document = _parse(text)
    if not isinstance(document, dict):
        raise RowError(f"must be an object {form}, is {kind_of(document)}")
    missing = [key for key in keys if key not in document]
    if missing:
        raise RowError(
            *(f"{key}: is missing; the row has {', '.join(document) or 'no keys'}" for key in missing)
        )
    return document


def read_messages(turns: object, where: str, task: str) -> tuple[list[Message], list[str]]:
    """A list of messages, the system message first, and their keys that are ignored. Raises RowError."""
    if not isinstance(turns, list) or not turns:
        raise RowError(f"{where}: must be a list of at least one message, is {kind_of(turns)}")
    messages: list[Message] = []
    unknown: dict[str, None] = {}
    problems: list[str] = []
    for index, turn in enumerate(turns):
        try:
            messages.append(_message(turn, task))
        except RowError as bad:
            problems += [f"{where}[{index}]{problem}" for problem in bad.problems]
        else:
            known = ("role", "content", *(["weight"] if _weighed(turn, task) else []))
            unknown |= dict.fromkeys(f"{where}[].{key}" for key in turn if key not in known)
    if problems:
        raise RowError(*problems)
    messages.sort(key=lambda message: message.role != "system")
    return messages, list(unknown)


def _weighed(turn: dict[str, object], task: str) -> bool:
    """Whether a message's weight means something: in causal_lm all tokens count."""
    return task == "instruction_tuning" and turn.get("role") == "assistant"


def _message(turn: object, task: str) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f': must be an object {{"role": ..., "content": ...}}, is {kind_of(turn)}')
    problems = [
        f".{key}: tool calls are not supported; leave such rows out" for key in TOOL_KEYS if turn.get(key)
    ]
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        problems.append(f".role: must be system, user or assistant, is {kind_of(role)}")
    if isinstance(content, list):
        problems.append(".content: must be a text; lists of parts, such as images, are not supported")
    elif not isinstance(content, str):
        problems.append(f".content: must be a text, is {kind_of(content)}")
    elif not content.strip():
        problems.append(".content: is empty; give it a text or leave the message out")
    elif _SURROGATE.search(content):
        problems.append(r".content: holds a \ud800 to \udfff that is half of a character; repair the text")
    weight = turn.get("weight", 1) if _weighed(turn, task) else 1
    if isinstance(weight, bool) or weight not in (0, 1):
        problems.append(f".weight: must be 0 or 1, is {kind_of(weight)}; 0 leaves the answer out of the loss")
    if problems:
        raise RowError(*problems)
    return Message(str(role), str(content), trained=weight != 0)


def _check_roles(messages: list[Message], task: str) -> None:
    problems = []
    roles = [message.role for message in messages]
    if roles.count("system") > 1:
        problems.append(f"messages: has {roles.count('system')} system messages; at most one is possible")
    if "user" not in roles:
        problems.append("messages: has no user message")
    if task == "instruction_tuning" and "assistant" not in roles:
        problems.append(
            "messages: has no assistant message, so there is nothing to train on; with spec.task causal_lm"
            " all tokens count"
        )
    elif task == "classification" and "assistant" not in roles:
        problems.append("messages: has no assistant message; the last one is the label")
    elif "assistant" in roles and not any(each.trained for each in messages if each.role == "assistant"):
        problems.append("messages: every assistant message has weight 0, so there is nothing to train on")
    if problems:
        raise RowError(*problems)


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
