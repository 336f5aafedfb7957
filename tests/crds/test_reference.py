"""docs/fields.md is what the models say."""

from __future__ import annotations

from pathlib import Path

from finetune_api.reference import reference
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

PAGE = Path(__file__).parents[2] / "docs" / "fields.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == reference(), "run: make generate"


def test_every_field_is_described() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in reference().splitlines()
        if line.startswith("| `")
    ]
    names = {row[0].strip("`") for row in rows}
    assert names >= set(FineTuneJobSpec.model_fields)
    assert names >= {field.alias for field in FineTuneJobStatus.model_fields.values()}
    assert [row for row in rows if not row[-1]] == []


def test_a_model_that_is_in_several_places_comes_once_with_all_of_them() -> None:
    page = reference()
    assert page.count("# `status.checkpoints`, `status.bestCheckpoint`, `status.latestCheckpoint`\n") == 1
    resources = [f"`spec.cluster.{each}.resources`" for each in ("head", "worker", "prepare", "submitter")]
    assert page.count(f"# {', '.join(resources)}\n") == 1
