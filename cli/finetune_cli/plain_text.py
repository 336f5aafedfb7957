"""Text for people on standard output and standard error: no markup, no wrapping, one remark per line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

SHOWN_PROBLEMS = 100
"""Most problems that are printed: a file of data may have a million bad rows."""


def console(*, stderr: bool = False) -> Console:
    """A console that prints text literally.

    What a user wrote is not read as markup or emoji, and paths are not broken into lines.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say_problems(problems: Sequence[str]) -> None:
    """Prints `error: ...` on standard error, one line per problem."""
    _say("error: ", "bold red", problems[:SHOWN_PROBLEMS])
    if len(problems) > SHOWN_PROBLEMS:
        _say("error: ", "bold red", [f"and {len(problems) - SHOWN_PROBLEMS} more"])


def say_warnings(warnings: Iterable[str]) -> None:
    """Prints `warning: ...` on standard error, one line per warning."""
    _say("warning: ", "yellow", warnings)


def one_line(text: str) -> str:
    """The text with its control characters written out, so that it stays on its line and moves no cursor."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def several_lines(text: str, line_break: str = "\n") -> str:
    """The text with its control characters written out, but for line breaks, which become `line_break`."""
    return line_break.join(one_line(line) for line in text.split("\n"))


def _say(prefix: str, style: str, remarks: Iterable[str]) -> None:
    errors = console(stderr=True)
    for remark in remarks:
        errors.print(Text.assemble((prefix, style), one_line(remark)))
