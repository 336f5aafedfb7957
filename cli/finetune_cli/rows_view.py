"""Rows token by token: what is trained on in colour, or between marks where there are no colours."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from finetune_cli.plain_text import one_line, several_lines
from finetune_trainer.data.shown_rows import ShownRow, ShownToken

OPEN, CLOSE = "⟦", "⟧"
LINE_BREAK = "↵\n"
TRAINED = ("green", "bright_green bold")
NOT_TRAINED = ("dim", "none")
"""Styles by turns, so that it is seen where tokens begin."""


def show_rows(console: Console, rows: Sequence[ShownRow]) -> None:
    """Writes rows, and a line that says how to read them; nothing where there are no rows."""
    if not rows:
        return
    coloured = console.color_system is not None and not console.no_color
    console.print()
    console.print(_legend() if coloured else f"{OPEN}trained on{CLOSE}, not trained on, ↵ line break")
    for row in rows:
        console.print()
        console.print(one_line(f"{row.place}: {_what(row)}"), style="bold")
        console.print(_coloured(row.tokens) if coloured else marked(row.tokens))


def marked(tokens: Sequence[ShownToken]) -> str:
    """The text of tokens; what is trained on stands between OPEN and CLOSE."""
    parts, inside = [], False
    for token in tokens:
        if token.trained != inside:
            parts.append(OPEN if token.trained else CLOSE)
            inside = token.trained
        parts.append(several_lines(token.token, LINE_BREAK))
    return "".join(parts) + (CLOSE if inside else "")


def _what(row: ShownRow) -> str:
    shown = len(row.tokens)
    cut = f" of {row.length:,}" if shown < row.length else ""
    parts = [row.answer, None if row.label is None else f"label {row.label}", f"{shown:,}{cut} tokens"]
    return ", ".join(part for part in parts if part)


def _coloured(tokens: Sequence[ShownToken]) -> Text:
    text = Text()
    for index, token in enumerate(tokens):
        style = (TRAINED if token.trained else NOT_TRAINED)[index % 2]
        text.append(several_lines(token.token, LINE_BREAK), f"{style} reverse" if token.special else style)
    return text


def _legend() -> Text:
    return Text.assemble(
        ("trained", TRAINED[0]),
        (" on", TRAINED[1]),
        ", ",
        ("not", NOT_TRAINED[0]),
        (" trained", NOT_TRAINED[1]),
        (" on", NOT_TRAINED[0]),
        ", ",
        ("special token", "reverse"),
        ", ↵ line break; tokens by turns lighter and darker",
    )
