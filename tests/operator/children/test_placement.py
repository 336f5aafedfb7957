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
