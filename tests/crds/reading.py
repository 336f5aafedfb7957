"""Reads a spec that a test writes down in part, and walks over the models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel
from tests.crds.wrong_specs import RIGHT

from finetune_api.explain import models_in
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import read_spec
from finetune_api.spec import FineTuneJobSpec
from finetune_api.yaml_text import parse


def spec_of(text: str) -> FineTuneJobSpec:
    """The spec that a text adds to the right one, whose fields it may replace."""
    right, _ = parse(RIGHT, "right.yaml")
    added, _ = parse(text, "spec.yaml") if text else ({}, [])
    return read_spec(right | added)


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(FineTuneError) as raised:
        spec_of(text)
    assert raised.value.failure_class is FailureClass.INVALID_SPEC
    return raised.value.problems


def all_models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and those of its fields, and of their fields."""
    yield model
    for field in model.model_fields.values():
        for part in models_in(field.annotation):
            yield from all_models(part)
