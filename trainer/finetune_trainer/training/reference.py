"""What a model says of pairs of answers before it is trained, with which their loss compares it.

It is computed once, of all rows, by the devices that train: so no second copy of the model is needed,
whatever is trained of it. TRL calls it `precompute_ref_log_probs`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.batches import evaluation_batches
from finetune_trainer.data.pairs import PairRows, Reference
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.plan.prepare import Prepared
from finetune_trainer.training.evaluate import found_for, of_all_documents
from finetune_trainer.training.forward import Forward


def reference_of(forward: Forward, prepared: Prepared) -> Reference:
    """What the model, which is not trained yet, says of all rows. All ranks must call this."""
    batch_size = prepared.numbers.eval_batch_size_per_device
    train, validation = prepared.train, prepared.validation
    assert isinstance(train, PairRows)
    of_train = _log_probabilities(forward, train, batch_size)
    if not isinstance(validation, PairRows):
        return Reference(of_train, None, None)
    return Reference(of_train, _log_probabilities(forward, validation, batch_size), validation.fingerprint)


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
def _log_probabilities(forward: Forward, rows: PairRows, batch_size: int) -> NDArray[np.float32]:
    """Of each document the sum over its tokens that count; shape (documents,). The same on every rank."""
    parallel = forward.parallel
    forward.module.eval()
    batches = evaluation_batches(
        rows.lengths, rank=parallel.rank, num_devices=parallel.num_devices, batch_size=batch_size
    )
    found = [found_for(rows, indices, forward(rows, indices)) for indices in batches]
    forward.module.train()
    return of_all_documents(parallel, found)
