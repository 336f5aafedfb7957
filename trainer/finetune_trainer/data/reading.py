"""Reads files of rows, a part at a time, and checks every row before any is used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import TypeVar

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.encoding import LineEncoder
from finetune_trainer.data.files import RowFile
from finetune_trainer.data.places import Places, numbered
from finetune_trainer.data.processes import encoded, processes_for
from finetune_trainer.data.remarks import Remarks
from finetune_trainer.data.rows import Lines, Row, Text, parse_rows
from finetune_trainer.data.tokens import FileTokens, RowWriter
from finetune_trainer.storage.inputs import Inputs, digest_of, inputs_at, size_of_inputs
from finetune_trainer.storage.open import open_input

Placed = TypeVar("Placed", bound=Row | Text)


class _Files:
    """The lines of some files, one file after the other, and what they held."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self.places = Places(inputs)
        self._contents: list[str] = []

    def lines(self) -> Generator[Lines]:
        """All lines, with numbers that `places` understands."""
        for index, path in enumerate(self._inputs.files):
            with open_input(path) as stream:
                file = RowFile(path, stream)
                self.places.is_format(index, file.format)
                for lines in file.lines():
                    yield Lines(numbered(index, lines.first), lines.lines)
                self._contents.append(file.sha256)

    @property
    def digest(self) -> str:
        """That of the inputs, once all lines are read."""
        return digest_of(self._inputs, self._contents)


def read_tokens(path: str, encoder: LineEncoder, writer: RowWriter) -> tuple[FileTokens, str]:
    """Reads what is at a path and gives all its rows to `writer`; returns them, and the digest of it all.

    `path` is any that `inputs_at` takes. Raises FineTuneError: InvalidData with every problem of every line
    that is no row as `path:line: where: what`, or else of every row that cannot be written as text, or what
    `inputs_at` raises.
    """
    inputs = inputs_at(path)
    files = _Files(inputs)
    unreadable: list[str] = []
    refused: list[str] = []
    remarks = Remarks()
    rows = 0
    with closing(encoded(files.lines(), encoder, processes_for(size_of_inputs(inputs)))) as parts:
        for part in parts:
            unreadable += part.unreadable
            refused += part.refused
            rows += len(part.rows)
            if not (unreadable or refused):
                writer.append(part.rows)
                remarks.add(part.remarks)
    if not (rows or unreadable or refused):
        raise _no_rows(path)
    if unreadable or refused:
        problems = map(files.places.told, unreadable or refused)
        raise FineTuneError(FailureClass.INVALID_DATA, *problems)
    return FileTokens(writer.finish(), remarks), files.digest


def read_rows(path: str, task: str, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Reads all conversations of a file that is small, and raises as `read_tokens` does."""
    files = _Files(inputs_at(path))
    rows: list[Row | Text] = []
    problems: list[str] = []
    for lines in files.lines():
        parsed = parse_rows(lines, task, columns)
        rows += parsed.rows
        problems += parsed.problems
    if problems:
        raise FineTuneError(FailureClass.INVALID_DATA, *map(files.places.told, problems))
    if not rows:
        raise _no_rows(path)
    return [row for row in rows if isinstance(row, Row)]


def first_row(path: str, task: str, columns: Mapping[str, str] | None = None) -> Row | Text | None:
    """The first row that is one; None where the first part of the file has none. Raises as `inputs_at`."""
    with closing(_Files(inputs_at(path)).lines()) as parts:
        for lines in parts:
            return next(iter(parse_rows(lines, task, columns).rows), None)
    return None


def first_rows(path: str, count: int, parse: Callable[[Lines], Iterable[Placed]]) -> list[tuple[str, Placed]]:
    """The first rows that `parse` finds, each with its place; no more is read than they need.

    Raises as `inputs_at`.
    """
    files = _Files(inputs_at(path))
    found: list[tuple[str, Placed]] = []
    with closing(files.lines()) as parts:
        for lines in parts:
            found += [(files.places(row.line), row) for row in parse(lines)]
            if len(found) >= count:
                break
    return found[:count]


def rows_at(
    inputs: Inputs, numbers: Sequence[int], parse: Callable[[Lines], Iterable[Placed]]
) -> list[tuple[str, Placed]]:
    """The rows with these numbers that `parse` finds, in this order, each with its place.

    `numbers` are those of `Places`. No more is read than they need. Raises as `open_input`.
    """
    files = _Files(inputs)
    found: dict[int, Placed] = {}
    with closing(files.lines()) as parts:
        for part in parts:
            for number in numbers:
                index = number - part.first
                if 0 <= index < len(part.lines):
                    found |= {row.line: row for row in parse(Lines(number, [part.lines[index]]))}
            if len(found) == len(numbers):
                break
    return [(files.places(number), found[number]) for number in numbers if number in found]


def _no_rows(path: str) -> FineTuneError:
    return FineTuneError(
        FailureClass.INVALID_DATA, f'{path}: holds no rows; give one {{"messages": [...]}} a line'
    )
