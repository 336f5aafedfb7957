"""Two ranks train as one does: over NCCL where there are two GPUs, else over gloo on the one.

NCCL refuses two ranks on one GPU; there a group of one rank shows that NCCL works at all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.gpu.training import losses, losses_of_ranks, prepared_job
from tests.trainer.training_jobs import FULL, LORA, Fields

RELATIVE_TOLERANCE = 1e-5


@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_two_ranks_have_the_losses_of_one(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path, way: Fields
) -> None:
    gpus = torch.cuda.device_count()
    backend, devices = ("nccl", ["cuda:0", "cuda:1"]) if gpus > 1 else ("gloo", ["cuda:0", "cuda:0"])
    print(f"{gpus} GPUs: two ranks over {backend}")
    one = prepared_job(tiny_model, tiny_rows, way, dtype="fp32", train_batch_size_per_device=4)
    two = prepared_job(tiny_model, tiny_rows, way, dtype="fp32", train_batch_size_per_device=2, num_devices=2)

    of_two = losses_of_ranks(two, tmp_path / "two", backend, devices)

    assert len(of_two) == two.numbers.total_steps
    assert of_two == pytest.approx(losses(one, tmp_path / "one"), rel=RELATIVE_TOLERANCE)


def test_nccl_sums_on_a_gpu(tmp_path: Path) -> None:
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        values = torch.arange(4.0, dtype=torch.float64, device="cuda")
        torch.distributed.all_reduce(values)
        assert values.tolist() == [0, 1, 2, 3]
    finally:
        torch.distributed.destroy_process_group()
