"""How the rows of a forward pass are laid out as tensors."""

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
    """What one forward pass gets: rows padded on the right to one length; all of shape (rows, length)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    """1 on tokens, 0 on padding."""
    labels: torch.Tensor
    """What each position predicts, already shifted: the next token, or IGNORED."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


class Layout(Protocol):
    """A way to lay rows out."""

    def batch(self, rows: TokenizedRows, indices: Sequence[int] | Indices) -> Batch:
        """The batch of these rows.

        Without rows it is one token that predicts nothing: the device still takes part in the step, with a
        loss of zero.
        """


@dataclass(frozen=True)
class Padded:
    """A row of the tensors for each row, filled up on the right."""

    pad_token_id: int
    length: int | None = None
    """Tokens that every batch is padded to; None pads to the longest of its rows."""

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
