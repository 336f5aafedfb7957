"""What rows say of tools: definitions, calls, and what names the call of a result."""

from __future__ import annotations

import json
from typing import cast

from finetune_trainer.data.forms import Fields
from finetune_trainer.data.objects import JsonObject, RowError, kind_of, listed

LANGUAGE_TASKS = ("causal_lm", "instruction_tuning")
"""The tasks whose conversations may hold calls of tools, and whose rows may be texts."""
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
"""Keys of a message that a chat template may drop silently: the row would then teach something else."""


def tools_of(fields: Fields, task: str) -> tuple[JsonObject, ...]:
    """The definitions of tools in a row."""
    given = fields.values.get("tools")
    where = fields.columns.get("tools", "tools")
    tools = listed(given, where)
    if not tools:
        return ()
    if task not in LANGUAGE_TASKS:
        raise RowError(f"{where}: tools are not supported with the task {task}; leave such rows out")
    if not isinstance(tools, list):
        raise RowError(f"{where}: must be a list of tools' definitions, or one as JSON, is {kind_of(tools)}")
    problems = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            problems.append(f"{where}[{index}]: must be an object, is {kind_of(tool)}")
        elif name_of_tool(tool) is None:
            problems.append(
                f"{where}[{index}]: has no name; a tool is {{type: function, function: {{name: ...}}}}"
            )
    if problems:
        raise RowError(*problems)
    return tuple(tools)


def name_of_tool(tool: JsonObject) -> str | None:
    """The name in a definition or a call, which stands in `function` or beside it."""
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) and name else None


def said_of_tools(
    turn: JsonObject, role: object, task: str
) -> tuple[list[str], tuple[JsonObject, ...], tuple[tuple[str, str], ...]]:
    """What is wrong with what a message says of tools, its calls, and what names the call of an answer."""
    if task not in LANGUAGE_TASKS:
        asked = [key for key in TOOL_KEYS if turn.get(key)]
        return [f".{key}: tool calls are not supported; leave such rows out" for key in asked], (), ()
    problems = []
    if turn.get("function_call"):
        problems.append(".function_call: is OpenAI's old form and not supported; write it as tool_calls")
    calls: tuple[JsonObject, ...] = ()
    if turn.get("tool_calls"):
        try:
            calls = _calls(turn["tool_calls"])
        except RowError as bad:
            problems += bad.problems
        if role != "assistant":
            problems.append(f".tool_calls: is the assistant's, and not supported in a message of {role}")
    of_tool = []
    for key in ("name", "tool_call_id"):
        value = turn.get(key)
        if role == "tool" and isinstance(value, str) and value:
            of_tool.append((key, value))
        elif key == "tool_call_id" and value:
            problems.append(".tool_call_id: is a text of a tool's message, and not supported in another one")
    return problems, calls, tuple(of_tool)


def _calls(given: object) -> tuple[JsonObject, ...]:
    """The calls of a message; arguments that are JSON as a text, as in OpenAI's rows, are read.

    Templates write them as JSON, and a text once more. Raises RowError.
    """
    calls = listed(given, ".tool_calls")
    if not isinstance(calls, list):
        raise RowError(f".tool_calls: must be a list of calls, is {kind_of(calls)}")
    problems: list[str] = []
    read: list[JsonObject] = []
    for index, call in enumerate(calls):
        where = f".tool_calls[{index}]"
        if not isinstance(call, dict) or name_of_tool(call) is None:
            problems.append(
                f"{where}: must be {{function: {{name: ..., arguments: {{...}}}}}}, is {kind_of(call)}"
            )
            continue
        function = cast("JsonObject", call.get("function", call))
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError):
                problems.append(
                    f"{where}.function.arguments: must be an object or one as JSON, is {kind_of(arguments)}"
                )
        if not isinstance(arguments, dict | None | str):
            problems.append(f"{where}.function.arguments: must be an object, is {kind_of(arguments)}")
        function = {**function, "arguments": arguments or {}}
        read.append(
            {**call, "function": function}
            if "function" in call
            else {"type": "function", "function": function}
        )
    if problems:
        raise RowError(*problems)
    return tuple(read)
