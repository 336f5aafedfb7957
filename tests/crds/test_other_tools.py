"""The hints for other tools' fields point at fields that there are."""

from __future__ import annotations

import pytest
from pydantic import BaseModel
from tests.crds.reading import problems_of

from finetune_api.explain import models_in
from finetune_api.other_tools import FIELDS, HINTS, QUANTIZATION
from finetune_api.spec import FineTuneJobSpec


@pytest.mark.parametrize("field", FIELDS)
def test_a_hint_names_a_field_that_there_is(field: str) -> None:
    *above, last = field.split(".")
    owner: type[BaseModel] = FineTuneJobSpec
    for name in above:
        [owner] = models_in(owner.model_fields[name].annotation)

    assert last in owner.model_fields


def test_each_name_is_explained_once_and_is_no_field_of_ours() -> None:
    names = [*QUANTIZATION, *(name for names in FIELDS.values() for name in names)]

    assert len(names) == len(HINTS)
    assert HINTS.keys() & FineTuneJobSpec.model_fields.keys() == set()


@pytest.mark.parametrize("name", HINTS)
def test_a_key_of_another_tool_gets_its_hint(name: str) -> None:
    assert problems_of(f"{name}: 1") == (f"spec.{name}: is not a known field; {HINTS[name]}",)
