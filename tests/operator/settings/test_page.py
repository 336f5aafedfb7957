"""The page about the configuration is generated, complete, and right in its examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from finetune_api.failure import FineTuneError
from finetune_operator.settings.accelerator_profiles import AcceleratorProfile
from finetune_operator.settings.configuration import FILE, PREFIX, Configuration, load_configuration
from finetune_operator.settings.page import page

PAGE = Path(__file__).parents[3] / "docs/configuration.md"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == page(), (
        "run: python -m finetune_operator.settings.page > docs/configuration.md"
    )


def test_every_field_is_described() -> None:
    rows = {
        line.split("|")[1].strip(): line.split("|")[4].strip()
        for line in page().partition("## Other names")[0].splitlines()
        if line.startswith("| `")
    }
    fields = {*Configuration.model_fields, *AcceleratorProfile.model_fields}
    assert {name for name in fields if not rows[f"`{name}`"]} == set()


def test_the_pages_example_is_a_configuration(file: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", page(), re.DOTALL)
    file.write_text(example)
    configuration = load_configuration({FILE: str(file)})
    assert configuration.default_accelerator in configuration.profiles
    assert "V100" not in configuration.profiles
    assert configuration.devices.type_of("my-workstation-7") == configuration.default_accelerator


def test_the_pages_mistakes_are_what_is_said(file: Path) -> None:
    shown = [
        line.strip().replace("/etc/finetune-operator/config.yaml", str(file))
        for line in page().splitlines()
        if line.startswith("    /") or "IMGAE" in line
    ]
    file.write_text("trainer_image: x\nhead: {memory: 16 GB}\n")
    with pytest.raises(FineTuneError) as caught:
        load_configuration({FILE: str(file), f"{PREFIX}TRAINER_IMGAE": "x"})
    assert list(caught.value.problems) == shown
