"""The profiles that come with the operator, and those that are laid over them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError
from ray.util.accelerators import accelerators

from finetune_api.devices import NO_DEVICE, device_memory
from finetune_operator.children.quantities import amount
from finetune_operator.settings.accelerator_profiles import AcceleratorProfile, effective_profiles

DEFAULTS = effective_profiles({})
GPUS = {name: profile for name, profile in DEFAULTS.items() if name != NO_DEVICE}
UNKNOWN_TO_RAY = {"A10"}
"""Ray makes this name of the device's own; it has no constant for it."""
PLATFORMS = {
    "cloud.google.com/gke-accelerator": r"nvidia-[a-z0-9]+(-[a-z0-9]+)*",
    "karpenter.k8s.aws/instance-gpu-name": r"[a-z][a-z0-9]+",
    "karpenter.k8s.aws/instance-gpu-memory": r"[0-9]+",
    "eks.amazonaws.com/instance-gpu-name": r"[a-z][a-z0-9]+",
    "eks.amazonaws.com/instance-gpu-memory": r"[0-9]+",
    "karpenter.azure.com/sku-gpu-name": r"[A-Z][0-9]+",
    "node.kubernetes.io/instance-type": r"Standard_N[CDV][0-9]+\w+",
    "nvidia.com/gpu.product": r"(NVIDIA|Tesla)-[A-Za-z0-9-]+",
}
LEGAL: dict[str, Any] = {"cpu": 1, "memory": "1Gi"}


def fits(profile: AcceleratorProfile, labels: Mapping[str, str]) -> bool:
    return any(
        all(labels.get(label) in values for label, values in alternative.items())
        for alternative in profile.node_labels
    )


def types_of(labels: Mapping[str, str]) -> set[str]:
    return {name for name, profile in GPUS.items() if fits(profile, labels)}


def test_the_types_are_those_that_users_of_ray_ask_for() -> None:
    assert set(GPUS) == {
        "T4",
        "V100",
        "L4",
        "L40S",
        "A10G",
        "A10",
        "A100",
        "A100-40G",
        "A100-80G",
        "H100",
        "H200",
        "B200",
    }


def test_a_type_is_spelt_as_ray_spells_it() -> None:
    known = {value for name, value in vars(accelerators).items() if name[0] != "_" and isinstance(value, str)}
    assert set(GPUS) - known == UNKNOWN_TO_RAY


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_asks_for_one_device_and_goes_to_nodes_of_known_platforms(name: str) -> None:
    profile = GPUS[name]
    assert profile.resource == "nvidia.com/gpu"
    assert profile.node_selector == {}
    for alternative in profile.node_labels:
        for label, values in alternative.items():
            assert all(re.fullmatch(PLATFORMS[label], value) for value in values)
            assert len(set(values)) == len(values)


@pytest.mark.parametrize("name", GPUS)
def test_karpenter_and_auto_mode_call_a_device_the_same(name: str) -> None:
    def named(domain: str) -> list[dict[str, list[str]]]:
        return [
            {label.removeprefix(domain): values for label, values in alternative.items()}
            for alternative in GPUS[name].node_labels
            if any(label.startswith(domain) for label in alternative)
        ]

    assert named("karpenter.k8s.aws/") == named("eks.amazonaws.com/")


def test_workers_without_a_device_go_anywhere() -> None:
    assert DEFAULTS[NO_DEVICE].model_dump() == {
        "resource": None,
        "resource_claim_template": None,
        "node_labels": [],
        "node_selector": {},
        "tolerations": [],
        "cpu": 2,
        "memory": "4Gi",
        "device_memory": None,
        "pod": {},
        "container": {},
    }


@pytest.mark.parametrize(
    ("labels", "types"),
    [
        ({"cloud.google.com/gke-accelerator": "nvidia-l4"}, {"L4"}),
        ({"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}, {"A100", "A100-40G"}),
        ({"cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb"}, {"H100"}),
        (
            {"karpenter.k8s.aws/instance-gpu-name": "a10g", "karpenter.k8s.aws/instance-gpu-memory": "22888"},
            {"A10G"},
        ),
        (
            {"karpenter.k8s.aws/instance-gpu-name": "a100", "karpenter.k8s.aws/instance-gpu-memory": "40960"},
            {"A100", "A100-40G"},
        ),
        (
            {"karpenter.k8s.aws/instance-gpu-name": "a100", "karpenter.k8s.aws/instance-gpu-memory": "81920"},
            {"A100", "A100-80G"},
        ),
        ({"eks.amazonaws.com/instance-gpu-name": "l40s"}, {"L40S"}),
        ({"eks.amazonaws.com/instance-gpu-name": "a100"}, {"A100"}),
        (
            {
                "karpenter.azure.com/sku-gpu-name": "A100",
                "node.kubernetes.io/instance-type": "Standard_ND96asr_v4",
            },
            {"A100", "A100-40G"},
        ),
        (
            {
                "karpenter.azure.com/sku-gpu-name": "A10",
                "node.kubernetes.io/instance-type": "Standard_NV6ads_A10_v5",
            },
            set(),
        ),
        (
            {
                "karpenter.azure.com/sku-gpu-name": "A10",
                "node.kubernetes.io/instance-type": "Standard_NV36ads_A10_v5",
            },
            {"A10"},
        ),
        ({"nvidia.com/gpu.product": "NVIDIA-A100-80GB-PCIe"}, {"A100", "A100-80G"}),
        ({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"}, set()),
        ({"nvidia.com/gpu.product": "Tesla-T4-SHARED"}, set()),
        ({"nvidia.com/gpu.product": "NVIDIA-H200"}, {"H200"}),
        ({"kubernetes.io/os": "linux"}, set()),
    ],
)
def test_a_node_is_of_the_types_that_its_labels_tell(labels: Mapping[str, str], types: set[str]) -> None:
    assert types_of(labels) == types


def test_a_sized_a100_is_an_a100() -> None:
    for size in ("A100-40G", "A100-80G"):
        for alternative in GPUS[size].node_labels:
            labels = {label: values[0] for label, values in alternative.items()}
            if "node.kubernetes.io/instance-type" not in labels:
                assert "A100" in types_of(labels)
    assert not set(GPUS["A100-40G"].node_labels[-1]["nvidia.com/gpu.product"]) & set(
        GPUS["A100-80G"].node_labels[-1]["nvidia.com/gpu.product"]
    )


@pytest.mark.parametrize(
    ("name", "devices", "cpu", "memory"),
    [
        (
            "T4",
            1,
            "3920m",
            "14481Mi",
        ),  # g4dn.xlarge, as Karpenter's documentation gives what is left for pods
        ("A10G", 1, "3920m", "14162Mi"),  # g5.xlarge
        ("L4", 1, "3920m", "14162Mi"),  # g6.xlarge
        ("L40S", 1, "3920m", "29317Mi"),  # g6e.xlarge
        ("V100", 8, "95690m", "718987Mi"),  # p3dn.24xlarge
        ("A100-40G", 8, "95690m", "1082712Mi"),  # p4d.24xlarge
        ("A100-80G", 8, "95690m", "1082712Mi"),  # p4de.24xlarge
        ("H100", 1, "15890m", "240830Mi"),  # p5.4xlarge
        ("H200", 8, "191450m", "1937332Mi"),  # p5en.48xlarge
        ("B200", 8, "191450m", "1937332Mi"),  # p6-b200.48xlarge
    ],
)
def test_all_devices_of_a_machine_can_work_and_leave_room_for_its_system(
    name: str, devices: int, cpu: str, memory: str
) -> None:
    assert amount(GPUS[name].cpu) * devices <= amount(cpu) - amount("500m")
    assert amount(GPUS[name].memory) * devices <= amount(memory) - amount("1Gi")


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("T4", 14.75),
        ("V100", 15.77),
        ("L4", 22.03),
        ("L40S", 44.40),
        ("A10G", 22.06),
        ("A100-40G", 39.50),
        ("A100-80G", 79.25),
        ("H100", 79.19),
        ("H200", 139.80),
        ("B200", 178.35),
    ],
)
def test_the_memory_of_a_device_is_what_pytorch_says_when_it_runs_out_of_it(name: str, seen: float) -> None:
    """`GPU 0 has a total capacity of 22.03 GiB`, in public reports; drivers differ a little."""
    assert 0.98 * seen <= float(amount(GPUS[name].device_memory or 0)) / 2**30 <= seen


def test_every_gpu_has_memory_and_a_type_of_two_sizes_that_of_the_smaller() -> None:
    assert all(profile.device_memory is not None for profile in GPUS.values())
    assert GPUS["A100"].device_memory == GPUS["A100-40G"].device_memory
    assert GPUS["A10"].device_memory == GPUS["A10G"].device_memory


@pytest.mark.parametrize("name", GPUS)
def test_the_command_knows_of_a_device_what_the_operator_knows(name: str) -> None:
    assert device_memory(name) == pytest.approx(amount(GPUS[name].device_memory or 0), abs=1)


def test_of_a_device_that_is_not_known_nothing_is_said() -> None:
    assert device_memory("RTX-6000") is None
    assert device_memory(NO_DEVICE) is None


def test_a_profile_replaces_the_default_whole() -> None:
    mine = AcceleratorProfile(cpu=1, memory="1Gi")
    assert effective_profiles({"T4": mine}) == {**DEFAULTS, "T4": mine}


def test_a_profile_adds_a_type() -> None:
    mine = AcceleratorProfile(cpu=1, memory="1Gi")
    assert effective_profiles({"MINE": mine}) == {**DEFAULTS, "MINE": mine}


def test_null_removes_a_type_also_one_that_is_not_there() -> None:
    assert effective_profiles({"T4": None, "MINE": None}) == {
        name: profile for name, profile in DEFAULTS.items() if name != "T4"
    }


def test_overrides_leave_the_defaults_alone() -> None:
    effective_profiles({"T4": None}).clear()
    assert effective_profiles({}) == DEFAULTS


def test_a_toleration_is_spelt_as_in_a_pod() -> None:
    toleration = {
        "key": "gpu",
        "operator": "Equal",
        "value": "yes",
        "effect": "NoExecute",
        "tolerationSeconds": 60,
    }
    profile = AcceleratorProfile.model_validate({**LEGAL, "tolerations": [toleration]})
    assert profile.tolerations[0].model_dump(by_alias=True, exclude_none=True) == toleration


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"resource": "gpu"}, "must be an extended resource"),
        ({"resource": "NVIDIA.com/gpu"}, "must be an extended resource"),
        ({"node_labels": [{}]}, "at least 1 item"),
        ({"node_labels": [{"gpu": []}]}, "at least 1 item"),
        ({"node_labels": [{"gpu": ["a b"]}]}, "must be a label's value"),
        ({"node_labels": [{"gpu": ["x" * 64]}]}, "must be a label's value"),
        ({"node_labels": [{"a/b/c": ["x"]}]}, "must be a label's name"),
        ({"node_labels": {"gpu": ["x"]}}, "list"),
        ({"node_selector": {"-gpu": "x"}}, "must be a label's name"),
        ({"node_selector": {"gpu": "x/y"}}, "must be a label's value"),
        ({"tolerations": [{}]}, "must have a key"),
        ({"tolerations": [{"key": "gpu", "operator": "Exists", "value": "x"}]}, "must have no value"),
        ({"tolerations": [{"key": "gpu", "tolerationSeconds": 3}]}, "must have the effect NoExecute"),
        ({"tolerations": [{"key": "gpu", "operator": "In"}]}, "'Exists' or 'Equal'"),
        ({"tolerations": [{"key": "gpu", "effect": "Never"}]}, "'NoSchedule'"),
        ({"tolerations": [{"key": "gpu", "seconds": 3}]}, "Extra inputs"),
        ({"cpu": "many"}, "must be a quantity"),
        ({"memory": "16 GB"}, "must be a quantity"),
        ({"gpus": 1}, "Extra inputs"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AcceleratorProfile.model_validate({**LEGAL, **wrong})


@pytest.mark.parametrize("missing", LEGAL)
def test_cpu_and_memory_are_required(missing: str) -> None:
    with pytest.raises(ValidationError, match="Field required"):
        AcceleratorProfile.model_validate({name: value for name, value in LEGAL.items() if name != missing})
