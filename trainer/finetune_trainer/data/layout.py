"""Lays the rows of a forward pass out as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_trainer.data.batches import Indices, deal, deal_evenly
from finetune_trainer.data.tokens import IGNORED, TokenizedRows, offsets_of


@dataclass(frozen=True)
class Bounds:
    """Where rows, or the documents in them, begin and end that are laid end to end."""

    position_ids: torch.Tensor
    """The position of each token in its row, shape (1, tokens)."""
    ends: torch.Tensor
    """0, and where each row ends; int32, shape (rows + 1,)."""
    longest: int
    """The tokens of the longest row."""


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass: rows padded on the right, or laid end to end as one.

    Tensors have the shape (rows, length) unless a field says otherwise.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    """What each position predicts, already shifted: the next token, or IGNORED where that does not count."""
    counted: torch.Tensor
    """The positions whose labels count, in the tensors laid flat; shape (positions,)."""
    predicted: torch.Tensor
    """How many of them each document has, one after the other; shape (documents,)."""
    reference: torch.Tensor | None = None
    """The log-probabilities of documents before training, where the loss compares with them: the sum of each
    one's tokens that count, shape (documents,)."""
    attention_mask: torch.Tensor | None = None
    """1 on tokens, 0 on padding; None without padding."""
    bounds: Bounds | None = None
    """None where each row of the tensors is a row."""

    @property
    def inputs(self) -> dict[str, torch.Tensor | int | None]:
        """The arguments of a transformers model, in whose attention rows do not see each other."""
        if self.bounds is None:
            return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        ends, longest = self.bounds.ends, self.bounds.longest
        return {
            "input_ids": self.input_ids,
            "position_ids": self.bounds.position_ids,
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def to(self, device: torch.device) -> Batch:
        """A copy of the batch on a device."""
        bounds = self.bounds
        if bounds is not None:
            bounds = Bounds(bounds.position_ids.to(device), bounds.ends.to(device), bounds.longest)
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, bounds=bounds, **moved)


class Layout(Protocol):
    """A way to lay rows out as tensors."""

    def batch(self, rows: TokenizedRows, indices: Sequence[int] | Indices) -> Batch:
        """Makes a batch of the rows with these indices.

        Without any, the batch is one token that predicts nothing. A device without rows so still takes
        part in the forward pass, with a loss of zero.
        """

    def deal(
        self, rows: TokenizedRows, indices: Indices, *, rank: int, num_devices: int, batch_size: int
    ) -> list[Indices]:
        """The micro-batches of one device, of a step with these rows; as many on every device."""


@dataclass(frozen=True)
class EndToEnd:
    """All rows one after the other in one row of the tensors, without padding."""

    pad_token_id: int
    """The token of a batch without rows."""

    def batch(self, rows: TokenizedRows, indices: Sequence[int] | Indices) -> Batch:
        """See `Layout`."""
        documents, indices = rows.laid_out(indices)
        if not len(indices):
            nothing = np.zeros(0, dtype=np.int64)
            return _batch([np.array([self.pad_token_id])], [np.array([IGNORED])], np.array([1]), nothing)
        return _batch(
            [documents.row(int(index))[0] for index in indices],
            [documents.labels(int(index)) for index in indices],
            documents.lengths[indices],
            documents.predicted[indices],
        )

    def deal(
        self, rows: TokenizedRows, indices: Indices, *, rank: int, num_devices: int, batch_size: int
    ) -> list[Indices]:
        """See `Layout`. Micro-batches have about as many tokens each."""
        tokens = rows.lengths[indices]
        return deal_evenly(indices, tokens, rank=rank, num_devices=num_devices, batch_size=batch_size)


def _batch(
    ids: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    lengths: NDArray[np.int64],
    predicted: NDArray[np.int64],
) -> Batch:
    ends = offsets_of(lengths)
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
    flat = np.concatenate(labels)
    return Batch(
        torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
        torch.from_numpy(flat)[None],
        torch.from_numpy(np.flatnonzero(flat != IGNORED)),
        torch.from_numpy(predicted),
        bounds=Bounds(
            torch.from_numpy(positions)[None], torch.from_numpy(ends.astype(np.int32)), int(lengths.max())
        ),
    )


@dataclass(frozen=True)
class Padded:
    """One row of the tensors for each row, padded on the right."""

    pad_token_id: int
    length: int | None = None
    """The length in tokens that every batch is padded to; None pads to the batch's longest row."""

    def batch(self, rows: TokenizedRows, indices: Sequence[int] | Indices) -> Batch:
        """See `Layout`."""
        documents, indices = rows.laid_out(indices)
        width = self.length or int(documents.lengths[indices].max(initial=1))
        shape = (max(1, len(indices)), width)
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED, dtype=torch.long)
        if not len(indices):
            attention_mask[:, 0] = 1
        for position, index in enumerate(indices):
            ids, _ = documents.row(int(index))
            input_ids[position, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            attention_mask[position, : len(ids)] = 1
            labels[position, : len(ids)] = torch.from_numpy(documents.labels(int(index)))
        counted = torch.nonzero(labels.flatten() != IGNORED).flatten()
        predicted = torch.from_numpy(documents.predicted[indices])
        return Batch(input_ids, labels, counted, predicted, attention_mask=attention_mask)

    def deal(
        self, rows: TokenizedRows, indices: Indices, *, rank: int, num_devices: int, batch_size: int
    ) -> list[Indices]:
        """See `Layout`. Micro-batches have rows in the order of the step."""
        del rows
        return deal(indices, rank=rank, num_devices=num_devices, batch_size=batch_size)
