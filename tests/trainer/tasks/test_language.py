from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.trainer.training_jobs import VALIDATION_ROWS, rows_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.data.layout import Batch, Padded
from finetune_trainer.data.tokens import IGNORED
from finetune_trainer.tasks.language import LanguageObjective

NOTHING: list[int] = []
LAYOUT = Padded(pad_token_id=3)


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    return loaded


def test_the_loss_is_the_sum_over_the_tokens_that_count_of_what_transformers_gives_each_row(
    model: PreTrainedModel,
) -> None:
    sums = []
    for index in range(len(VALIDATION_ROWS)):
        ids, trained = (torch.tensor(part) for part in VALIDATION_ROWS.row(index))
        # transformers shifts labels itself, and gives a mean.
        labels = torch.where(trained, ids.long(), IGNORED)
        mean = model(input_ids=ids.long()[None], labels=labels[None]).loss
        sums.append(mean.item() * int(trained[1:].sum()))
    batch = LAYOUT.batch(VALIDATION_ROWS, range(len(VALIDATION_ROWS)))
    loss = LanguageObjective(model)(batch)
    assert loss.total.shape == ()
    assert loss.total.item() == pytest.approx(sum(sums), rel=1e-6)


def test_the_sum_is_in_fp32_whatever_the_model_computes_in(model: PreTrainedModel) -> None:
    objective = LanguageObjective(model).to(torch.bfloat16)
    assert objective(LAYOUT.batch(VALIDATION_ROWS, [0, 1])).total.dtype == torch.float32


def without_labels(batch: Batch) -> Batch:
    nothing = torch.full_like(batch.labels, IGNORED)
    return replace(batch, labels=nothing, counted=batch.counted[:0])


@pytest.mark.parametrize(
    "batch",
    [LAYOUT.batch(rows_of([3]), NOTHING), without_labels(LAYOUT.batch(rows_of([6, 9]), [0, 1]))],
    ids=["no rows", "rows without labels"],
)
def test_a_batch_in_which_nothing_counts_has_a_loss_of_zero_and_gradients_of_zero(
    model: PreTrainedModel, batch: Batch
) -> None:
    loss = LanguageObjective(model)(batch).total
    loss.backward()
    assert loss == 0.0
    assert all(
        parameter.grad is not None and torch.equal(parameter.grad, torch.zeros_like(parameter))
        for parameter in model.parameters()
    )


def test_an_empty_batch_has_the_same_metrics_as_any_other(model: PreTrainedModel) -> None:
    objective = LanguageObjective(model)
    full, empty = (objective(LAYOUT.batch(VALIDATION_ROWS, indices)) for indices in ([0, 1], NOTHING))
    assert full.metrics.keys() == empty.metrics.keys()
