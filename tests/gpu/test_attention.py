"""Which attention is used: flash-attn where it is asked for and installed, else PyTorch's own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.gpu.test_precision import BF16_TOLERANCE
from tests.gpu.training import losses, prepared_job
from tests.trainer.training_jobs import LORA, spec_of

from finetune_trainer.model.load import load_model

INSTALLED = find_spec("flash_attn") is not None


@pytest.mark.parametrize("asked_for", [True, False])
def test_flash_attention_is_used_where_it_is_asked_for_and_installed(
    tiny_model: Path, asked_for: bool
) -> None:
    model = load_model(spec_of(tiny_model, LORA, flash_attention_2=asked_for), dtype="bf16", on_gpu=True)

    expected = "flash_attention_2" if asked_for and INSTALLED else "sdpa"
    assert model.config._attn_implementation == expected


def test_a_job_that_asks_for_it_trains_as_one_that_does_not(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    asked = losses(prepared_job(tiny_model, tiny_rows, LORA, flash_attention_2=True), tmp_path / "asked")
    plain = losses(prepared_job(tiny_model, tiny_rows, LORA), tmp_path / "plain")

    assert asked == pytest.approx(plain, abs=BF16_TOLERANCE)
