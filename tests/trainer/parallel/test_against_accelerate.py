"""accelerate's FSDP2 as the oracle: on the same rows, two ranks must see the same losses.

What it wraps is transformers' model with transformers' loss, in a plain loop. An `Accelerator` itself shares
models between GPUs only, so what it calls to do so is called here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin  # type: ignore[import-untyped]
from accelerate.utils.fsdp_utils import fsdp2_prepare_model  # type: ignore[import-untyped]
from tests.trainer.training_jobs import FULL, column, in_processes, job_of, some_rows, train_in_processes
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from finetune_api.sharding import Sharding
from finetune_trainer.data.batches import row_order, step_rows
from finetune_trainer.training.job import TrainingJob


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """Twelve steps of eight rows each, none of them without a row on either rank; trained."""
    job = job_of(
        tiny_model,
        tmp_path_factory.mktemp("runs") / "ours",
        FULL,
        train=some_rows(24, seed=5),
        validation=None,
        sharding=Sharding(kind="fsdp"),
        num_devices=2,
        num_epochs=4,
        train_batch_size_per_device=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=False,
        weight_decay=0.0,
    )
    train_in_processes(job)
    return job


def train_by_accelerate(job: TrainingJob, results: Path, rank: int, num_devices: int) -> None:
    """Trains on every second row of each step, one at a time, and saves losses and gradient norms."""
    spec, numbers, rows = job.prepared.spec, job.prepared.numbers, job.prepared.train
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no", is_main_process=rank == 0
    )
    model = fsdp2_prepare_model(accelerator, AutoModelForCausalLM.from_pretrained(spec.model_id).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=numbers.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, numbers.num_warmup_steps, numbers.total_steps)
    losses, norms = [], []
    for step in range(numbers.total_steps):
        epoch, within = divmod(step, numbers.steps_per_epoch)
        indices = step_rows(row_order(spec.seed, epoch, len(rows)), within, numbers.effective_batch_size)
        weight = int(rows.predicted[indices].sum())
        mine = torch.zeros(())
        for index in indices[rank::num_devices]:
            ids = torch.from_numpy(rows.row(int(index))[0].astype("int64"))[None]
            trained = torch.from_numpy(rows.row(int(index))[1])[None]
            labels = torch.where(trained, ids, -100)
            loss = model(input_ids=ids, labels=labels, num_items_in_batch=weight, use_cache=False).loss
            (loss * num_devices).backward()
            mine += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm)
        norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        torch.distributed.all_reduce(mine)
        losses.append(float(mine))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    if rank == 0:
        torch.save({"loss": losses, "gradNorm": norms}, results)


@pytest.fixture(scope="module")
def theirs(job: TrainingJob, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    results = tmp_path_factory.mktemp("accelerate") / "results"
    assert in_processes(2, partial(train_by_accelerate, job, results)) == [0, 0]
    found: dict[str, list[float]] = torch.load(results)
    return found


@pytest.mark.parametrize("numbers", ["loss", "gradNorm"])
def test_every_step_is_accelerates(job: TrainingJob, theirs: dict[str, list[float]], numbers: str) -> None:
    ours = column(job.start.run_directory, numbers)
    assert len(ours) == 12
    assert ours == pytest.approx(theirs[numbers], rel=1e-5, abs=1e-5)
