"""Where a row is: its file, and the line or the row in it."""

from __future__ import annotations

from collections.abc import Callable

from finetune_trainer.data.files import Format, RowFile
from finetune_trainer.storage.inputs import Inputs
from finetune_trainer.storage.open import open_input

Place = Callable[[int], str]
"""Says where the row with a number is."""
_FILE_BITS = 40
"""A row's number is that of its line, and above these bits that of its file."""


def numbered(file: int, line: int) -> int:
    """The number of a row in the file with this index."""
    return (file << _FILE_BITS) + line


class Places:
    """Where rows of some files are, by their numbers."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self._formats: dict[int, Format] = {}

    def is_format(self, file: int, found: Format) -> None:
        """Notes the format of a file; that of others is found when it is asked for."""
        self._formats[file] = found

    def __call__(self, number: int) -> str:
        """As `train.jsonl:17` or `train.csv: row 17`."""
        file, line = divmod(number, 1 << _FILE_BITS)
        return f"{self.inputs.files[file]}{':' if self._has_lines(file) else ': row '}{line}"

    def briefly(self, number: int) -> str:
        """The same where the one file is named already, as `line 17`."""
        file, line = divmod(number, 1 << _FILE_BITS)
        if self.inputs.names is None:
            return f"{'line' if self._has_lines(file) else 'row'} {line}"
        return self(number)

    def told(self, problem: str) -> str:
        """A problem that begins with the number of its row, with its place instead."""
        number, _, what = problem.partition(":")
        return f"{self(int(number))}:{what}"

    def _has_lines(self, file: int) -> bool:
        if file not in self._formats:
            path = self.inputs.files[file]
            with open_input(path) as stream:
                self._formats[file] = RowFile(path, stream).format
        return self._formats[file] is Format.LINES
