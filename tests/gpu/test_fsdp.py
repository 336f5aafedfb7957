"""Devices that hold a part of the model each train as one does: over NCCL, one GPU alone, or two.

With one GPU the rank has all parts, and all else of FSDP is as with more: layers are gathered and given back,
gradients exchanged, weights offloaded to the host over gloo, states saved in parts.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.gpu.test_precision import BF16_TOLERANCE
from tests.gpu.training import losses, losses_of_ranks, prepared_job
from tests.trainer.training_jobs import FULL, LORA, Fields

from finetune_api.numbers import ResolvedPrecision
from finetune_api.sharding import Sharding
from finetune_trainer.model.parts import ON_GPUS

SHARDED = {
    "resharded": Sharding(kind="fsdp"),
    "kept": Sharding(kind="fsdp", reshard=False),
    "offloaded": Sharding(kind="fsdp", cpu_offload=True),
}
RANKS = [1, 2] if torch.cuda.device_count() > 1 else [1]
TOLERANCE: dict[ResolvedPrecision, float] = {"fp32": 1e-4, "bf16": BF16_TOLERANCE}


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_the_losses_are_those_of_one_device(
    tiny_model: Path,
    tiny_rows: Path,
    tmp_path: Path,
    way: Fields,
    dtype: ResolvedPrecision,
    kind: str,
    ranks: int,
) -> None:
    one = prepared_job(tiny_model, tiny_rows, way, dtype=dtype, train_batch_size_per_device=4)
    expected = losses(one, tmp_path / "one")

    shared = prepared_job(
        tiny_model,
        tiny_rows,
        way,
        dtype=dtype,
        train_batch_size_per_device=2,
        gradient_accumulation_steps=2 // ranks,
        num_devices=ranks,
    )
    if ranks == 1:
        found = losses(shared, tmp_path / "shared", sharding=SHARDED[kind])
    else:
        devices = [f"cuda:{rank}" for rank in range(ranks)]
        found = losses_of_ranks(shared, tmp_path / "shared", ON_GPUS, devices, SHARDED[kind])

    assert found == pytest.approx(expected, abs=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["resharded", "offloaded"])
@pytest.mark.parametrize("way", [LORA, FULL | {"export_dtype": "bf16"}], ids=["lora", "full"])
def test_a_run_that_is_stopped_goes_on(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path, way: Fields, kind: str
) -> None:
    prepared = prepared_job(tiny_model, tiny_rows, way, dtype="fp32")
    expected = losses(prepared, tmp_path / "undisturbed")

    losses(prepared, tmp_path / "stopped", sharding=SHARDED[kind], stop_after=4)
    assert losses(prepared, tmp_path / "stopped", sharding=SHARDED[kind]) == pytest.approx(expected, abs=1e-4)
