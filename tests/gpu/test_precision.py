"""The precisions of the arithmetic: fp32 as on a CPU, and bf16, the default on GPUs, beside fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.gpu.training import losses, prepared_job
from tests.trainer.training_jobs import FULL, LORA, Fields

FP32_TOLERANCE = 1e-4
BF16_TOLERANCE = 5e-3
"""Of losses of about 7: bf16 has 8 bits of precision, and each step adds to the error."""


@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_fp32_trains_as_on_a_cpu(tiny_model: Path, tiny_rows: Path, tmp_path: Path, way: Fields) -> None:
    prepared = prepared_job(tiny_model, tiny_rows, way, dtype="fp32")

    on_gpu = losses(prepared, tmp_path / "gpu")

    assert len(on_gpu) == prepared.numbers.total_steps
    assert on_gpu == pytest.approx(losses(prepared, tmp_path / "cpu", device="cpu"), abs=FP32_TOLERANCE)


@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_bf16_is_the_default_and_trains_nearly_as_fp32(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path, way: Fields
) -> None:
    in_bf16 = losses(prepared_job(tiny_model, tiny_rows, way), tmp_path / "bf16")
    in_fp32 = losses(prepared_job(tiny_model, tiny_rows, way, dtype="fp32"), tmp_path / "fp32")

    assert in_bf16 == pytest.approx(in_fp32, abs=BF16_TOLERANCE)
    assert in_bf16 != pytest.approx(in_fp32, abs=1e-6)
    assert in_bf16[-1] < in_bf16[0]


def test_a_base_in_4_bits_trains_as_on_a_cpu_and_nearly_so_in_bf16(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    prepared = prepared_job(tiny_model, tiny_rows, LORA, dtype="fp32", quantization="nf4")

    in_fp32 = losses(prepared, tmp_path / "gpu")
    in_bf16 = losses(prepared_job(tiny_model, tiny_rows, LORA, quantization="nf4"), tmp_path / "bf16")

    assert in_fp32 == pytest.approx(losses(prepared, tmp_path / "cpu", device="cpu"), abs=FP32_TOLERANCE)
    assert in_bf16 == pytest.approx(in_fp32, abs=BF16_TOLERANCE)
