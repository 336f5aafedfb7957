"""Pod templates: what the Pod Security Standard asks of them, and what a job asks of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest
from pydantic import JsonValue
from tests.operator.cases import UID, Json
from tests.operator.sources import at, maps, source

from finetune_operator.children.pods import (
    DRAIN_SECONDS,
    RAY_SETTINGS,
    PodSource,
    head_pod,
    prepare_pod,
    submitter_pod,
    worker_pod,
    worker_processors,
)

GI = 2**30
A10G: Json = {"worker_resources": {"accelerator_type:A10G": 0.001}}
EVERYTHING: Json = {
    "num_devices": 2,
    "train_path": "configmap://rows/train.jsonl",
    "valid_path": "pvc://data/valid.jsonl",
    "model_id": "pvc://models/llama",
    "storage": {"path": "pvc://data/runs"},
    "cluster": {
        "image": "mine:2",
        "image_pull_policy": "Always",
        "image_pull_secrets": [{"name": "registry"}],
        "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
        "env_from": [{"secretRef": {"name": "s3"}}],
        "volumes": [{"name": "cache", "emptyDir": {}}],
        "volume_mounts": [{"name": "cache", "mountPath": "/cache"}],
        "node_selector": {"pool": "train"},
        "tolerations": [{"key": "mine", "operator": "Exists"}],
        "priority_class_name": "high",
        "labels": {"team": "blue"},
        "annotations": {"note": "hello"},
    },
    **A10G,
}

ALLOWED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
"""By the level `restricted`."""


def violations(pod: Json) -> Iterator[str]:
    """What the Pod Security levels `baseline` and `restricted` of Kubernetes 1.35 have against a pod."""
    spec = cast("Json", pod["spec"])
    yield from (
        f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC", "hostUsers") if spec.get(name)
    )
    for volume in maps(spec, "volumes"):
        yield from (f"volume of kind {kind}" for kind in volume.keys() - {"name"} - ALLOWED_VOLUMES)
    whole = cast("Json", spec.get("securityContext", {}))
    yield from _context(whole, "the pod")
    for container in [*maps(spec, "containers"), *cast("list[Json]", spec.get("initContainers", []))]:
        own = cast("Json", container.get("securityContext", {}))
        yield from _context(own, "a container")
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            yield "may run as root"
        if (own.get("seccompProfile") or whole.get("seccompProfile")) not in (
            {"type": "RuntimeDefault"},
            {"type": "Localhost"},
        ):
            yield "no seccomp profile"
        if own.get("allowPrivilegeEscalation") is not False:
            yield "may gain privileges"
        capabilities = cast("Json", own.get("capabilities", {}))
        if capabilities.get("drop") != ["ALL"] or set(cast("list[str]", capabilities.get("add", []))) - {
            "NET_BIND_SERVICE"
        }:
            yield "has capabilities"
        yield from (
            f"port {port} of the node"
            for port in cast("list[Json]", container.get("ports", []))
            if port.get("hostPort")
        )


def _context(context: Json, whose: str) -> Iterator[str]:
    if context.get("privileged"):
        yield f"{whose} is privileged"
    if context.get("runAsUser") == 0:
        yield f"{whose} runs as root"
    forbidden = ("seLinuxOptions", "windowsOptions", "procMount", "sysctls", "appArmorProfile")
    yield from (f"{whose} has {field}" for field in forbidden if field in context)


def head(made_from: PodSource) -> Json:
    return head_pod(made_from, "account", "tune-11111111", {"FINETUNE_ASSIGNMENT": "{}"})


def worker(made_from: PodSource) -> Json:
    return worker_pod(made_from, "account")


def submitter(made_from: PodSource) -> Json:
    return submitter_pod(made_from, "account")


def prepare(made_from: PodSource) -> Json:
    return prepare_pod(
        made_from, "account", "tune-11111111", {"FINETUNE_ASSIGNMENT": "{}"}, ("python", "-m", "this")
    )


ROLES = [head, worker, submitter, prepare]
RAY_ROLES = [head, worker]
Role = Callable[[PodSource], Json]


def worker_amounts(made_from: PodSource) -> tuple[JsonValue, JsonValue]:
    """A worker's requests and limits."""
    resources = cast("Json", at(worker(made_from), "spec.containers.0.resources"))
    return resources["requests"], resources["limits"]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("spec", [{}, A10G, EVERYTHING], ids=["smallest", "GPU", "everything"])
def test_pod_is_fit_for_the_level_restricted(role: Role, spec: Json) -> None:
    assert list(violations(role(source(spec)))) == []


@pytest.mark.parametrize("role", ROLES)
def test_root_file_system_is_read_only_and_what_is_written_is_in_memory_of_the_pod(role: Role) -> None:
    pod = role(source())
    assert at(pod, "spec.containers.0.securityContext.readOnlyRootFilesystem") is True
    mounts = {each["name"]: each["mountPath"] for each in maps(pod, "spec.containers.0.volumeMounts")}
    empty = {each["name"] for each in maps(pod, "spec.volumes") if each.get("emptyDir") == {}}
    assert {mounts[name] for name in empty} == {"/home/ray", "/tmp"}


def test_head_and_prepare_alone_have_an_api_token() -> None:
    tokens = {
        role.__name__: at(role(source(EVERYTHING)), "spec.automountServiceAccountToken") for role in ROLES
    }
    assert tokens == {"head": True, "worker": False, "submitter": False, "prepare": True}


@pytest.mark.parametrize("role", ROLES)
def test_grace_is_longer_than_rays_drain_and_no_minute(role: Role) -> None:
    assert DRAIN_SECONDS + 10 <= cast("int", at(role(source()), "spec.terminationGracePeriodSeconds")) < 60


@pytest.mark.parametrize("role", RAY_ROLES)
def test_ray_is_told_how_to_end(role: Role) -> None:
    variables = {each["name"]: each["value"] for each in maps(role(source()), "spec.containers.0.env")}
    assert variables.items() >= RAY_SETTINGS.items()
    assert (
        variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
        == variables["RAY_JOB_STOP_WAIT_TIME_S"]
        == str(DRAIN_SECONDS)
    )


@pytest.mark.parametrize("role", RAY_ROLES)
def test_a_node_that_is_ready_is_seen_within_a_second_and_a_slow_one_has_ten_minutes(role: Role) -> None:
    container = maps(role(source()), "spec.containers")[0]
    startup, readiness = (cast("Json", container[probe]) for probe in ("startupProbe", "readinessProbe"))
    assert startup["periodSeconds"] == 1
    assert startup["failureThreshold"] == 600
    assert startup["httpGet"] == readiness["httpGet"] == {"path": "/api/healthz", "port": 52365}
    assert "initialDelaySeconds" not in startup.keys() | readiness.keys()


WISHES: Json = {
    "cluster": {
        "head": {"resources": {"requests": {"memory": "3Gi"}}},
        "worker": {"resources": {"limits": {"cpu": 2}}},
    }
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("spec", [{}, A10G, WISHES], ids=["smallest", "GPU", "wishes"])
def test_memory_has_a_limit_which_is_what_is_requested(role: Role, spec: Json) -> None:
    """KubeRay makes /dev/shm as large as the limit; without one it could fill the node."""
    resources = cast("dict[str, Json]", at(role(source(spec)), "spec.containers.0.resources"))
    assert resources["limits"]["memory"] == resources["requests"]["memory"]


def test_worker_without_a_device_asks_for_what_its_profile_says() -> None:
    assert worker_amounts(source()) == ({"cpu": "2", "memory": "4Gi"}, {"memory": "4Gi"})


def test_worker_with_a_device_has_it_in_its_limits() -> None:
    assert worker_amounts(source(A10G)) == (
        {"cpu": "3", "memory": "11Gi"},
        {"memory": "11Gi", "nvidia.com/gpu": "1"},
    )


def test_worker_of_a_shape_asks_for_all_its_devices() -> None:
    shape: Json = {"num_devices": 8, "worker_resources": {"anyscale/accelerator_shape:4xA10G": 0.001}}
    assert worker_amounts(source(shape)) == (
        {"cpu": "12", "memory": "44Gi"},
        {"memory": "44Gi", "nvidia.com/gpu": "4"},
    )


@pytest.mark.parametrize(
    ("resources", "amounts"),
    [
        ({"memory": 2 * GI}, ({"cpu": "2", "memory": str(2 * GI)}, {"memory": str(2 * GI)})),
        ({"CPU": 4}, ({"cpu": "4", "memory": "4Gi"}, {"memory": "4Gi"})),
        ({"CPU": 0.5}, ({"cpu": "0.5", "memory": "4Gi"}, {"memory": "4Gi"})),
    ],
    ids=["memory", "processors", "half a processor"],
)
def test_worker_resources_go_before_the_profile(resources: Json, amounts: tuple[Json, Json]) -> None:
    assert worker_amounts(source({"worker_resources": resources})) == amounts


def test_memory_of_worker_and_trainer_is_for_each_device_and_once_for_each_pod() -> None:
    spec: Json = {
        "num_devices": 4,
        "worker_resources": {"anyscale/accelerator_shape:2xA10G": 0.001, "memory": 3 * GI},
        "trainer_resources": {"memory": GI},
    }
    requests, limits = worker_amounts(source(spec))
    assert (requests, limits) == (
        {"cpu": "6", "memory": str(7 * GI)},
        {"memory": str(7 * GI), "nvidia.com/gpu": "2"},
    )


SHAPE: Json = {"num_devices": 4, "worker_resources": {"anyscale/accelerator_shape:2xA10G": 0.001}}


@pytest.mark.parametrize(
    ("spec", "needed", "memory"),
    [
        (A10G, 10 * GI, "11Gi"),
        (A10G, 20 * GI + 1, f"{20 * 1024 + 1}Mi"),
        (SHAPE, 20 * GI, f"{2 * 20 * 1024}Mi"),
        ({**A10G, "trainer_resources": {"memory": GI}}, 20 * GI, str(21 * GI)),
        ({"worker_resources": {"accelerator_type:A10G": 0.001, "memory": 2 * GI}}, 20 * GI, str(2 * GI)),
        ({**A10G, "cluster": {"worker": {"resources": {"limits": {"memory": "2Gi"}}}}}, 20 * GI, "2Gi"),
    ],
    ids=[
        "the profile has enough",
        "more",
        "for each device",
        "and of the trainer",
        "asked",
        "asked of a pod",
    ],
)
def test_a_worker_has_the_memory_of_its_host_that_training_needs_unless_the_job_says_how_much(
    spec: Json, needed: int, memory: str
) -> None:
    resources = at(worker(source(spec, host_memory=needed)), "spec.containers.0.resources")
    assert at(resources, "requests.memory") == at(resources, "limits.memory") == memory


def test_trainer_resources_are_added_to_the_profile() -> None:
    requests, _ = worker_amounts(source({"trainer_resources": {"memory": GI}}))
    assert requests == {"cpu": "2", "memory": str(5 * GI)}


@pytest.mark.parametrize(
    ("wish", "requests", "limits"),
    [
        (
            {"limits": {"memory": "8Gi"}},
            {"cpu": "3", "memory": "8Gi"},
            {"memory": "8Gi", "nvidia.com/gpu": "1"},
        ),
        (
            {"requests": {"memory": "8Gi"}},
            {"cpu": "3", "memory": "8Gi"},
            {"memory": "8Gi", "nvidia.com/gpu": "1"},
        ),
        (
            {"requests": {"memory": "8Gi"}, "limits": {"memory": "9Gi"}},
            {"cpu": "3", "memory": "8Gi"},
            {"memory": "9Gi", "nvidia.com/gpu": "1"},
        ),
        (
            {"limits": {"cpu": 6}},
            {"cpu": 6, "memory": "11Gi"},
            {"cpu": 6, "memory": "11Gi", "nvidia.com/gpu": "1"},
        ),
        ({"requests": {"cpu": 1}}, {"cpu": 1, "memory": "11Gi"}, {"memory": "11Gi", "nvidia.com/gpu": "1"}),
        (
            {"requests": {"ephemeral-storage": "1Gi"}},
            {"cpu": "3", "memory": "11Gi", "ephemeral-storage": "1Gi"},
            {"memory": "11Gi", "nvidia.com/gpu": "1"},
        ),
    ],
    ids=[
        "limit of memory",
        "request of memory",
        "both",
        "limit of processors",
        "request of processors",
        "something else",
    ],
)
def test_workers_of_the_cluster_are_laid_over_the_profile(wish: Json, requests: Json, limits: Json) -> None:
    assert worker_amounts(source({**A10G, "cluster": {"worker": {"resources": wish}}})) == (requests, limits)


def test_head_is_as_large_as_the_configuration_says_and_the_job_wishes() -> None:
    settings: Json = {"head": {"cpu": 2, "memory": "6Gi"}}
    wish: Json = {"cluster": {"head": {"resources": {"limits": {"memory": "9Gi"}}}}}
    assert at(head(source(None, settings)), "spec.containers.0.resources") == {
        "requests": {"cpu": "2", "memory": "6Gi"},
        "limits": {"memory": "6Gi"},
    }
    assert at(head(source(wish, settings)), "spec.containers.0.resources") == {
        "requests": {"cpu": "2", "memory": "9Gi"},
        "limits": {"memory": "9Gi"},
    }


def test_prepare_is_as_large_as_the_head_unless_it_is_said() -> None:
    settings: Json = {"head": {"cpu": 2, "memory": "6Gi"}}
    own: Json = {**settings, "prepare": {"cpu": 4, "memory": "12Gi"}}
    of_head: Json = {"head": {"resources": {"limits": {"memory": "9Gi"}}}}
    of_both: Json = {**of_head, "prepare": {"resources": {"limits": {"memory": "10Gi"}}}}
    found = [
        at(prepare(source({"cluster": cluster}, said)), "spec.containers.0.resources")
        for cluster, said in (({}, settings), (of_head, settings), ({}, own), (of_both, own))
    ]
    assert found == [
        {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}
        for cpu, memory in (("2", "6Gi"), ("2", "9Gi"), ("4", "12Gi"), ("4", "10Gi"))
    ]


def test_prepare_goes_where_the_head_does_unless_it_is_said_and_claims_nothing_of_its() -> None:
    of_head: Json = {
        "node_selector": {"on": "demand"},
        "tolerations": [{"key": "demand", "operator": "Exists"}],
        "runtime_class_name": "runc",
        "resource_claims": [{"name": "nic", "resourceClaimTemplateName": "nics"}],
    }
    own: Json = {"node_selector": {}, "runtime_class_name": "gvisor"}
    as_a_head = cast("Json", prepare(source({**A10G, "cluster": {"head": of_head}}))["spec"])
    assert as_a_head["nodeSelector"] == of_head["node_selector"]
    assert as_a_head["tolerations"] == of_head["tolerations"]
    assert as_a_head["runtimeClassName"] == "runc"
    assert "resourceClaims" not in as_a_head
    itself = cast("Json", prepare(source({**A10G, "cluster": {"head": of_head, "prepare": own}}))["spec"])
    assert "nodeSelector" not in itself
    assert itself["tolerations"] == of_head["tolerations"]
    assert itself["runtimeClassName"] == "gvisor"


def test_prepare_has_no_device_and_sees_what_the_head_sees() -> None:
    made_from = source(EVERYTHING)
    assert "nvidia.com/gpu" not in str(prepare(made_from))
    for path in ("spec.volumes", "spec.containers.0.volumeMounts", "spec.containers.0.image"):
        assert at(prepare(made_from), path) == at(head(made_from), path)
    env, of_head = (
        {str(each["name"]) for each in maps(pod, "spec.containers.0.env")}
        for pod in (prepare(made_from), head(made_from))
    )
    assert env == of_head - RAY_SETTINGS.keys()


def test_prepare_is_run_once_and_told_apart() -> None:
    pod = prepare(source())
    assert at(pod, "spec.restartPolicy") == "Never"
    assert at(pod, "spec.containers.0.command") == ["python", "-m", "this"]
    assert cast("Json", at(pod, "metadata.labels"))["finetune.dev/role"] == "prepare"


def test_submitter_is_as_large_as_the_configuration_says_and_the_job_wishes() -> None:
    wish: Json = {
        "cluster": {"submitter": {"resources": {"limits": {"memory": "2Gi", "ephemeral-storage": "1Gi"}}}}
    }
    assert at(submitter(source()), "spec.containers.0.resources") == {
        "requests": {"cpu": "100m", "memory": "1Gi"},
        "limits": {"memory": "1Gi"},
    }
    assert at(submitter(source(wish)), "spec.containers.0.resources") == {
        "requests": {"cpu": "100m", "memory": "2Gi"},
        "limits": {"memory": "2Gi", "ephemeral-storage": "1Gi"},
    }


@pytest.mark.parametrize(
    ("spec", "processors"),
    [
        ({}, 2),
        (A10G, 3),
        ({"worker_resources": {"CPU": 0.5}}, 1),
        ({"num_devices": 4, "worker_resources": {"anyscale/accelerator_shape:4xA10G": 0.001}}, 3),
        ({"cluster": {"worker": {"resources": {"requests": {"cpu": "1500m"}, "limits": {"cpu": 4}}}}}, 4),
    ],
    ids=["profile", "GPU", "half a processor", "a shape's share", "the limit"],
)
def test_processors_of_a_worker_are_its_share_of_the_pods(spec: Json, processors: int) -> None:
    assert worker_processors(source(spec)) == processors


PROFILES: Json = {
    "accelerators": {
        "A10G": {
            "resource": "nvidia.com/gpu",
            "node_labels": [{"gke": ["a10g"]}, {"aws": ["a10g", "a10g-24"], "memory": ["24576"]}],
            "node_selector": {"healthy": "yes", "pool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "cpu": 3,
            "memory": "11Gi",
        }
    }
}
GKE = {"key": "gke", "operator": "In", "values": ["a10g"]}
AWS = [
    {"key": "aws", "operator": "In", "values": ["a10g", "a10g-24"]},
    {"key": "memory", "operator": "In", "values": ["24576"]},
]
TERMS = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"


def test_worker_goes_to_a_node_with_the_labels_of_one_alternative() -> None:
    assert at(worker(source(A10G, PROFILES)), TERMS) == [
        {"matchExpressions": [GKE]},
        {"matchExpressions": AWS},
    ]


def test_alternatives_are_multiplied_with_the_jobs_own() -> None:
    zone: Json = {"key": "zone", "operator": "Exists"}
    spot: Json = {"key": "spot", "operator": "Exists"}
    fields: JsonValue = [{"key": "metadata.name", "operator": "In", "values": ["n"]}]
    preferred: JsonValue = [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}
    ]
    neighbours: JsonValue = {"preferredDuringSchedulingIgnoredDuringExecution": []}
    affinity: Json = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [zone]},
                    {"matchExpressions": [spot], "matchFields": fields},
                ]
            },
            "preferredDuringSchedulingIgnoredDuringExecution": preferred,
        },
        "podAntiAffinity": neighbours,
    }

    pod = worker(source({**A10G, "cluster": {"affinity": affinity}}, PROFILES))

    assert at(pod, TERMS) == [
        {"matchExpressions": [zone, GKE]},
        {"matchExpressions": [zone, *AWS]},
        {"matchExpressions": [spot, GKE], "matchFields": fields},
        {"matchExpressions": [spot, *AWS], "matchFields": fields},
    ]
    assert at(pod, "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution") == preferred
    assert at(pod, "spec.affinity.podAntiAffinity") == neighbours
    assert (
        at(head(source({**A10G, "cluster": {"affinity": affinity}}, PROFILES)), "spec.affinity") == affinity
    )


def test_worker_puts_up_with_the_taints_of_its_nodes_and_the_jobs_and_other_pods_with_the_jobs() -> None:
    mine: Json = {"key": "mine", "operator": "Exists"}
    made_from = source({**A10G, "cluster": {"tolerations": [mine]}}, PROFILES)
    profile = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert at(worker(made_from), "spec.tolerations") == [profile, mine]
    assert at(head(made_from), "spec.tolerations") == at(submitter(made_from), "spec.tolerations") == [mine]


def test_node_selector_of_the_job_goes_before_the_profiles() -> None:
    made_from = source({**A10G, "cluster": {"node_selector": {"pool": "mine"}}}, PROFILES)
    assert at(worker(made_from), "spec.nodeSelector") == {"healthy": "yes", "pool": "mine"}
    assert at(head(made_from), "spec.nodeSelector") == {"pool": "mine"}


def test_worker_without_a_device_goes_anywhere() -> None:
    spec = cast("Json", worker(source())["spec"])
    assert spec.keys().isdisjoint(
        {"affinity", "nodeSelector", "tolerations", "priorityClassName", "imagePullSecrets"}
    )


@pytest.mark.parametrize("role", RAY_ROLES)
def test_claims_of_all_files_that_are_mixed_are_mounted(role: Role) -> None:
    files: list[JsonValue] = [
        {"path": "pvc://ours/a.jsonl", "weight": 2},
        {"path": "configmap://few/b.jsonl"},
    ]
    pod = role(source({**A10G, "train_path": files}))

    mounts = {str(each["mountPath"]) for each in maps(pod, "spec.containers.0.volumeMounts")}
    assert {"/finetune/claims/ours", "/finetune/config-maps/few"} <= mounts


@pytest.mark.parametrize("role", RAY_ROLES)
def test_claims_and_config_maps_are_mounted_once_each(role: Role) -> None:
    spec: Json = {
        **EVERYTHING,
        "initial_base_model_ckpt_path": "pvc://models/base",
        "initial_adapter_model_ckpt_path": "pvc://adapters/a",
        "resume_from": "pvc://old/runs/team/tune-1",
        "deepspeed": {"config_path": "configmap://zero/zero_3.json"},
    }
    pod = role(source(spec))
    claims = {
        each["name"]: at(each, "persistentVolumeClaim.claimName")
        for each in maps(pod, "spec.volumes")
        if "persistentVolumeClaim" in each
    }
    config_maps = {
        each["name"]: at(each, "configMap.name") for each in maps(pod, "spec.volumes") if "configMap" in each
    }
    mounts = {
        each["name"]: (each["mountPath"], each.get("readOnly", False))
        for each in maps(pod, "spec.containers.0.volumeMounts")
    }

    assert sorted(cast("dict[str, str]", claims).values()) == ["adapters", "data", "models", "old"]
    assert {mounts[name] for name in claims} == {
        (f"/finetune/claims/{claim}", False) for claim in claims.values()
    }
    assert sorted(cast("dict[str, str]", config_maps).values()) == (
        ["rows", "tune-11111111", "zero"] if role is head else ["rows", "zero"]
    )
    assert ("/finetune/config-maps/rows", True) in mounts.values()
    names = [each["name"] for each in maps(pod, "spec.volumes")]
    assert len(names) == len(set(cast("list[str]", names))) == len(mounts)


def test_head_alone_has_the_job_to_read() -> None:
    volume = {
        "name": "finetune-job",
        "configMap": {
            "name": "tune-11111111",
            "items": [{"key": "job.yaml", "path": "job.yaml"}],
            "defaultMode": 0o444,
        },
    }
    assert volume in maps(head(source()), "spec.volumes")
    assert {"name": "finetune-job", "mountPath": "/finetune/job", "readOnly": True} in maps(
        head(source()), "spec.containers.0.volumeMounts"
    )
    assert not any("configMap" in each for each in maps(worker(source()), "spec.volumes"))


@pytest.mark.parametrize("role", RAY_ROLES)
def test_volumes_of_the_job_are_mounted_too(role: Role) -> None:
    pod = role(source(EVERYTHING))
    assert {"name": "cache", "emptyDir": {}} in maps(pod, "spec.volumes")
    assert {"name": "cache", "mountPath": "/cache"} in maps(pod, "spec.containers.0.volumeMounts")


def test_submitter_mounts_nothing() -> None:
    assert [each.keys() - {"name"} for each in maps(submitter(source(EVERYTHING)), "spec.volumes")] == [
        {"emptyDir"},
        {"emptyDir"},
    ]
    assert at(submitter(source()), "spec.restartPolicy") == "Never"


@pytest.mark.parametrize("role", ROLES)
def test_pod_looks_as_the_job_says(role: Role) -> None:
    pod = role(source(EVERYTHING))
    container = cast("Json", at(pod, "spec.containers.0"))
    assert (container["image"], container["imagePullPolicy"]) == ("mine:2", "Always")
    assert at(EVERYTHING, "cluster.env.0") in maps(container, "env")
    assert container["envFrom"] == at(EVERYTHING, "cluster.env_from")
    assert at(pod, "spec.imagePullSecrets") == [{"name": "registry"}]
    assert at(pod, "spec.priorityClassName") == "high"
    assert at(pod, "metadata.annotations") == {"note": "hello", "finetune.dev/job-name": "tune"}


@pytest.mark.parametrize("role", ROLES)
def test_pod_looks_as_the_configuration_says_where_the_job_is_silent(role: Role) -> None:
    container = at(role(source()), "spec.containers.0")
    assert (at(container, "image"), at(container, "imagePullPolicy")) == ("trainer:1", "IfNotPresent")


@pytest.mark.parametrize("role", ROLES)
def test_labels_of_the_operator_are_not_the_jobs_to_set(role: Role) -> None:
    pod = role(
        source(
            {
                "cluster": {
                    "labels": {
                        "team": "blue",
                        "finetune.dev/job-uid": "another",
                        "finetune.dev/attempt": "9",
                        "finetune.dev/role": "another",
                    }
                }
            },
            attempt=2,
        )
    )
    assert at(pod, "metadata.labels") == {
        "team": "blue",
        "app.kubernetes.io/managed-by": "finetune-operator",
        "finetune.dev/job-uid": UID,
        "finetune.dev/attempt": "2",
        **({"finetune.dev/role": "prepare"} if role is prepare else {}),
    }


def test_values_of_our_variables_are_literal() -> None:
    pod = head_pod(
        source(), "account", "tune-11111111", {"FINETUNE_ASSIGNMENT": '{"storage": "s3://$(SECRET)/$HOME"}'}
    )
    assert {"name": "FINETUNE_ASSIGNMENT", "value": '{"storage": "s3://$$(SECRET)/$$HOME"}'} in maps(
        pod, "spec.containers.0.env"
    )


def placed(role: Role, cluster: Json) -> Json:
    """Where a pod goes and under what."""
    spec = cast("Json", role(source({**A10G, "cluster": cluster}, PROFILES))["spec"])
    keys = ("nodeSelector", "tolerations", "runtimeClassName", "schedulerName", "topologySpreadConstraints")
    return {key: spec[key] for key in keys if key in spec}


PROFILES_SELECTOR: Json = {"healthy": "yes", "pool": "gpu"}
PROFILES_TOLERATION: Json = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def toleration(key: str) -> Json:
    return {"key": key, "operator": "Exists"}


def test_head_workers_and_the_rest_each_go_where_the_job_says() -> None:
    rest, heads, workers = map(toleration, ("rest", "heads", "workers"))
    cluster: Json = {
        "node_selector": {"pool": "rest"},
        "tolerations": [rest],
        "head": {"node_selector": {"on": "demand"}, "tolerations": [heads]},
        "worker": {"node_selector": {"spot": "yes"}, "tolerations": [workers]},
    }
    assert placed(submitter, cluster) == {"nodeSelector": {"pool": "rest"}, "tolerations": [rest]}
    assert placed(head, cluster) == {"nodeSelector": {"on": "demand"}, "tolerations": [heads]}
    assert placed(worker, cluster) == {
        "nodeSelector": {**PROFILES_SELECTOR, "spot": "yes"},
        "tolerations": [PROFILES_TOLERATION, workers],
    }


@pytest.mark.parametrize("role", ROLES)
def test_each_kind_of_pod_can_be_sent_somewhere_else_than_the_others(role: Role) -> None:
    own: Json = {"node_selector": {"only": "mine"}, "runtime_class_name": "mine", "tolerations": []}
    cluster: Json = {"node_selector": {"pool": "a"}, role.__name__: own}
    # Prepare goes where the head does, unless it is said.
    others = [other for other in ROLES if other is not role and (role, other) != (head, prepare)]
    assert placed(role, cluster)["runtimeClassName"] == "mine"
    assert cast("Json", placed(role, cluster)["nodeSelector"])["only"] == "mine"
    assert not any("runtimeClassName" in placed(other, cluster) for other in others)
    assert all(cast("Json", placed(other, cluster)["nodeSelector"])["pool"] == "a" for other in others)


def test_one_kind_of_pod_can_be_left_out_of_what_is_said_of_all() -> None:
    none: Json = {"node_selector": {}, "tolerations": []}
    cluster: Json = {"node_selector": {"pool": "a"}, "tolerations": [{"operator": "Exists"}], "head": none}
    assert placed(head, cluster) == {}
    assert placed(submitter, cluster).keys() == {"nodeSelector", "tolerations"}


def test_runtime_class_is_that_of_all_pods_or_of_one_kind() -> None:
    def classes(cluster: Json) -> list[JsonValue]:
        return [placed(role, cluster).get("runtimeClassName") for role in (head, worker, submitter)]

    assert classes({"runtime_class_name": "gvisor"}) == ["gvisor"] * 3
    assert classes({"worker": {"runtime_class_name": "nvidia"}}) == [None, "nvidia", None]
    assert classes({"runtime_class_name": "gvisor", "head": {"runtime_class_name": "runc"}}) == [
        "runc",
        "gvisor",
        "gvisor",
    ]


@pytest.mark.parametrize("role", ROLES)
def test_scheduler_is_the_jobs_choice(role: Role) -> None:
    assert placed(role, {"scheduler_name": "volcano"})["schedulerName"] == "volcano"
    assert "schedulerName" not in placed(role, {})


def test_workers_are_spread_and_what_is_counted_are_the_workers_of_the_job_unless_it_says_so() -> None:
    zones: Json = {
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule",
    }
    everybody: Json = {**zones, "labelSelector": {"matchLabels": {"team": "blue"}}}
    cluster: Json = {"topology_spread_constraints": [zones, everybody]}
    assert placed(worker, cluster)["topologySpreadConstraints"] == [
        {
            **zones,
            "labelSelector": {"matchLabels": {"finetune.dev/job-uid": UID, "ray.io/node-type": "worker"}},
        },
        everybody,
    ]
    assert "topologySpreadConstraints" not in placed(head, cluster) | placed(submitter, cluster)


def claimed(pod: Json) -> tuple[JsonValue, JsonValue]:
    """The claims of a pod, and those that its container gets."""
    spec = cast("Json", pod["spec"])
    return spec.get("resourceClaims"), cast("Json", at(spec, "containers.0.resources")).get("claims")


def test_claims_of_one_kind_of_pod_are_given_to_its_container() -> None:
    nics: Json = {"name": "nics", "resourceClaimTemplateName": "four-nics"}
    shared: Json = {"name": "shared", "resourceClaimName": "fabric"}
    made_from = source({**A10G, "cluster": {"worker": {"resource_claims": [nics, shared]}}})
    assert claimed(worker(made_from)) == ([nics, shared], [{"name": "nics"}, {"name": "shared"}])
    assert claimed(head(made_from)) == claimed(submitter(made_from)) == (None, None)
    assert worker_amounts(made_from) == worker_amounts(source(A10G))


def test_accelerators_that_are_claimed_are_one_claim_for_each_device() -> None:
    settings: Json = {
        "accelerators": {"A10G": {"resource_claim_template": "one-a10g", "cpu": 3, "memory": "11Gi"}}
    }
    shape: Json = {
        "num_devices": 2,
        "worker_resources": {"anyscale/accelerator_shape:2xA10G": 0.001},
        "cluster": {"worker": {"resource_claims": [{"name": "nic", "resourceClaimName": "fabric"}]}},
    }
    names = ["finetune-device-0", "finetune-device-1"]
    made_from = source(shape, settings)
    assert claimed(worker(made_from)) == (
        [
            {"name": "nic", "resourceClaimName": "fabric"},
            *({"name": name, "resourceClaimTemplateName": "one-a10g"} for name in names),
        ],
        [{"name": "nic"}, *({"name": name} for name in names)],
    )
    assert worker_amounts(made_from) == ({"cpu": "6", "memory": "22Gi"}, {"memory": "22Gi"})
    assert claimed(head(made_from)) == claimed(submitter(made_from)) == (None, None)


RDMA: Json = {
    "accelerators": {
        "A10G": {
            "resource": "nvidia.com/gpu",
            "cpu": 3,
            "memory": "11Gi",
            "tolerations": [PROFILES_TOLERATION],
            "pod": {
                "runtimeClassName": "nvidia",
                "hostNetwork": True,
                "tolerations": [{"key": "rdma", "operator": "Exists"}],
                "volumes": [{"name": "infiniband", "hostPath": {"path": "/dev/infiniband"}}],
                "securityContext": {"supplementalGroups": [44]},
            },
            "container": {
                "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
                "resources": {"limits": {"rdma/hca": 1}},
                "volumeMounts": [{"name": "infiniband", "mountPath": "/dev/infiniband"}],
                "env": [{"name": "NCCL_IB_HCA", "value": "mlx5"}],
            },
        }
    }
}


def test_profile_can_ask_for_what_a_job_cannot() -> None:
    pod = worker(source({**A10G, "cluster": {"runtime_class_name": "gvisor"}}, RDMA))
    spec, container = cast("Json", pod["spec"]), cast("Json", at(pod, "spec.containers.0"))
    assert (spec["runtimeClassName"], spec["hostNetwork"]) == ("nvidia", True)
    assert spec["tolerations"] == [PROFILES_TOLERATION, {"key": "rdma", "operator": "Exists"}]
    assert at(spec, "securityContext.supplementalGroups") == [44]
    assert at(spec, "securityContext.runAsNonRoot") is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
        "readOnlyRootFilesystem": True,
    }
    assert at(container, "resources.limits") == {"memory": "11Gi", "nvidia.com/gpu": "1", "rdma/hca": 1}
    plain = worker(source(A10G))
    for path, added in (
        ("spec.volumes", {"name": "infiniband", "hostPath": {"path": "/dev/infiniband"}}),
        ("spec.containers.0.volumeMounts", {"name": "infiniband", "mountPath": "/dev/infiniband"}),
        ("spec.containers.0.env", {"name": "NCCL_IB_HCA", "value": "mlx5"}),
    ):
        assert maps(pod, path) == [*maps(plain, path), added]


@pytest.mark.parametrize("role", [head, submitter])
def test_what_a_profile_asks_for_is_for_workers_alone(role: Role) -> None:
    assert role(source(A10G, RDMA)) == role(source(A10G))


@pytest.mark.parametrize("role", ROLES)
def test_secrets_of_a_registry_are_the_jobs_else_the_configurations(role: Role) -> None:
    settings: Json = {"image_pull_secrets": [{"name": "everybodys"}]}

    def secrets(cluster: Json) -> JsonValue:
        return cast("Json", role(source({"cluster": cluster}, settings))["spec"]).get("imagePullSecrets")

    assert secrets({}) == [{"name": "everybodys"}]
    assert secrets({"image_pull_secrets": [{"name": "mine"}]}) == [{"name": "mine"}]
    assert secrets({"image_pull_secrets": []}) is None


def identity(pod: Json) -> Json:
    """Who runs in a pod."""
    context = cast("Json", at(pod, "spec.securityContext"))
    return {key: value for key, value in context.items() if key.endswith(("User", "Group", "Groups"))}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "context",
    [{}, {"runAsUser": 1_000_650_000, "fsGroup": 0}, {"runAsGroup": 0, "supplementalGroups": [3000]}],
    ids=["the cluster's", "user and volumes", "groups"],
)
def test_pod_runs_as_whom_the_configuration_says_and_else_as_the_cluster_does(
    role: Role, context: Json
) -> None:
    pod = role(source(settings={"pod_security_context": context}))
    assert identity(pod) == context
    assert at(pod, "spec.securityContext.runAsNonRoot") is True
    assert list(violations(pod)) == []


@pytest.mark.parametrize("role", ROLES)
def test_pod_runs_as_the_images_user_by_default(role: Role) -> None:
    assert identity(role(source())) == {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}


@pytest.mark.parametrize("role", ROLES)
def test_user_has_a_name_and_a_home_whatever_its_number(role: Role) -> None:
    variables = {each["name"]: each["value"] for each in maps(role(source()), "spec.containers.0.env")}
    assert (variables["HOME"], variables["USER"]) == ("/home/ray", "ray")
    assert "/home/ray" in {
        each["mountPath"] for each in maps(role(source()), "spec.containers.0.volumeMounts")
    }
