"""`torch_compile` on two ranks that hold a part of the model each changes nothing but the speed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.trainer.training_jobs import FULL, LORA, Fields, column, job_of, train_here, train_in_processes

from finetune_api.sharding import Sharding

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_a_compiled_model_in_parts_sees_the_losses_of_one_device(
    way: Fields, tiny_model: Path, tmp_path: Path
) -> None:
    fields: Fields = way | {"train_batch_size_per_device": 2, "num_epochs": 2}
    alone = job_of(tiny_model, tmp_path / "alone", fields | {"gradient_accumulation_steps": 2})
    compiled = job_of(
        tiny_model,
        tmp_path / "compiled",
        fields | {"num_devices": 2, "torch_compile": {"enabled": True}},
        sharding=Sharding(kind="fsdp"),
    )
    train_here(alone)
    train_in_processes(compiled, seconds=1000)

    for name in ("loss", "gradNorm", "evalLoss"):
        expected = column(tmp_path / "alone", name)
        assert len(expected) >= 2
        assert column(tmp_path / "compiled", name) == pytest.approx(expected, rel=1e-5, abs=1e-5)
