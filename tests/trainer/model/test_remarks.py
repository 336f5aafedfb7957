"""What transformers remarks is passed on once, and not printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.trainer.model_directories import copy_of, set_keys
from tests.trainer.training_jobs import LORA, spec_of
from transformers.utils import logging as transformers_logging

from finetune_trainer.model.remarks import transformers_remarks
from finetune_trainer.plan.prepare import prepare


def test_a_setting_of_the_model_that_transformers_does_not_know_is_a_warning_of_the_plan(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    rope = json.loads((model / "config.json").read_text())["rope_parameters"]
    set_keys(model / "config.json", rope_parameters={**rope, "stretch": 2})

    prepared = prepare(spec_of(model, LORA, train_path=str(tiny_rows), valid_path=None))

    [remark] = [each for each in prepared.warnings if "transformers remarks" in each]
    assert remark.startswith("spec.model_id: transformers remarks: ")
    assert "stretch" in remark


def test_a_model_without_peculiarities_has_no_remark(tiny_model: Path, tiny_rows: Path) -> None:
    prepared = prepare(spec_of(tiny_model, LORA, train_path=str(tiny_rows), valid_path=None))

    assert [each for each in prepared.warnings if "transformers remarks" in each] == []


def test_each_is_passed_on_once_on_one_line_and_transformers_log_is_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = transformers_logging.get_logger()
    before = (logger.level, list(logger.handlers), logger.propagate)
    remarks: list[str] = []

    with transformers_remarks("spec.model_id", remarks):
        for _ in range(2):
            logger.warning("two\nlines")
        logger.info("nothing of interest")

    assert remarks == ["spec.model_id: transformers remarks: two lines"]
    assert (logger.level, list(logger.handlers), logger.propagate) == before
    assert capsys.readouterr() == ("", "")
