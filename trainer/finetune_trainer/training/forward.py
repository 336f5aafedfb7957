"""The forward pass, in training and in validation: from rows to a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from finetune_api.numbers import ResolvedPrecision
from finetune_trainer.data.batches import Indices
from finetune_trainer.data.layout import Layout
from finetune_trainer.data.pairs import PairRows
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.parallel.parallel import Parallel
from finetune_trainer.tasks.objective import Loss


@dataclass(frozen=True)
class Forward:
    """Computes the loss of rows."""

    module: torch.nn.Module
    """The objective, as `Parallel.place` returned it."""
    parallel: Parallel
    layout: Layout
    dtype: ResolvedPrecision

    def __call__(self, rows: TokenizedRows, indices: Sequence[int] | Indices) -> Loss:
        """Computes the loss of the rows with these indices, in fp32 or, by autocast, in bf16."""
        device = self.parallel.device
        batch = self.layout.batch(rows, indices)
        if isinstance(rows, PairRows) and (reference := rows.reference_of(indices)) is not None:
            batch = replace(batch, reference=torch.from_numpy(reference))
        batch = batch.to(device)
        # Copies in bf16 that are kept to the end of the pass would be a whole model, where ranks have parts.
        cached = not self.parallel.in_parts
        with torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=self.dtype == "bf16", cache_enabled=cached
        ):
            loss: Loss = self.module(batch)
        return loss
