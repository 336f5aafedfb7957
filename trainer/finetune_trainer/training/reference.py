"""What a model says of pairs of answers before it is trained, with which their loss compares it.

It is computed once, of all rows, by the devices that train: so no second copy of the model is needed,
whatever is trained of it. TRL calls it `precompute_ref_log_probs`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.batches import Indices, evaluation_batches
from finetune_trainer.data.pairs import PairRows, Reference
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.plan.prepare import Prepared
from finetune_trainer.training.evaluate import Found, found_for, of_all_documents
from finetune_trainer.training.forward import Forward


def reference_of(forward: Forward, prepared: Prepared, told: Callable[[float], None]) -> Reference:
    """What the model, which is not trained yet, says of all rows. All ranks must call this.

    `told` is called at first and after every batch: with the part that is done of this rank's, 0 to 1.
    """
    train, validation = prepared.train, prepared.validation
    assert isinstance(train, PairRows)
    rows = [train, validation] if isinstance(validation, PairRows) else [train]
    parallel = forward.parallel
    batches = [
        evaluation_batches(
            each.lengths,
            rank=parallel.rank,
            num_devices=parallel.num_devices,
            batch_size=prepared.numbers.eval_batch_size_per_device,
        )
        for each in rows
    ]
    told(0)
    count, done = sum(map(len, batches)), itertools.count(1)
    of_train, *of_validation = [
        _log_probabilities(forward, each, of_each, lambda: told(next(done) / count))
        for each, of_each in zip(rows, batches, strict=True)
    ]
    if not isinstance(validation, PairRows):
        return Reference(of_train, None, None)
    return Reference(of_train, of_validation[0], validation.fingerprint)


def compared(prepared: Prepared, reference: Reference | None) -> tuple[TokenizedRows, TokenizedRows | None]:
    """The rows of a job, for training and for validation, with what their loss compares them with.

    Raises FineTuneError (InvalidData) where the run began with other validation rows.
    """
    train, validation = prepared.train, prepared.validation
    if reference is None:
        return train, validation
    assert isinstance(train, PairRows)
    compared_train = PairRows(train.documents, reference.train)
    if not isinstance(validation, PairRows):
        return compared_train, None
    if validation.fingerprint != reference.validated:
        raise FineTuneError(
            FailureClass.INVALID_DATA,
            "spec.valid_path: the rows are not those that this run began with, and what the model said of"
            " these before training is not known; put them back, or begin anew in another storage directory",
        )
    return compared_train, PairRows(validation.documents, reference.validation)


@torch.no_grad()
def _log_probabilities(
    forward: Forward, rows: PairRows, batches: Sequence[Indices], done: Callable[[], None]
) -> NDArray[np.float32]:
    """Of each document the sum over its tokens that count; shape (documents,). The same on every rank.

    `batches` are those of this rank; `done` is called after each.
    """
    forward.module.eval()
    found: list[Found] = []
    for indices in batches:
        found.append(found_for(rows, indices, forward(rows, indices)))
        done()
    forward.module.train()
    return of_all_documents(forward.parallel, found)
