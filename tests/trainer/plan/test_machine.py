from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.trainer.training_jobs import LORA, spec_of

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.numbers import numbers
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.plan.machine import Machine, fit_to_machine, this_machine

CPU = Machine(cpus=2, gpus=0)


def gpus(count: int) -> Machine:
    return Machine(cpus=16, gpus=count, gpu_name="NVIDIA H200")


def spec(**fields: JsonValue) -> FineTuneJobSpec:
    return spec_of(Path("model"), LORA, **fields)


def test_the_machine_is_named_by_its_gpus_or_by_its_cores() -> None:
    assert gpus(8).description == "8 NVIDIA H200"
    assert CPU.description == "CPU (2 cores)"


def test_this_machine_has_the_cores_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert this_machine().cpus == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("wanted", "machine", "used", "accumulation"),
    [
        (1, CPU, 1, 2),
        (8, CPU, 1, 16),
        (8, gpus(8), 8, 2),
        (8, gpus(4), 4, 4),
        (8, gpus(3), 2, 8),
        (6, gpus(4), 3, 4),
        (2, gpus(8), 2, 2),
    ],
)
def test_accumulation_takes_the_place_of_devices_that_are_not_there(
    wanted: int, machine: Machine, used: int, accumulation: int
) -> None:
    asked = spec(num_devices=wanted, gradient_accumulation_steps=2)
    fitted, warnings = fit_to_machine(asked, machine, devices=None)
    assert (fitted.num_devices, fitted.gradient_accumulation_steps) == (used, accumulation)
    assert len(warnings) == (wanted != used)


@pytest.mark.parametrize("rows", [1, 21, 64, 1000])
def test_the_steps_stay_the_same_with_fewer_devices(rows: int) -> None:
    asked = spec(num_devices=8, gradient_accumulation_steps=2, num_warmup_steps=0)
    fitted, _ = fit_to_machine(asked, gpus(3), devices=None)
    here, there = (
        numbers(each, rows=rows, longest_row=60, model_context_length=2048) for each in (fitted, asked)
    )
    assert (here.effective_batch_size, here.steps_per_epoch, here.total_steps) == (
        there.effective_batch_size,
        there.steps_per_epoch,
        there.total_steps,
    )


def test_fewer_devices_are_explained() -> None:
    _, warnings = fit_to_machine(spec(num_devices=4), CPU, devices=None)
    [warning] = warnings
    assert warning == (
        "spec.num_devices is 4, here it is 1, and gradient_accumulation_steps 4 instead of 1: "
        "the optimizer steps, and the result, stay the same"
    )


def test_a_wish_for_devices_replaces_num_devices() -> None:
    fitted, warnings = fit_to_machine(spec(num_devices=8, gradient_accumulation_steps=2), CPU, devices=2)
    assert (fitted.num_devices, fitted.gradient_accumulation_steps) == (2, 2)
    assert warnings == []


def test_more_gpus_than_there_are_cannot_be_wished_for() -> None:
    with pytest.raises(FineTuneError, match=r"--devices 8: this machine has 4 GPU\(s\)") as raised:
        fit_to_machine(spec(), gpus(4), devices=8)
    assert raised.value.failure_class is FailureClass.INVALID_SPEC


def test_what_is_for_clusters_is_named() -> None:
    asked = spec(
        worker_resources={"accelerator_type:A10G": 0.001},
        trainer_resources={"memory": 1_000_000},
        cluster={"image": "trainer:1"},
        storage={"path": "s3://bucket/runs"},
    )
    assert fit_to_machine(asked, CPU, devices=None)[1] == [
        "spec.worker_resources is for clusters and changes nothing here",
        "spec.trainer_resources is for clusters and changes nothing here",
        "spec.cluster is for clusters and changes nothing here",
        "spec.storage is for clusters; --storage decides where this run goes",
    ]
