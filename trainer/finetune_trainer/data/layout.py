"""Lays the rows of a forward pass out as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from finetune_trainer.data.batches import Indices
from finetune_trainer.data.tokens import IGNORED, TokenizedRows


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass: rows padded on the right. All tensors have the shape (rows, length)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    """1 on tokens, 0 on padding."""
    labels: torch.Tensor
    """What each position predicts, already shifted: the next token, or IGNORED where that does not count."""

    def to(self, device: torch.device) -> Batch:
        """A copy of the batch on a device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


class Layout(Protocol):
    """A way to lay rows out as tensors."""

    def batch(self, rows: TokenizedRows, indices: Sequence[int] | Indices) -> Batch:
        """Makes a batch of the rows with these indices.

        Without any, the batch is one token that predicts nothing. A device without rows so still takes
        part in the forward pass, with a loss of zero.
        """


@dataclass(frozen=True)
class Padded:
    """One row of the tensors for each row, padded on the right."""

    pad_token_id: int
    length: int | None = None
    """The length in tokens that every batch is padded to; None pads to the batch's longest row."""

    def batch(self, rows: TokenizedRows, indices: Sequence[int] | Indices) -> Batch:
        """See `Layout`."""
        width = self.length or max((len(rows.row(int(index))[0]) for index in indices), default=1)
        shape = (max(1, len(indices)), width)
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED, dtype=torch.long)
        if not len(indices):
            attention_mask[:, 0] = 1
        for position, index in enumerate(indices):
            ids, _ = rows.row(int(index))
            input_ids[position, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            attention_mask[position, : len(ids)] = 1
            labels[position, : len(ids)] = torch.from_numpy(rows.labels(int(index)))
        return Batch(input_ids, attention_mask, labels)
