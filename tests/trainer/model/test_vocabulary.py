"""Embeddings grow by rows for new tokens, which begin as the mean of what the tokens were written with."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from tests.trainer.training_jobs import FULL, LORA, TINY_VOCABULARY, Fields, spec_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_api.failure import FineTuneError
from finetune_trainer.data.label_tokens import NewToken
from finetune_trainer.model.load import check_in_parts, load_config, load_model, load_tokenizer, shape
from finetune_trainer.model.vocabulary import embedding_names, grow
from make_tiny_model import make_tiny_model

CLASSES: Fields = {"classifier_config": {"label_tokens": ["[[good]]", "a", "[[bad]]"]}}
GOOD, BAD = TINY_VOCABULARY, TINY_VOCABULARY + 1
WRITTEN = (5, 6, 9)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model of 1,024 tokens, with or without an output that shares the input's embeddings."""
    return make_tiny_model(tmp_path / "tiny", tie_word_embeddings=request.param)


def plain(directory: Path) -> PreTrainedModel:
    return cast("PreTrainedModel", AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32))


def embeddings(model: PreTrainedModel) -> list[torch.Tensor]:
    """The rows of the input and of the output."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    return [module.get_parameter("weight").detach() for module in modules]


def test_a_new_token_begins_as_the_mean_of_what_it_was_written_with(directory: Path) -> None:
    before, model = plain(directory), plain(directory)

    grow(model, TINY_VOCABULARY + 2, [NewToken(BAD, WRITTEN)], mesh=None)

    for rows, were in zip(embeddings(model), embeddings(before), strict=True):
        assert torch.equal(rows[:TINY_VOCABULARY], were)
        assert torch.equal(rows[BAD], were[list(WRITTEN)].double().mean(dim=0).float())
        assert torch.equal(rows[GOOD], were.double().mean(dim=0).float()), "a token that nobody names"
    assert len(embedding_names(model)) == len(embedding_names(before))
    ids = torch.tensor([[1, 2, BAD]])
    assert model(input_ids=ids).logits.shape == (1, 3, TINY_VOCABULARY + 2)
    assert model.config.vocab_size == TINY_VOCABULARY + 2


def test_a_model_with_room_for_a_token_stays_as_large_as_it_is(directory: Path) -> None:
    before, model = plain(directory), plain(directory)
    unused = TINY_VOCABULARY - 1

    grow(model, TINY_VOCABULARY - 4, [NewToken(unused, WRITTEN)], mesh=None)

    for rows, were in zip(embeddings(model), embeddings(before), strict=True):
        assert torch.equal(rows[:unused], were[:unused])
        assert torch.equal(rows[unused], were[list(WRITTEN)].double().mean(dim=0).float())


@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_the_shape_of_a_classifier_counts_its_labels(directory: Path, way: Fields) -> None:
    spec = spec_of(directory, way | CLASSES)
    known = shape(spec, load_config(spec))
    model = load_model(spec, dtype="fp32", on_gpu=False)

    assert load_tokenizer(spec).convert_tokens_to_ids(["[[good]]", "[[bad]]"]) == [GOOD, BAD]
    assert known.vocabulary == TINY_VOCABULARY + 2
    parameters = list(model.parameters())
    assert known.total_parameters == sum(each.numel() for each in parameters)
    assert known.trainable_parameters == sum(each.numel() for each in parameters if each.requires_grad)
    assert known.warnings == ()


def test_with_parts_of_the_model_adapters_cannot_train_new_tokens(directory: Path) -> None:
    with pytest.raises(FineTuneError, match="new tokens need whole embeddings") as refused:
        check_in_parts(spec_of(directory, LORA | CLASSES))
    assert str(refused.value).startswith("spec.classifier_config.label_tokens: with lora_config, ")

    check_in_parts(spec_of(directory, FULL | CLASSES))
    words: Fields = {"classifier_config": {"label_tokens": ["a", "b"]}}
    check_in_parts(spec_of(directory, LORA | words))
