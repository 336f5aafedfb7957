"""What is to be remarked about the rows of a file, counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import BaseModel

SHOWN_TOKENS = 3


class Found(BaseModel):
    """In which rows something is."""

    rows: int
    first: int
    """The line of the first one."""

    def words(self, place: Callable[[int], str]) -> str:
        """For people; `place` says where a line is."""
        return f"{self.rows} rows have it, the first in {place(self.first)}"


def _line(number: int) -> str:
    return f"line {number}"


class Remarks(BaseModel):
    """What was found in the rows of a file, or of a part of one.

    It is added row by row and part by part, in the order of the file.
    """

    forms: dict[str, Found] = {}
    """The forms of rows, in words, but for the one that needs none."""
    ignored_keys: dict[str, Found] = {}
    """Keys of rows and messages that change nothing."""
    left_out: Found | None = None
    """Rows of whose answers something is not in the text."""
    control_tokens: list[str] = []
    """The first SHOWN_TOKENS + 1 of the control tokens that stand in contents."""
    with_control_tokens: Found | None = None

    def ignored(self, key: str, line: int) -> None:
        """Adds a row with a key that is ignored."""
        self._ignored(key, Found(rows=1, first=line))

    def has_form(self, form: str, line: int) -> None:
        """Adds a row of a form."""
        self._form(form, Found(rows=1, first=line))

    def leaves_out(self, line: int) -> None:
        """Adds a row of whose answers something is not in the text."""
        self.left_out = _both(self.left_out, Found(rows=1, first=line))

    def controls(self, tokens: Sequence[str], line: int) -> None:
        """Adds a row in whose contents control tokens stand."""
        self._name(tokens)
        self.with_control_tokens = _both(self.with_control_tokens, Found(rows=1, first=line))

    def add(self, later: Remarks) -> None:
        """Adds what was found in rows that come later."""
        for form, found in later.forms.items():
            self._form(form, found)
        for key, found in later.ignored_keys.items():
            self._ignored(key, found)
        self.left_out = _both(self.left_out, later.left_out)
        self._name(later.control_tokens)
        self.with_control_tokens = _both(self.with_control_tokens, later.with_control_tokens)

    def words(self, path: str, source: str, place: Callable[[int], str] = _line) -> list[str]:
        """The remarks for people.

        `source` names what writes conversations as text, `place` says where a line is.
        """
        remarks = [f"{path}: {found.rows} rows are {form}" for form, found in self.forms.items()]
        remarks += [
            f"{path}: {key} is ignored; {found.words(place)}" for key, found in self.ignored_keys.items()
        ]
        if self.left_out is not None:
            left_out = "leaves out a part of what is answered, such as thoughts, which is not trained on"
            remarks.append(f"{path}: {source} {left_out}; {self.left_out.words(place)}")
        if self.with_control_tokens is not None:
            shown = ", ".join(self.control_tokens[:SHOWN_TOKENS])
            shown += ", ..." if len(self.control_tokens) > SHOWN_TOKENS else ""
            read = "in what is said is read as a control token; take it out where it is meant as text"
            remarks.append(f"{path}: {shown} {read}; {self.with_control_tokens.words(place)}")
        return remarks

    def _ignored(self, key: str, found: Found) -> None:
        self.ignored_keys[key] = _both(self.ignored_keys.get(key), found) or found

    def _form(self, form: str, found: Found) -> None:
        self.forms[form] = _both(self.forms.get(form), found) or found

    def _name(self, tokens: Sequence[str]) -> None:
        self.control_tokens = list(dict.fromkeys([*self.control_tokens, *tokens]))[: SHOWN_TOKENS + 1]


def _both(earlier: Found | None, later: Found | None) -> Found | None:
    if earlier is None or later is None:
        return earlier or later
    return Found(rows=earlier.rows + later.rows, first=earlier.first)
