from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from finetune_api.consistency import WITHOUT_EFFECT, WITHOUT_EFFECT_ON_PREFERENCES
from finetune_api.deepspeed import PUBLISHED, asked_sharding
from finetune_api.explain import models_in
from finetune_api.lora import UNBUILT_BLOCKS, UNBUILT_SWITCHES
from finetune_api.rules import SPELLINGS, UNBUILT_TASK_BLOCKS
from finetune_api.spec import FineTuneJobSpec

PAGE = (Path(__file__).parents[2] / "docs/migration.md").read_text()
OURS = {
    "cluster",
    "cpu_offload",
    "data_columns",
    "dtype",
    "early_stopping_patience",
    "eval_steps",
    "export_dtype",
    "logger.provider_config.log_dir",
    "max_grad_norm",
    "max_steps",
    "output",
    "packing",
    "parallelism",
    "quantization",
    "resume_from",
    "run_policy",
    "sample_max_tokens",
    "sample_prompts",
    "seed",
    "storage",
    "suspend",
    "train_path.path",
    "train_path.rows",
    "train_path.weight",
    "valid_fraction",
    "weight_decay",
}
"""Fields that LLMForge has not."""


def tables(heading: str) -> str:
    """The part of the page below a heading of the second level."""
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def keys(heading: str) -> list[str]:
    """The keys of all rows below a heading."""
    return re.findall(r"^\| `([^`]+)` \|", tables(heading), re.MULTILINE)


def marks() -> dict[str, str]:
    """What the page says of each key."""
    return dict(re.findall(r"^\| `([^`]+)` \| (\w+) \|", tables("Every key"), re.MULTILINE))


def paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All fields of a model and of those below it: `lora_config.r`."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for below in models_in(field.annotation):
            yield from paths(below, f"{prefix}{name}.")


LLMFORGES = [path for path in paths(FineTuneJobSpec) if not {path, path.partition(".")[0]} & OURS]


def is_known(key: str) -> bool:
    return key in LLMFORGES or key.partition(".")[0] in UNBUILT_TASK_BLOCKS


def expected_mark(path: str) -> set[str]:
    """What the code lets the page say."""
    field, _, below = path.partition(".")
    if field in UNBUILT_TASK_BLOCKS:
        return {"refused"}
    if field in WITHOUT_EFFECT or below in WITHOUT_EFFECT_ON_PREFERENCES:
        return {"warning"}
    if field == "lora_config" and below in {*UNBUILT_BLOCKS, *UNBUILT_SWITCHES, "loftq_config"}:
        return {"refused"}
    return {"yes", "silent"}


def test_every_key_of_llmforge_has_a_row() -> None:
    assert set(LLMFORGES) - set(keys("Every key")) == set()


@pytest.mark.parametrize("spelling", [*SPELLINGS, *SPELLINGS.values()])
def test_both_spellings_of_a_field_have_a_row(spelling: str) -> None:
    assert spelling in keys("Every key")


def test_no_row_is_of_a_key_that_is_not_known() -> None:
    assert [key for key in keys("Every key") if not is_known(key)] == []


def test_no_key_has_two_rows() -> None:
    rows = keys("Every key")

    assert sorted(rows) == sorted(set(rows))


def test_every_row_says_of_its_key_what_the_code_does() -> None:
    said = marks()

    assert said.keys() == set(keys("Every key"))
    assert {key: mark for key, mark in said.items() if mark not in expected_mark(key)} == {}


def test_keys_that_are_said_to_be_errors_are_unknown() -> None:
    errors = keys("Keys that are errors")

    assert errors
    assert [key for key in errors if is_known(key)] == []


def test_the_fields_that_llmforge_has_not_are_named_as_such() -> None:
    assert {field for field in OURS if f"`{field}" not in tables("Keys that LLMForge has not")} == set()
    assert set(paths(FineTuneJobSpec)) >= OURS


def test_of_every_published_deepspeed_file_the_page_says_what_it_is_here() -> None:
    rows = [row.split(" | ") for row in tables("DeepSpeed's file").splitlines() if row.startswith("| `zero")]
    said = {name: here for files, _, here in rows for name in re.findall(r"`([^`]+)\.json`", files)}

    assert said.keys() == PUBLISHED.keys()
    for name, here in said.items():
        document = {
            "model_id": "m",
            "train_path": "t",
            "num_devices": 2,
            "deepspeed": {"config_path": f"{name}.json"},
        }
        asked = asked_sharding(FineTuneJobSpec.model_validate(document))
        assert "`parallelism: fsdp`" in here
        assert asked.kind == "fsdp"
        assert ("`cpu_offload: true`" in here) == asked.cpu_offload
        assert ("stay gathered" in here) != asked.reshard
        assert ("within each node" in here) == asked.within_nodes
