"""How many worker pods a job has, of what kind."""

from __future__ import annotations

import pytest
from pydantic import JsonValue
from tests.operator.cases import configuration

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import read_spec
from finetune_operator.children.placement import Placement, placement


def placed(
    worker_resources: dict[str, JsonValue] | None = None, *, devices: int = 1, default: str = "CPU"
) -> Placement:
    spec = read_spec(
        {"model_id": "m", "train_path": "t", "num_devices": devices, "worker_resources": worker_resources}
    )
    return placement(spec, configuration({"default_accelerator": default}))


@pytest.mark.parametrize(("devices", "pods"), [(8, 2), (6, 2), (4, 1), (1, 1)])
def test_shape_puts_so_many_devices_into_a_pod(devices: int, pods: int) -> None:
    found = placed({"anyscale/accelerator_shape:4xA10G": 0.001}, devices=devices)
    assert (found.accelerator_type, found.devices_per_pod, found.pods, found.amount) == (
        "A10G",
        4,
        pods,
        0.001,
    )


def test_each_device_has_a_pod_without_a_shape() -> None:
    found = placed({"accelerator_type:A10G": 0.5}, devices=3)
    assert (found.accelerator_type, found.devices_per_pod, found.pods, found.amount) == ("A10G", 1, 3, 0.5)
    assert found.profile.resource == "nvidia.com/gpu"


def test_type_and_shape_of_the_same_accelerator_go_together() -> None:
    found = placed({"accelerator_type:H100": 1, "anyscale/accelerator_shape:8xH100": 0.001}, devices=16)
    assert (found.accelerator_type, found.devices_per_pod, found.pods, found.amount) == ("H100", 8, 2, 1.0)


def test_job_that_names_no_type_gets_the_default() -> None:
    assert placed().accelerator_type == "CPU"
    assert placed(devices=2).profile.resource is None
    assert placed({"memory": 10**9}, default="L4").accelerator_type == "L4"


def test_unknown_type_names_the_known() -> None:
    with pytest.raises(
        FineTuneError,
        match=r"no profile of this operator knows the accelerator type P4; known are A10, .*, V100$",
    ) as caught:
        placed({"accelerator_type:P4": 1})
    assert caught.value.failure_class is FailureClass.INVALID_SPEC


def refused(worker_resources: dict[str, JsonValue]) -> tuple[str, ...]:
    with pytest.raises(FineTuneError) as caught:
        placed(worker_resources)
    assert caught.value.failure_class is FailureClass.INVALID_SPEC
    return caught.value.problems


@pytest.mark.parametrize(
    ("worker_resources", "accelerator_type", "amount"),
    [
        ({"g5.12xlarge": 0.01}, "A10G", 0.001),
        ({"p4de.24xlarge": 1, "memory": 10**9}, "A100-80G", 0.001),
        ({"accelerator_type:NVIDIA_H100": 0.5}, "H100", 0.5),
        ({"NVIDIA_H100": 0.01}, "H100", 0.001),
    ],
)
def test_a_device_is_placed_by_its_other_names(
    worker_resources: dict[str, JsonValue], accelerator_type: str, amount: float
) -> None:
    found = placed(worker_resources)
    assert (found.accelerator_type, found.amount) == (accelerator_type, amount)
    assert found.profile.resource == "nvidia.com/gpu"


def test_a_shape_is_placed_by_another_name_of_its_type() -> None:
    found = placed({"anyscale/accelerator_shape:8xA100-40GB": 0.001}, devices=8)
    assert (found.accelerator_type, found.devices_per_pod) == ("A100-40G", 8)


def test_a_machine_that_no_name_is_known_of_is_refused_with_what_is_known() -> None:
    [problem] = refused({"p9.48xlarge": 0.01})
    assert problem.startswith("spec.worker_resources[p9.48xlarge]: no accelerator of this name is known")
    assert "A100-80G" in problem
    assert "g5.*" in problem


def test_a_machine_does_not_matter_where_the_job_says_that_it_wants_no_device() -> None:
    assert placed({"p9.48xlarge": 0.01, "accelerator_type:CPU": 1}).accelerator_type == "CPU"


@pytest.mark.parametrize("key", ["GPU", "gpu", "nvidia.com/gpu"])
def test_a_device_of_no_type_is_refused_where_the_default_is_no_device(key: str) -> None:
    [problem] = refused({key: 1})
    assert problem.startswith(f"spec.worker_resources[{key}]: says no type")
    assert placed({key: 1}, default="L4").accelerator_type == "L4"
    assert placed({key: 1, "accelerator_type:T4": 0.001}).accelerator_type == "T4"


def test_two_names_of_different_types_are_refused() -> None:
    assert refused({"g5.xlarge": 0.01, "accelerator_type:L4": 0.001}) == (
        (
            "spec.worker_resources: must name one accelerator type, names L4 (accelerator_type:L4) and A10G"
            " (g5.xlarge)"
        ),
    )
