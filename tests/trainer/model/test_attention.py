"""Rows laid end to end must give the losses and gradients of the same rows padded, each under its mask."""

from __future__ import annotations

import peft
import pytest
import torch
from tests.trainer.model.architectures import WINDOW, model_of
from tests.trainer.training_jobs import largest_difference, rows_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_api.lora import LoraConfig
from finetune_trainer.data.layout import EndToEnd, Layout, Padded
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.model.adapters import with_adapters
from finetune_trainer.model.attention import attend_within_rows
from finetune_trainer.model.trial import findings
from finetune_trainer.tasks.language import LanguageObjective
from finetune_trainer.tasks.objective import base_of

ROWS = rows_of([17, WINDOW - 1, 1, 23, WINDOW + 1, 17], vocabulary=97)

Gradients = dict[str, torch.Tensor]


def loss_and_gradient(
    objective: LanguageObjective, layout: Layout, *, training: bool = True, rows: TokenizedRows = ROWS
) -> tuple[float, Gradients]:
    objective.train(training)
    objective.zero_grad()
    loss = objective(layout.batch(rows, range(len(rows)))).total / int(rows.predicted.sum())
    loss.backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None
    }
    return float(loss.detach()), gradients


def end_to_end(model: PreTrainedModel) -> LanguageObjective:
    attend_within_rows(model)
    return LanguageObjective(model, findings(AutoModelForCausalLM, model.config).scores)


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("llama", "sdpa"),
        ("llama, tied", "sdpa"),
        ("qwen3", "sdpa"),
        ("mistral", "sdpa"),
        ("mixtral", "sdpa"),
        ("gemma2", "eager"),
        ("gemma3", "sdpa"),
        ("granite", "sdpa"),
        ("cohere", "sdpa"),
        ("gpt_oss", "eager"),
    ],
)
def test_losses_and_gradients_are_those_of_padded_rows(name: str, attention: str) -> None:
    expected, its_gradient = loss_and_gradient(LanguageObjective(model_of(name, attention)), Padded(0))
    loss, gradient = loss_and_gradient(end_to_end(model_of(name, attention)), EndToEnd(0))

    assert loss == pytest.approx(expected, abs=1e-6)
    scale = max(float(each.abs().max()) for each in its_gradient.values())
    assert largest_difference(gradient, its_gradient) < 1e-5 * max(1.0, scale)


@pytest.mark.parametrize(
    ("name", "attention"),
    [("llama", "sdpa"), ("mistral", "sdpa"), ("gemma2", "eager"), ("gemma3", "sdpa"), ("gpt_oss", "eager")],
)
@pytest.mark.parametrize("lengths", [[23], [23, 23, 23], [WINDOW - 1] * 2])
def test_so_they_are_of_one_row_alone_and_of_rows_of_one_length(
    name: str, attention: str, lengths: list[int]
) -> None:
    rows = rows_of(lengths, vocabulary=97)
    expected, its_gradient = loss_and_gradient(
        LanguageObjective(model_of(name, attention)), Padded(0), rows=rows
    )
    loss, gradient = loss_and_gradient(end_to_end(model_of(name, attention)), EndToEnd(0), rows=rows)

    assert loss == pytest.approx(expected, abs=1e-6)
    scale = max(float(each.abs().max()) for each in its_gradient.values())
    assert largest_difference(gradient, its_gradient) < 1e-5 * max(1.0, scale)


def test_so_they_are_in_layers_that_peft_has_replicated() -> None:
    """Each of which has a configuration of its own."""

    def replicated() -> peft.PeftModel:
        torch.manual_seed(0)
        lora = LoraConfig.model_validate({"layer_replication": [[0, 2], [0, 2]], "init_lora_weights": False})
        return with_adapters(model_of("llama", "sdpa"), lora)

    expected, its_gradient = loss_and_gradient(LanguageObjective(replicated()), Padded(0))
    model = replicated()
    attend_within_rows(base_of(model))
    loss, gradient = loss_and_gradient(LanguageObjective(model), EndToEnd(0))

    assert loss == pytest.approx(expected, abs=1e-6)
    assert largest_difference(gradient, its_gradient) < 1e-5


def test_so_they_are_where_activations_are_computed_again() -> None:
    model = model_of("gemma3", "sdpa")
    expected, its_gradient = loss_and_gradient(end_to_end(model), EndToEnd(0))
    model.activation_checkpointing_enable()
    loss, gradient = loss_and_gradient(end_to_end(model), EndToEnd(0))
    assert loss == expected
    assert largest_difference(gradient, its_gradient) < 1e-7


def test_so_they_are_outside_training_where_models_turn_their_cache_on() -> None:
    expected, _ = loss_and_gradient(LanguageObjective(model_of("mistral", "sdpa")), Padded(0), training=False)
    loss, _ = loss_and_gradient(end_to_end(model_of("mistral", "sdpa")), EndToEnd(0), training=False)
    assert loss == pytest.approx(expected, abs=1e-6)


def test_a_row_does_not_see_the_rows_beside_it() -> None:
    objective = end_to_end(model_of("mistral", "sdpa"))
    batch = EndToEnd(0).batch(ROWS, range(len(ROWS)))
    first = int(ROWS.lengths[0])
    with torch.no_grad():
        before = objective.model(**batch.inputs, use_cache=False).logits[0, :first]
        batch.input_ids[0, first:] = 5
        after = objective.model(**batch.inputs, use_cache=False).logits[0]
    assert torch.equal(before, after[:first])


def test_a_model_that_gets_rows_without_their_bounds_says_so() -> None:
    model = model_of("llama", "sdpa")
    attend_within_rows(model)
    with pytest.raises(ValueError, match="needs the bounds of the rows"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long))


def test_the_configuration_that_is_saved_does_not_tell_which_attention_trained() -> None:
    model = model_of("llama", "sdpa")
    before = model.config.to_json_string()
    attend_within_rows(model)
    assert model.config.to_json_string() == before
