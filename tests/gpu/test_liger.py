"""Liger's kernels train as PyTorch's own do."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.gpu.test_fsdp import SHARDED, TOLERANCE
from tests.gpu.training import losses, prepared_job
from tests.trainer.training_jobs import FULL, LORA, Fields

from finetune_api.numbers import ResolvedPrecision
from finetune_trainer.model.load import load_model
from finetune_trainer.tasks.objective import base_of

ON: Fields = {"liger_kernel": {"enabled": True}}


def test_norms_activations_and_rotations_are_computed_by_them(tiny_model: Path, tiny_rows: Path) -> None:
    spec = prepared_job(tiny_model, tiny_rows, LORA, **ON).spec
    layer = base_of(load_model(spec, dtype="bf16", on_gpu=True)).get_submodule("model.layers.0")

    for name in ("input_layernorm", "mlp", "self_attn"):
        assert "forward" in vars(layer.get_submodule(name))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("way", [LORA, {**LORA, "quantization": "nf4"}, FULL], ids=["lora", "nf4", "full"])
def test_the_losses_are_those_of_pytorchs_own(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path, way: Fields, dtype: ResolvedPrecision
) -> None:
    expected = losses(prepared_job(tiny_model, tiny_rows, way, dtype=dtype), tmp_path / "own")
    found = losses(prepared_job(tiny_model, tiny_rows, way, dtype=dtype, **ON), tmp_path / "liger")

    assert found == pytest.approx(expected, abs=TOLERANCE[dtype])


@pytest.mark.parametrize("recomputes", [True, False], ids=["recomputed", "kept"])
@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_so_they_are_of_a_model_in_parts(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path, way: Fields, recomputes: bool
) -> None:
    fields: Fields = {"dtype": "fp32", "gradient_checkpointing": recomputes}
    expected = losses(prepared_job(tiny_model, tiny_rows, way, **fields), tmp_path / "own")
    found = losses(
        prepared_job(tiny_model, tiny_rows, way, **fields, **ON),
        tmp_path / "liger",
        sharding=SHARDED["resharded"],
    )

    assert found == pytest.approx(expected, abs=TOLERANCE["fp32"])
