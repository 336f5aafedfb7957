"""docs/fields.md is what the models say."""

from __future__ import annotations

from pathlib import Path

from finetune_api.reference import reference
from finetune_api.spec import FineTuneJobSpec

PAGE = Path(__file__).parents[2] / "docs" / "fields.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == reference(), "run: python -m finetune_api.reference > docs/fields.md"


def test_every_field_of_the_spec_is_described() -> None:
    rows = {line.split("|")[1].strip(): line.split("|")[4].strip() for line in reference().splitlines() if line.startswith("| `")}
    assert {name for name in FineTuneJobSpec.model_fields if not rows[f"`{name}`"]} == set()
