"""What accelerators are called, and which one workers ask for."""

from __future__ import annotations

import pytest
from tests.crds.reading import problems_of, spec_of

from finetune_api.consistency import warnings
from finetune_api.devices import KNOWN, MEMORY, NAMES, Devices, WorkerDevice, worker_device


@pytest.mark.parametrize(
    ("name", "accelerator_type"),
    [
        # LLMForge's own, and other spellings of them
        ("A10G", "A10G"),
        ("a10g", "A10G"),
        ("NVIDIA-A10G", "A10G"),
        ("L4", "L4"),
        ("NVIDIA_L4", "L4"),
        ("A100-40G", "A100-40G"),
        ("A100-40GB", "A100-40G"),
        ("A100_40GB", "A100-40G"),
        ("A100-80G", "A100-80G"),
        ("a100-80gb", "A100-80G"),
        ("H100", "H100"),
        ("NVIDIA_H100", "H100"),
        ("nvidia h100", "H100"),
        # Of GPU Feature Discovery and GKE
        ("NVIDIA-A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA-A100-PCIE-40GB", "A100-40G"),
        ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("Tesla-T4", "T4"),
        ("Tesla-V100-SXM2-16GB", "V100"),
        ("nvidia-tesla-a100", "A100"),
        # Machines
        ("g5.4xlarge", "A10G"),
        ("g5.12xlarge", "A10G"),
        ("g5.48xlarge", "A10G"),
        ("p4d.24xlarge", "A100-40G"),
        ("p4de.24xlarge", "A100-80G"),
        ("p5.48xlarge", "H100"),
        ("p5en.48xlarge", "H200"),
        ("g6.xlarge", "L4"),
        ("g6e.xlarge", "L40S"),
        ("g4dn.12xlarge", "T4"),
        ("a2-ultragpu-8g", "A100-80G"),
        ("a3-highgpu-8g", "H100"),
        ("g2-standard-48", "L4"),
        ("Standard_NC24ads_A100_v4", "A100-80G"),
        ("Standard_ND96isr_H100_v5", "H100"),
        ("Standard_NC6s_v3", "V100"),
        ("Standard_NC64as_T4_v3", "T4"),
        # No type, or another one
        ("g5g.xlarge", None),
        ("m5.2xlarge", None),
        ("GH200", None),
        ("A1000", None),
        ("T4G", None),
        ("", None),
    ],
)
def test_a_type_is_known_by_its_other_names(name: str, accelerator_type: str | None) -> None:
    assert KNOWN.type_of(name) == accelerator_type


def test_every_name_is_of_a_type_that_there_is() -> None:
    assert set(NAMES.values()) <= MEMORY.keys()


def test_of_several_names_that_fit_the_longest_counts() -> None:
    devices = Devices(types=("A", "B"), names={"g5.*": "A", "g5.12*": "B"})

    assert [devices.type_of(name) for name in ("g5.xlarge", "g5.12xlarge")] == ["A", "B"]


def test_a_name_of_a_type_that_is_not_there_is_not_known() -> None:
    assert Devices(types=("CPU",), names={"g5.*": "A10G"}).type_of("g5.xlarge") is None


def test_a_name_wins_over_a_type_that_is_spelt_alike() -> None:
    devices = Devices(types=("A100", "A100-40G"), names={"nvidia-tesla-a100": "A100-40G"})

    assert devices.type_of("nvidia-tesla-a100") == "A100-40G"


@pytest.mark.parametrize(
    ("resources", "accelerator_type", "amount"),
    [
        ({}, None, None),
        ({"memory": 10**9, "CPU": 4}, None, None),
        ({"cpu": 4}, None, None),
        ({"my_pool": 1}, None, None),
        ({"accelerator_type:A10G": 0.5}, "A10G", 0.5),
        ({"accelerator_type:a10g": 0.5}, "A10G", 0.5),
        ({"anyscale/accelerator_shape:4xA10G": 0.5}, "A10G", None),
        ({"accelerator_type:RTX-6000": 0.5}, "RTX-6000", 0.5),
        ({"accelerator_type:cpu": 0.5}, "CPU", 0.5),
        ({"g5.12xlarge": 0.01}, "A10G", None),
        ({"g5.12xlarge": 0.01, "g5.48xlarge": 0.01}, "A10G", None),
        ({"g5.12xlarge": 0.01, "accelerator_type:A10G": 0.5}, "A10G", 0.5),
        ({"p9.48xlarge": 0.01, "accelerator_type:A10G": 0.5}, "A10G", 0.5),
        ({"p9.48xlarge": 0.01, "accelerator_type:CPU": 0.5}, "CPU", 0.5),
    ],
)
def test_what_workers_ask_for_in_whatever_words(
    resources: dict[str, float], accelerator_type: str | None, amount: float | None
) -> None:
    device = worker_device(resources)

    assert (device.type, device.amount, device.problems) == (accelerator_type, amount, ())


@pytest.mark.parametrize(
    "key",
    [
        "p9.48xlarge",
        "m5.2xlarge",
        "u7i-12tb.224xlarge",
        "g5g.metal",
        "a9-hypergpu-8g",
        "n1-standard-8",
        "Standard_ND96isr_MI300X_v5",
        "A6000",
        "GH200",
        "MI300X",
        "RTX-6000",
        "rtx_4090",
        "nvidia_l99",
        "NVIDIA-Blackwell",
        "TPU-V5",
        "accelerator_type_a10",
        "accelerator_shape:4xA10G",
    ],
)
def test_a_key_that_seems_to_name_a_device_is_a_problem_that_lists_what_is_known(key: str) -> None:
    device = worker_device({key: 0.01})

    assert device == WorkerDevice(unknown=(key,), problems=device.problems)
    [problem] = device.problems
    assert problem.startswith(
        f"spec.worker_resources[{key}]: no accelerator of this name is known; known are A10, A100, A100-40G,"
    )
    assert problem.endswith("; for workers without a device give accelerator_type:CPU")


@pytest.mark.parametrize(
    ("key", "named", "not_named"),
    [
        ("p9.48xlarge", "p5.*", "a3-highgpu-*"),
        ("n1-standard-8", "a3-highgpu-*", "p5.*"),
        ("Standard_ND96isr_MI300X_v5", "Standard_ND96isr_H100_v5", "p5.*"),
        ("A100-SXM3", "A100-SXM4-40G*", "p5.*"),
    ],
)
def test_what_is_listed_is_of_the_form_that_was_asked_for(key: str, named: str, not_named: str) -> None:
    [problem] = worker_device({key: 0.01}).problems

    assert f", {named}" in problem
    assert f", {not_named}" not in problem


@pytest.mark.parametrize("key", ["my_pool", "custom", "object_store_memory", "node", "large_cpu", "disk1"])
def test_another_key_names_no_device(key: str) -> None:
    assert worker_device({key: 1}) == WorkerDevice()


@pytest.mark.parametrize("key", ["GPU", "gpu", "nvidia.com/gpu"])
def test_a_device_without_a_type_is_told_from_one_that_is_not_known(key: str) -> None:
    assert worker_device({key: 1}) == WorkerDevice(unnamed=key)


def test_names_of_two_types_contradict_each_other() -> None:
    assert worker_device({"g5.xlarge": 0.01, "p4d.24xlarge": 0.01}).problems == (
        (
            "spec.worker_resources: must name one accelerator type, names A10G (g5.xlarge) and A100-40G"
            " (p4d.24xlarge)"
        ),
    )


def test_a_type_and_a_shape_may_spell_it_differently() -> None:
    spec_of("worker_resources: {'accelerator_type:NVIDIA_H100': 1, 'anyscale/accelerator_shape:8xH100': 1}")


def test_a_type_and_a_shape_of_two_types_contradict_each_other() -> None:
    assert problems_of(
        "worker_resources: {'accelerator_type:A100-40GB': 1, 'anyscale/accelerator_shape:8xA100-80GB': 1}"
    ) == ("spec.worker_resources: must name one accelerator type, names A100-40GB and A100-80GB",)


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ("g5.12xlarge: 0.01", ["spec.worker_resources[g5.12xlarge] is taken as accelerator_type:A10G"]),
        (
            "'accelerator_type:NVIDIA_H100': 0.01",
            ["spec.worker_resources[accelerator_type:NVIDIA_H100] is taken as accelerator_type:H100"],
        ),
        ("'accelerator_type:H100': 0.01", []),
        ("'accelerator_type:RTX-6000': 0.01", []),
    ],
)
def test_it_is_said_what_a_name_is_taken_as(resources: str, said: list[str]) -> None:
    spec = spec_of(f"lora_config: {{}}\nworker_resources: {{{resources}}}")

    assert list(warnings(spec)) == said


def test_an_operators_names_decide_what_its_jobs_are_told() -> None:
    spec = spec_of("lora_config: {}\nworker_resources: {g5.12xlarge: 0.01}")
    devices = Devices(types=("MINE",), names={"g5.*": "MINE"})

    assert list(warnings(spec, devices)) == [
        "spec.worker_resources[g5.12xlarge] is taken as accelerator_type:MINE"
    ]
