"""From lines of a file to tokens. Other processes may do it too: it imports neither torch nor storage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.failure import FineTuneError
from finetune_trainer.data.chat import ChatFormat, Task
from finetune_trainer.data.remarks import Remarks
from finetune_trainer.data.rows import Lines, parse_rows
from finetune_trainer.data.tokens import TokenizedRows, offsets_of


@dataclass(frozen=True, slots=True)
class EncodedLines:
    """What some lines of a file are as tokens."""

    rows: TokenizedRows
    """Without those that have a problem; none where a line is no row."""
    unreadable: list[str]
    """Problems of lines that are no row, as `line: where: what`."""
    refused: list[str]
    """Problems of rows that cannot be written as text, in the same form."""
    remarks: Remarks


@dataclass(frozen=True)
class LineEncoder:
    """Turns lines into tokens, for the tasks `causal_lm` and `instruction_tuning`."""

    task: Task
    chat: ChatFormat

    def encode(self, lines: Lines, *, check_only: bool = False) -> EncodedLines:
        """The tokens of the rows in some lines, without truncation; with `check_only` problems alone."""
        parsed = parse_rows(lines, self.task)
        remarks = parsed.remarks
        refused: list[str] = []
        input_ids: list[NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
        trained: list[NDArray[np.bool_]] = [np.zeros(0, dtype=np.bool_)]
        numbers: list[int] = []
        for row in parsed.rows if not (parsed.problems or check_only) else []:
            try:
                encoded = self.chat.encode(row)
            except FineTuneError as error:
                refused += [f"{row.line}: {problem}" for problem in error.problems]
                continue
            input_ids.append(np.array(encoded.input_ids, dtype=np.int32))
            trained.append(np.array(encoded.trained, dtype=np.bool_))
            numbers.append(row.line)
            if encoded.left_out:
                remarks.leaves_out(row.line)
            controls = self.chat.control_tokens(row)
            if controls:
                remarks.controls(controls, row.line)
        rows = TokenizedRows(
            input_ids=np.concatenate(input_ids),
            trained=np.concatenate(trained),
            offsets=offsets_of([len(ids) for ids in input_ids[1:]]),
            lines=np.array(numbers, dtype=np.int64),
        )
        return EncodedLines(rows, parsed.problems, refused, remarks)
