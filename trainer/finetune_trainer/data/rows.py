"""Reads and checks rows that are lines of JSON: conversations, texts, and what they share with other rows.

A conversation is `{"messages": [{"role": ..., "content": ...}, ...]}`, or has another form of `forms`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Generic, TypeVar

from finetune_api.row_forms import COMPLETION, CONVERSATIONS, INSTRUCTION, TEXT
from finetune_trainer.data.forms import Fields, fields_of
from finetune_trainer.data.objects import (
    JsonObject,
    RowError,
    fault_of,
    kind_of,
    listed,
    parse_object,
    said_in,
)
from finetune_trainer.data.remarks import Remarks
from finetune_trainer.data.tools import LANGUAGE_TASKS, said_of_tools, tools_of

BLOCK_BYTES = 2**18
"""How much of a file is looked at together. On the way to tokens a text takes a hundred times its size."""
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    """Empty where an assistant only calls tools."""
    trained: bool = True
    """Whether an answer counts in the loss; not where its `weight` is 0, as in OpenAI's rows."""
    tool_calls: tuple[JsonObject, ...] = ()
    """Calls of the assistant, as `{"function": {"name": ..., "arguments": {...}}}`."""
    of_tool: tuple[tuple[str, str], ...] = ()
    """What else a tool's message says: its `name` and `tool_call_id`, where they are given."""


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation. Its system message, if it has one, comes first."""

    line: int
    """The 1-based line of the file, or the place that `places` made of it."""
    messages: tuple[Message, ...]
    tools: tuple[JsonObject, ...] = ()
    """Definitions of the tools that may be called."""
    prompt: int | None = None
    """How many messages are the prompt, where all that follows it counts; None where the answers count."""


@dataclass(frozen=True, slots=True)
class Text:
    """A row that is text as it stands, without a chat template."""

    line: int
    """See `Row`."""
    text: str
    """All of it."""
    prompt: str = ""
    """What it begins with and what counts only where all tokens do."""


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


@dataclass(frozen=True, slots=True)
class ReadLine(Generic[Parsed]):
    """The row in a line."""

    row: Parsed
    ignored: Sequence[str] = ()
    """Keys that change nothing."""
    form: str = ""
    """What is said of its form."""


def blocks(stream: BinaryIO) -> Iterator[Lines]:
    """The lines of a file, about BLOCK_BYTES of them at a time, or one line that is longer."""
    first = 1
    # Not str.splitlines, which also splits at characters that JSON allows inside a string.
    while lines := stream.readlines(BLOCK_BYTES):
        yield Lines(first, lines)
        first += len(lines)


def parse_rows(lines: Lines, task: str, columns: Mapping[str, str] | None = None) -> ParsedLines[Row | Text]:
    """The rows in some lines. Blank lines are skipped; a system message is moved to the front.

    The latter is as in LLMForge. `columns` are the rows' own names of keys. What is remarked are the keys
    that are ignored, and forms other than `messages`.
    """
    return parse_lines(lines, partial(_row, task, columns or {}))


def parse_lines(lines: Lines, read: Callable[[int, str], ReadLine[Parsed]]) -> ParsedLines[Parsed]:
    """What `read` makes of the number and the text of each line that is not blank.

    It returns a row, what is to be remarked of it, or raises RowError.
    """
    rows: list[Parsed] = []
    problems: list[str] = []
    remarks = Remarks()
    for number, raw in enumerate(lines.lines, start=lines.first):
        try:
            text = raw.decode("utf-8-sig")
            if not text.strip():
                continue
            found = read(number, text)
        except UnicodeDecodeError as error:
            problems.append(
                f"{number}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8 text"
            )
        except RowError as bad:
            problems += [f"{number}: {problem}" for problem in bad.problems]
        else:
            rows.append(found.row)
            for key in found.ignored:
                remarks.ignored(key, number)
            if found.form:
                remarks.has_form(found.form, number)
    return ParsedLines(rows, problems, remarks)


def _row(task: str, columns: Mapping[str, str], number: int, text: str) -> ReadLine[Row | Text]:
    fields = fields_of(parse_object(text, '{"messages": [...]}'), columns)
    if fields.form is TEXT:
        return ReadLine(_text(number, fields, task), fields.ignored, fields.form.words)
    if fields.form is COMPLETION:
        row, unknown = _completion(number, fields, task)
    else:
        messages, unknown = _conversation(fields, task)
        row = Row(number, messages, tools_of(fields, task))
    return ReadLine(row, [*fields.ignored, *unknown], fields.form.words)


def read_conversation(
    text: str, task: str, columns: Mapping[str, str] | None = None
) -> ReadLine[tuple[Message, ...]]:
    """The messages of a row, the system message first. Raises RowError, also for rows without messages."""
    fields = fields_of(parse_object(text, '{"messages": [...]}'), columns or {})
    if fields.form in (TEXT, COMPLETION):
        raise RowError(f"{fields.columns[fields.form.needed[0]]}: the task {task} needs messages")
    messages, unknown = _conversation(fields, task)
    if fields.values.get("tools"):
        unknown.append(fields.columns["tools"])
    return ReadLine(messages, [*fields.ignored, *unknown], fields.form.words)


def _conversation(fields: Fields, task: str) -> tuple[tuple[Message, ...], list[str]]:
    """The messages of a row and their keys that are ignored."""
    if fields.form is INSTRUCTION:
        return _answered_instruction(fields), []
    key = fields.form.needed[0]
    where = fields.columns[key]
    turns = listed(fields.values[key], where)
    naming = _naming(turns) if fields.form is CONVERSATIONS else OPENAI
    system = fields.values.get("system")
    if system and fields.form is CONVERSATIONS:
        said_in(system, fields.columns["system"])
        if isinstance(turns, list):
            turns = [{naming.role: "system", naming.content: system}, *turns]
    messages, unknown = read_messages(turns, where, task, naming)
    _check_roles(messages, task, where)
    return tuple(messages), unknown


def _answered_instruction(fields: Fields) -> tuple[Message, ...]:
    """Alpaca's row as a conversation: what is asked is the instruction, and the input below it."""
    problems = []
    for key in ("instruction", "output", "input", "system"):
        value = fields.values.get(key)
        fault = fault_of(value, "row")
        if fault is not None and (key in fields.form.needed or value not in (None, "")):
            problems.append(f"{fields.columns.get(key, key)}: {fault}")
    if fields.values.get("history"):
        problems.append(f"{fields.columns['history']}: is not supported; give such rows as messages")
    if problems:
        raise RowError(*problems)
    said = {key: str(value) for key, value in fields.values.items() if value}
    asked = "\n\n".join(said[key] for key in ("instruction", "input") if key in said)
    system = [Message("system", said["system"])] if "system" in said else []
    return (*system, Message("user", asked), Message("assistant", said["output"]))


def _text(number: int, fields: Fields, task: str) -> Text:
    where = fields.columns["text"]
    if task != "causal_lm":
        raise RowError(
            f"{where}: is plain text, in which no answer can be told; with spec.task causal_lm all tokens"
            " count, or give rows with a prompt and a completion"
        )
    return Text(number, said_in(fields.values["text"], where))


def _completion(number: int, fields: Fields, task: str) -> tuple[Row | Text, list[str]]:
    """A prompt and what follows it: two texts, or two lists of messages."""
    if task not in LANGUAGE_TASKS:
        raise RowError(f"{fields.columns['prompt']}: the task {task} needs messages")
    prompt, completion = (listed(fields.values[key], fields.columns[key]) for key in ("prompt", "completion"))
    if isinstance(prompt, list) != isinstance(completion, list):
        names = " and ".join(fields.columns[key] for key in ("prompt", "completion"))
        raise RowError(
            f"{names}: one is a text and the other a list; both must be texts, or lists of messages"
        )
    if isinstance(prompt, list):
        unknown: dict[str, None] = {}
        problems: list[str] = []
        parts: list[list[Message]] = []
        for key, turns in (("prompt", prompt), ("completion", completion)):
            try:
                messages, more = read_messages(turns, fields.columns[key], task)
            except RowError as bad:
                problems += bad.problems
            else:
                parts.append(messages)
                unknown |= dict.fromkeys(more)
        if problems:
            raise RowError(*problems)
        _check_roles([*parts[0], *parts[1]], task, fields.columns["completion"])
        return Row(number, (*parts[0], *parts[1]), tools_of(fields, task), len(parts[0])), list(unknown)
    texts = [said_in(fields.values[key], fields.columns[key]) for key in ("prompt", "completion")]
    return Text(number, "".join(texts), texts[0]), []


@dataclass(frozen=True, slots=True)
class Naming:
    """What the turns of a conversation call role and content, and roles."""

    role: str
    content: str
    roles: Mapping[str, str]
    """Names of roles beside our own, and ours."""
    shown: str
    """The roles, for people."""


OPENAI = Naming("role", "content", {}, "system, user or assistant")
SHAREGPT = Naming(
    "from",
    "value",
    {"human": "user", "gpt": "assistant", "observation": "tool"},
    "system, human or gpt",
)


def _naming(turns: object) -> Naming:
    """ShareGPT's names, or OpenAI's where the first turn has these."""
    first = turns[0] if isinstance(turns, list) and turns else None
    return OPENAI if isinstance(first, dict) and "role" in first and "from" not in first else SHAREGPT


def read_messages(
    turns: object, where: str, task: str, naming: Naming = OPENAI
) -> tuple[list[Message], list[str]]:
    """A list of messages, the system message first, and their keys that are ignored. Raises RowError."""
    if not isinstance(turns, list) or not turns:
        raise RowError(f"{where}: must be a list of at least one message, is {kind_of(turns)}")
    messages: list[Message] = []
    unknown: dict[str, None] = {}
    problems: list[str] = []
    for index, turn in enumerate(turns):
        try:
            messages.append(_message(turn, task, naming))
        except RowError as bad:
            problems += [f"{where}[{index}]{problem}" for problem in bad.problems]
        else:
            known = _known_keys(turn, messages[-1], task, naming)
            unknown |= dict.fromkeys(f"{where}[].{key}" for key in turn if key not in known)
    if problems:
        raise RowError(*problems)
    messages.sort(key=lambda message: message.role != "system")
    return messages, list(unknown)


def _known_keys(turn: JsonObject, message: Message, task: str, naming: Naming) -> tuple[str, ...]:
    weight = ("weight",) if _weighed(message.role, task) else ()
    calls = ("tool_calls",) if turn.get("tool_calls") else ()
    of_tool = tuple(key for key, _ in message.of_tool)
    return (naming.role, naming.content, *weight, *calls, *of_tool)


def _weighed(role: str, task: str) -> bool:
    """Whether a message's weight means something: in causal_lm all tokens count."""
    return task == "instruction_tuning" and role == "assistant"


def _message(turn: object, task: str, naming: Naming) -> Message:
    if not isinstance(turn, dict):
        raise RowError(
            f': must be an object {{"{naming.role}": ..., "{naming.content}": ...}}, is {kind_of(turn)}'
        )
    given, content = turn.get(naming.role), turn.get(naming.content)
    role = naming.roles.get(given, given) if isinstance(given, str) else given
    problems, calls, of_tool = said_of_tools(turn, role, task)
    known = ROLES + (("tool",) if task in LANGUAGE_TASKS else ())
    if role not in known:
        shown = naming.shown.replace(" or ", ", ") + " or tool" if "tool" in known else naming.shown
        problems.append(f".{naming.role}: must be {shown}, is {kind_of(given)}")
    silent = content in (None, "") and (turn.get("tool_calls") or (role == "tool" and content == ""))
    if isinstance(content, list):
        problems.append(
            f".{naming.content}: must be a text; lists of parts, such as images, are not supported"
        )
    elif not silent and (fault := fault_of(content)) is not None:
        problems.append(f".{naming.content}: {fault}")
    weight = turn.get("weight", 1) if _weighed(str(role), task) else 1
    if isinstance(weight, bool) or weight not in (0, 1):
        problems.append(f".weight: must be 0 or 1, is {kind_of(weight)}; 0 leaves the answer out of the loss")
    if problems:
        raise RowError(*problems)
    return Message(str(role), str(content or ""), weight != 0, calls, of_tool)


def _check_roles(messages: Sequence[Message], task: str, where: str = "messages") -> None:
    problems = []
    roles = [message.role for message in messages]
    if roles.count("system") > 1:
        problems.append(f"{where}: has {roles.count('system')} system messages; at most one is possible")
    if "user" not in roles:
        problems.append(f"{where}: has no user message")
    if task == "instruction_tuning" and "assistant" not in roles:
        problems.append(
            f"{where}: has no assistant message, so there is nothing to train on; with spec.task causal_lm"
            " all tokens count"
        )
    elif task == "classification" and "assistant" not in roles:
        problems.append(f"{where}: has no assistant message; the last one is the label")
    elif "assistant" in roles and not any(each.trained for each in messages if each.role == "assistant"):
        problems.append(f"{where}: every assistant message has weight 0, so there is nothing to train on")
    if problems:
        raise RowError(*problems)
