"""Reads files of rows, a part at a time, and checks every row before any is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.encoding import LineEncoder
from finetune_trainer.data.processes import encoded, processes_for
from finetune_trainer.data.remarks import Remarks
from finetune_trainer.data.rows import Lines, Row, blocks, parse_rows
from finetune_trainer.data.tokens import FileTokens, RowWriter
from finetune_trainer.storage.open import open_input, size_of


def read_tokens(path: str, encoder: LineEncoder, writer: RowWriter) -> tuple[FileTokens, str]:
    """Reads a file and gives all its rows to `writer`; returns them, and the SHA-256 of what was read.

    `path` is any that `open_input` takes. Raises FineTuneError: InvalidData with every problem of every line
    that is no row as `path:line: where: what`, or else of every row that cannot be written as text, or what
    `open_input` raises.
    """
    content = hashlib.sha256()
    unreadable: list[str] = []
    refused: list[str] = []
    remarks = Remarks()
    rows = 0
    with open_input(path) as stream:
        processes = processes_for(size_of(stream))
        with closing(encoded(_hashed(stream, content), encoder, processes)) as parts:
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
        problems = (f"{path}:{problem}" for problem in unreadable or refused)
        raise FineTuneError(FailureClass.INVALID_DATA, *problems)
    return FileTokens(writer.finish(), remarks), content.hexdigest()


def read_rows(path: str, task: str) -> list[Row]:
    """Reads all rows of a file that is small, and raises as `read_tokens` does."""
    rows: list[Row] = []
    problems: list[str] = []
    with open_input(path) as stream:
        for lines in blocks(stream):
            parsed = parse_rows(lines, task)
            rows += parsed.rows
            problems += parsed.problems
    if problems:
        raise FineTuneError(FailureClass.INVALID_DATA, *(f"{path}:{problem}" for problem in problems))
    if not rows:
        raise _no_rows(path)
    return rows


def _hashed(stream: BinaryIO, content: hashlib._Hash) -> Iterator[Lines]:
    for lines in blocks(stream):
        for line in lines.lines:
            content.update(line)
        yield lines


def _no_rows(path: str) -> FineTuneError:
    return FineTuneError(
        FailureClass.INVALID_DATA, f'{path}: holds no rows; give one {{"messages": [...]}} a line'
    )
