"""The objects that the operator creates for a job: a RayJob for each attempt, and what that needs to report.

Before the first RayJob there may be a Job that prepares, in the first attempt or in each until one has.

The FineTuneJob owns all of them, so that deleting it deletes them. Each is created once and never written
again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from pydantic import JsonValue

from finetune_api.assignment import ASSIGNMENT, Assignment
from finetune_api.crd import unchecked_fields
from finetune_api.devices import ACCELERATOR_TYPE
from finetune_api.manifest import API_VERSION, KIND, Manifest, Metadata
from finetune_api.paths import JOB_FILE
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.children.pods import (
    PodSource,
    head_pod,
    prepare_pod,
    submitter_pod,
    worker_pod,
    worker_processors,
)
from finetune_operator.children.quantities import in_bytes
from finetune_operator.names import (
    ATTEMPT,
    JOB_NAME,
    JOB_UID,
    MANAGED_BY,
    STORAGE,
    UNCHECKED_SPEC,
    child_name,
    prepare_job_name,
    ray_job_name,
)
from finetune_operator.observed import KubernetesObject
from finetune_operator.settings.configuration import JsonObject

# Without the directory that the program happens to start in: a peft.py there would be taken for peft.
ENTRYPOINT = "python -P -m finetune_trainer.on_cluster"
PREPARE_COMMAND = ("/bin/bash", "-lc", "--", "exec python -P -m finetune_trainer.prepare_on_cluster")
"""In a login shell, as KubeRay starts Ray: path and umask are those of the trainer on the head."""
RAY_JOB = "RayJob"
JOB = "Job"
CONFIG_MAP = "ConfigMap"
SERVICE_ACCOUNT = "ServiceAccount"
ROLE = "Role"
ROLE_BINDING = "RoleBinding"
NETWORK_POLICY = "NetworkPolicy"
DASHBOARD_PORT = 8265
"""Ray's own default. Through it KubeRay asks how a job is, and anyone with the token runs programs."""
_STAGES = {ROLE_BINDING: 1, RAY_JOB: 2, JOB: 2}
UNCHECKED = tuple(unchecked_fields())


def children(source: PodSource, *, deadline_seconds: int | None) -> list[KubernetesObject]:
    """All objects of an attempt, in the order in which they must be created.

    `deadline_seconds` is what is left of `active_deadline_seconds`; None sets no limit.
    """
    name, account = _names(source)
    return [*_common(source, name, account), _ray_job(source, name, account, deadline_seconds)]


def children_that_prepare(source: PodSource) -> list[KubernetesObject]:
    """The same for what comes before an attempt's cluster: a Job that prepares, and what that needs."""
    name, account = _names(source)
    return [*_common(source, name, account), _prepare_job(source, name, account)]


def in_stages(manifests: Sequence[KubernetesObject]) -> list[list[KubernetesObject]]:
    """The same objects in groups, each of which may be made side by side once those before it are there.

    A role is there before it is bound, since only then the API server can see that the operator may do that;
    and what runs pods comes last.
    """
    stages: dict[int, list[KubernetesObject]] = {}
    for manifest in manifests:
        stages.setdefault(_STAGES.get(str(manifest["kind"]), 0), []).append(manifest)
    return [stages[stage] for stage in sorted(stages)]


def _names(source: PodSource) -> tuple[str, str]:
    """The name of the objects that all attempts share, and that of the pods' service account."""
    name = child_name(source.metadata.name, source.metadata.uid)
    return name, source.cluster.service_account_name or name


def _common(source: PodSource, name: str, account: str) -> list[KubernetesObject]:
    """What all attempts share, and Prepare with them."""
    common = [_config_map(source, name), _role(source, name), _role_binding(source, name, account)]
    if account == name:
        common.insert(
            1, {**_object(source, "v1", SERVICE_ACCOUNT, name), "automountServiceAccountToken": False}
        )
    if source.configuration.network_policies:
        common.append(_network_policy(source, name))
    return common


def unchecked_hash(spec: FineTuneJobSpec) -> str:
    """A hash of the fields that must not change, but whose change the API server cannot refuse."""
    fields = spec.model_dump(mode="json", include=set(UNCHECKED))
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _config_map(source: PodSource, name: str) -> KubernetesObject:
    """Holds the job for the trainer to read, and the progress record that it writes."""
    job = Manifest(
        metadata=Metadata(name=source.metadata.name, namespace=source.metadata.namespace), spec=source.spec
    )
    return {**_object(source, "v1", CONFIG_MAP, name), "data": {JOB_FILE: job.to_yaml()}}


def _role(source: PodSource, name: str) -> KubernetesObject:
    rule: JsonObject = {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [name],
        "verbs": ["get", "patch"],
    }
    return {**_object(source, "rbac.authorization.k8s.io/v1", ROLE, name), "rules": [rule]}


def _role_binding(source: PodSource, name: str, account: str) -> KubernetesObject:
    return {
        **_object(source, "rbac.authorization.k8s.io/v1", ROLE_BINDING, name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": ROLE, "name": name},
        "subjects": [{"kind": SERVICE_ACCOUNT, "name": account, "namespace": source.metadata.namespace}],
    }


def _network_policy(source: PodSource, name: str) -> KubernetesObject:
    """Opens the job's pods to each other, and Ray's dashboard to the clients that the configuration names."""
    pods: JsonObject = {"matchLabels": {JOB_UID: source.metadata.uid}}
    clients = [
        peer.model_dump(mode="json", exclude_none=True) for peer in source.configuration.dashboard_clients
    ]
    dashboard: JsonObject = {
        "ports": [{"protocol": "TCP", "port": DASHBOARD_PORT}],
        **({"from": list[JsonValue](clients)} if clients else {}),
    }
    spec: JsonObject = {
        "podSelector": pods,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": pods}]}, dashboard],
    }
    return {**_object(source, "networking.k8s.io/v1", NETWORK_POLICY, name), "spec": spec}


def _ray_job(
    source: PodSource, config_map: str, account: str, deadline_seconds: int | None
) -> KubernetesObject:
    placement, profile = source.placement, source.placement.profile
    accelerator = f"{ACCELERATOR_TYPE}{placement.accelerator_type}"
    processors, devices = worker_processors(source), placement.devices_per_pod
    ray_resources = {"CPU": str(processors * devices), accelerator: str(devices)}
    if profile.has_device:
        ray_resources["GPU"] = str(devices)
    job = _object(
        source,
        "ray.io/v1",
        RAY_JOB,
        ray_job_name(source.metadata.name, source.metadata.uid, source.attempt),
    )
    spec: JsonObject = {
        "entrypoint": ENTRYPOINT,
        "submissionMode": "K8sJobMode",
        # The client would submit the program again on a cluster that has lost it: trying again is the
        # operator's.
        "submitterConfig": {"backoffLimit": 0},
        "backoffLimit": 0,
        "shutdownAfterJobFinishes": True,
        "preRunningDeadlineSeconds": source.spec.run_policy.starting_deadline_seconds,
        "submitterPodTemplate": submitter_pod(source, account),
        "rayClusterSpec": {
            "rayVersion": source.configuration.ray_version,
            # Ray's ports run what anyone who reaches them sends: KubeRay makes a token that all of them ask
            # for.
            "authOptions": {"mode": "token"},
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
                "template": head_pod(source, account, config_map, _told(source, config_map)),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": placement.pods,
                    "minReplicas": placement.pods,
                    "maxReplicas": placement.pods,
                    "rayStartParams": {},
                    "resources": cast("JsonValue", ray_resources),
                    "template": worker_pod(source, account),
                }
            ],
        },
    }
    if deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = deadline_seconds
    return {**job, "spec": spec}


def _prepare_job(source: PodSource, config_map: str, account: str) -> KubernetesObject:
    name = prepare_job_name(source.metadata.name, source.metadata.uid, source.attempt)
    template = prepare_pod(source, account, config_map, _told(source, config_map), PREPARE_COMMAND)
    # Trying again is the operator's, which knows why it failed.
    return {**_object(source, "batch/v1", JOB, name), "spec": {"backoffLimit": 0, "template": template}}


def _told(source: PodSource, config_map: str) -> dict[str, str]:
    """The environment of the trainer's driver, and of Prepare."""
    placement, processors = source.placement, worker_processors(source)
    memory = placement.profile.device_memory
    accelerator = f"{ACCELERATOR_TYPE}{placement.accelerator_type}"
    assignment = Assignment(
        uid=source.metadata.uid,
        attempt=source.attempt,
        storage=source.storage,
        config_map=config_map,
        on_gpu=placement.profile.has_device,
        worker_resources={"CPU": processors, accelerator: placement.amount},
        worker_threads=processors,
        device_memory=in_bytes(memory) if memory is not None else None,
    )
    return {ASSIGNMENT: assignment.model_dump_json()}


def _passed_on(values: Mapping[str, str], keys: Iterable[str]) -> dict[str, JsonValue]:
    """Those labels or annotations of a FineTuneJob that its RayJob is to have as well."""
    return {key: value for key, value in values.items() if key in set(keys)}


def _object(source: PodSource, api_version: str, kind: str, name: str) -> KubernetesObject:
    owner: JsonObject = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": source.metadata.name,
        "uid": source.metadata.uid,
    }
    metadata: JsonObject = {
        "name": name,
        "namespace": source.metadata.namespace,
        "labels": {**MANAGED_BY, JOB_UID: source.metadata.uid},
        "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": False}],
    }
    if kind in (RAY_JOB, JOB):
        # A queue holds what it knows back: what has no device goes past it.
        configuration, queued = source.configuration, kind == RAY_JOB
        labels = configuration.ray_job_labels if queued else []
        annotations = configuration.ray_job_annotations if queued else []
        metadata["labels"] = {
            **_passed_on(source.metadata.labels, labels),
            **cast("dict[str, str]", metadata["labels"]),
            ATTEMPT: str(source.attempt),
        }
        metadata["annotations"] = {
            **_passed_on(source.metadata.annotations, annotations),
            JOB_NAME: source.metadata.name,
            UNCHECKED_SPEC: unchecked_hash(source.spec),
            STORAGE: source.storage,
        }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}
