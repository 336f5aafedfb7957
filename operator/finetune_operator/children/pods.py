"""Pod templates of a job, fit for the Pod Security level `restricted`.

Containers run as a user who is not root, without a way to more rights, on a read-only root file system. What
Ray and the trainer write outside of storage is in emptyDir volumes. Only the accelerator profiles of whoever
installs the operator can ask for more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue

from finetune_api.cluster import Cluster, NodeGroup, ResourceClaim
from finetune_api.paths import (
    JOB_DIRECTORY,
    JOB_FILE,
    claim_mount,
    claim_of,
    config_map_mount,
    config_map_of,
)
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.children.placement import Placement
from finetune_operator.children.quantities import in_bytes, times, whole_processors
from finetune_operator.names import ATTEMPT, JOB_NAME, JOB_UID, MANAGED_BY, NODE_TYPE, PREPARE, ROLE
from finetune_operator.observed import ObjectMeta
from finetune_operator.settings.configuration import Configuration, JsonObject, PodResources

HOME = "/home/ray"
IDENTITY = {"HOME": HOME, "USER": "ray"}
"""Who a pod's programs are, whatever number the cluster gives their user: one that is not in the image's
/etc/passwd has no home, and Python's getpass, which torch asks for the name of its cache, fails."""

DRAIN_SECONDS = 25
"""How long Ray lets a node that is being taken away finish what it does."""
GRACE_SECONDS = 35
"""Longer than Ray's drain, so that it ends by itself, and shorter than a minute, so that devices are free
soon."""

RAY_SETTINGS = {
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_SECONDS),
    # `ray job stop` would kill the trainer after 3 s, before a snapshot is saved.
    "RAY_JOB_STOP_WAIT_TIME_S": str(DRAIN_SECONDS),
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray is nice by 15, which starves training where anything else runs.
    "RAY_worker_niceness": "0",
    # Ray Train's training is in a thread. There glibc gives large tensors back to the system and takes them
    # anew, step by step, unless all threads share one arena.
    "MALLOC_ARENA_MAX": "1",
}
"""Settings that Ray's own processes read when they start."""

_HEALTH: JsonObject = {"httpGet": {"path": "/api/healthz", "port": 52365}, "timeoutSeconds": 5}
PROBES: JsonObject = {
    "startupProbe": {**_HEALTH, "periodSeconds": 1, "failureThreshold": 600},
    "readinessProbe": {**_HEALTH, "periodSeconds": 5, "failureThreshold": 10},
}
"""KubeRay's own probes, which it leaves out where there are some, do not look for the first ten seconds.

The address is that of Ray's agent on each node, by https://docs.ray.io/en/latest/ray-core/configure.html; how
long a start may take and how often a node may not answer is KubeRay's.
"""

_JOB_VOLUME = "finetune-job"
_EMPTY_DIRECTORIES = {"finetune-home": HOME, "finetune-tmp": "/tmp"}


@dataclass(frozen=True)
class PodSource:
    """What all pods of a job are made from."""

    metadata: ObjectMeta
    """Of the FineTuneJob."""
    attempt: int
    spec: FineTuneJobSpec
    placement: Placement
    configuration: Configuration
    storage: str
    """The folder below which runs are saved, as users write it: `s3://...`, `pvc://...`."""
    host_memory: int | None = None
    """Bytes that a worker takes of its host for each device, where the trainer has estimated it."""

    @property
    def cluster(self) -> Cluster:
        """What the spec asks for its pods: `spec.cluster`, empty where the spec has none."""
        return self.spec.cluster or Cluster()


def worker_resources(source: PodSource) -> JsonObject:
    """Requests and limits of a worker pod: its devices' share of the profile, or what the spec asks for.

    Memory is that of the profile, or more where training needs more by the estimate. All workers are alike,
    and any may be rank 0: `trainer_resources` is added to each.
    """
    profile, devices = source.placement.profile, source.placement.devices_per_pod
    asked, extra = source.spec.worker_resources or {}, source.spec.trainer_resources or {}
    each = _whole(asked["memory"]) if "memory" in asked else _enough(profile.memory, source.host_memory)
    memory: int | str = times(each, devices)
    if "memory" in extra:
        memory = in_bytes(memory) + _whole(extra["memory"])
    cpu: int | str = times(str(asked["CPU"]) if "CPU" in asked else profile.cpu, devices)
    device: JsonObject = {profile.resource: str(devices)} if profile.resource else {}
    default: JsonObject = {
        "requests": {"cpu": str(cpu), "memory": str(memory)},
        "limits": {"memory": str(memory), **device},
    }
    return _merged(default, source.cluster.worker)


def _enough(memory: int | str, needed: int | None) -> int | str:
    """An amount of memory that is not less than so many bytes, in whole MiB where it is raised."""
    if needed is None or needed <= in_bytes(memory):
        return memory
    return f"{-(-needed // 2**20)}Mi"


def worker_processors(source: PodSource) -> int:
    """Processors for each device of a worker pod: of its CPU limit, else of its request."""
    resources = worker_resources(source)
    limits, requests = (
        cast("dict[str, int | str]", resources.get(kind) or {}) for kind in ("limits", "requests")
    )
    cpu = limits.get("cpu") or requests.get("cpu") or 1
    return max(1, whole_processors(cpu) // source.placement.devices_per_pod)


def head_pod(
    source: PodSource, service_account: str, job_config_map: str, environment: Mapping[str, str]
) -> JsonObject:
    """The head's pod template: it runs the driver, trains nothing, and of its cluster alone has a token."""
    resources = _merged(_size(source.configuration.head), source.cluster.head)
    template = _ray_pod(source, "head", resources, environment)
    _mount_job(template, job_config_map)
    return _with_account(template, service_account, token=True)


def prepare_pod(
    source: PodSource,
    service_account: str,
    job_config_map: str,
    environment: Mapping[str, str],
    command: Sequence[str],
) -> JsonObject:
    """The pod template of Prepare: a head without Ray. It has no device, and an API token for the record."""
    configuration = source.configuration
    as_a_head = _merged(_size(configuration.prepare or configuration.head), source.cluster.head)
    template = _pod(
        source, PREPARE, _merged(as_a_head, source.cluster.prepare), dict(environment), mounts=True
    )
    spec = cast("JsonObject", template["spec"])
    spec["restartPolicy"] = "Never"
    [container] = cast("list[JsonObject]", spec["containers"])
    container["command"] = list(command)
    cast("dict[str, JsonObject]", template["metadata"])["labels"][ROLE] = PREPARE
    _mount_job(template, job_config_map)
    return _with_account(template, service_account, token=True)


def _size(size: PodResources) -> JsonObject:
    """The resources of a pod as the configuration has them."""
    return {
        "requests": {"cpu": str(size.cpu), "memory": str(size.memory)},
        "limits": {"memory": str(size.memory)},
    }


def _mount_job(template: JsonObject, job_config_map: str) -> None:
    """Shows a pod the job that is to be trained."""
    spec = cast("dict[str, list[JsonValue]]", template["spec"])
    spec["volumes"].append(
        {
            "name": _JOB_VOLUME,
            "configMap": {
                "name": job_config_map,
                "items": [{"key": JOB_FILE, "path": JOB_FILE}],
                "defaultMode": 0o444,
            },
        }
    )
    container = cast("dict[str, list[JsonValue]]", spec["containers"][0])
    container["volumeMounts"].append({"name": _JOB_VOLUME, "mountPath": str(JOB_DIRECTORY), "readOnly": True})


def worker_pod(source: PodSource, service_account: str) -> JsonObject:
    """The pod template of the workers, which have the accelerators."""
    profile = source.placement.profile
    template = _ray_pod(source, "worker", worker_resources(source), {})
    spec = cast("JsonObject", template["spec"])
    tolerations: list[JsonValue] = [
        each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in profile.tolerations
    ]
    affinity = _with_node_labels(source.cluster.affinity or {}, profile.node_labels)
    ours: JsonObject = {
        "nodeSelector": {**profile.node_selector, **cast("JsonObject", spec.get("nodeSelector", {}))},
        "tolerations": [*tolerations, *cast("list[JsonValue]", spec.get("tolerations", []))],
        "affinity": affinity,
        "topologySpreadConstraints": [_spread(source, each) for each in _constraints(source)],
    }
    spec |= {key: value for key, value in ours.items() if value}
    _claim_devices(spec, profile.resource_claim_template, source.placement.devices_per_pod)
    [container] = cast("list[JsonObject]", spec["containers"])
    template["spec"] = _laid_over(
        {**spec, "containers": [_laid_over(container, profile.container)]}, profile.pod
    )
    return _with_account(template, service_account, token=False)


def submitter_pod(source: PodSource, service_account: str) -> JsonObject:
    """The pod template of the client that hands the trainer's program to Ray and follows its log."""
    resources = _merged(_size(source.configuration.submitter), source.cluster.submitter)
    template = _pod(source, "submitter", resources, {}, mounts=False)
    cast("JsonObject", template["spec"])["restartPolicy"] = "Never"
    return _with_account(template, service_account, token=False)


def _ray_pod(
    source: PodSource, role: str, resources: JsonObject, environment: Mapping[str, str]
) -> JsonObject:
    template = _pod(source, role, resources, {**RAY_SETTINGS, **environment}, mounts=True)
    spec = cast("dict[str, list[JsonObject]]", template["spec"])
    spec["containers"][0].update(PROBES)
    return template


def _pod(
    source: PodSource, role: str, resources: JsonObject, environment: Mapping[str, str], *, mounts: bool
) -> JsonObject:
    cluster, configuration = source.cluster, source.configuration
    claims, config_maps = _mounted(source) if mounts else ([], [])
    volumes: list[JsonValue] = [{"name": name, "emptyDir": {}} for name in _EMPTY_DIRECTORIES]
    volume_mounts: list[JsonValue] = [
        {"name": name, "mountPath": path} for name, path in _EMPTY_DIRECTORIES.items()
    ]
    for number, claim in enumerate(claims):
        volumes.append({"name": f"finetune-claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
        volume_mounts.append({"name": f"finetune-claim-{number}", "mountPath": str(claim_mount(claim))})
    for number, name in enumerate(config_maps):
        volumes.append({"name": f"finetune-config-map-{number}", "configMap": {"name": name}})
        volume_mounts.append(
            {
                "name": f"finetune-config-map-{number}",
                "mountPath": str(config_map_mount(name)),
                "readOnly": True,
            }
        )
    if mounts:
        volumes += cluster.volumes or []
        volume_mounts += cluster.volume_mounts or []

    container: JsonObject = {
        "name": role,
        "image": cluster.image or configuration.trainer_image,
        "imagePullPolicy": cluster.image_pull_policy or configuration.image_pull_policy,
        "env": [*_variables({**IDENTITY, **environment}), *(cluster.env or [])],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": volume_mounts,
    }
    if cluster.env_from:
        container["envFrom"] = list(cluster.env_from)
    spec: JsonObject = {
        "containers": [container],
        "securityContext": {
            "runAsNonRoot": True,
            **configuration.pod_security_context.model_dump(mode="json", exclude_none=True),
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": volumes,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
    }
    secrets = cluster.image_pull_secrets
    if secrets is None:
        secrets = configuration.image_pull_secrets
    optional: JsonObject = {
        "imagePullSecrets": [{"name": secret.name} for secret in secrets],
        **_placed(cluster, role),
        "affinity": cluster.affinity,
        "schedulerName": cluster.scheduler_name,
        "priorityClassName": cluster.priority_class_name,
    }
    spec |= {key: value for key, value in optional.items() if value}
    _claim(spec, _group(cluster, role).resource_claims or [])
    return {"metadata": _pod_metadata(source), "spec": spec}


def _group(cluster: Cluster, role: str) -> NodeGroup:
    """What the spec says of one kind of pod."""
    groups = {"head": cluster.head, "worker": cluster.worker, "submitter": cluster.submitter}
    if role != PREPARE:
        return groups[role] or NodeGroup()
    as_a_head = (cluster.head or NodeGroup()).model_copy(update={"resource_claims": None})
    own = (cluster.prepare or NodeGroup()).model_dump(exclude_none=True)
    return as_a_head.model_copy(update={name: getattr(cluster.prepare, name) for name in own})


def _placed(cluster: Cluster, role: str) -> JsonObject:
    """Where a pod goes: what the spec says of its kind, else what it says of all."""
    group = _group(cluster, role)
    own = {
        "nodeSelector": (group.node_selector, cluster.node_selector),
        "tolerations": (group.tolerations, cluster.tolerations),
        "runtimeClassName": (group.runtime_class_name, cluster.runtime_class_name),
    }
    return {key: cast("JsonValue", common if own is None else own) for key, (own, common) in own.items()}


def _constraints(source: PodSource) -> list[JsonObject]:
    return source.cluster.topology_spread_constraints or []


def _spread(source: PodSource, constraint: JsonObject) -> JsonObject:
    """A topology spread constraint of the workers, which counts them unless it says what it counts.

    Kubernetes would count nothing.
    """
    workers: JsonObject = {"matchLabels": {JOB_UID: source.metadata.uid, NODE_TYPE: "worker"}}
    return {"labelSelector": workers, **constraint}


def _claim_devices(spec: JsonObject, template: str | None, devices: int) -> None:
    """Lets a worker claim its accelerators by dynamic resource allocation."""
    if template is not None:
        names = [f"finetune-device-{number}" for number in range(devices)]
        _claim(spec, [ResourceClaim(name=name, resourceClaimTemplateName=template) for name in names])


def _claim(spec: JsonObject, claims: Sequence[ResourceClaim]) -> None:
    """Adds resource claims to a pod, and gives what they are for to its container."""
    if not claims:
        return
    [container] = cast("list[JsonObject]", spec["containers"])
    claimed: list[JsonValue] = [each.model_dump(mode="json", exclude_none=True) for each in claims]
    given: list[JsonValue] = [{"name": each.name} for each in claims]
    spec["resourceClaims"] = [*cast("list[JsonValue]", spec.get("resourceClaims", [])), *claimed]
    container["resources"] = _laid_over(cast("JsonObject", container["resources"]), {"claims": given})


def _laid_over(below: Mapping[str, JsonValue], above: Mapping[str, JsonValue]) -> JsonObject:
    """A part of a pod with another one laid over it.

    Maps are laid over each other key by key, lists are added to, and anything else is replaced.
    """
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            result[key] = _laid_over(under, value)
        elif isinstance(under, list) and isinstance(value, list):
            result[key] = [*under, *value]
        else:
            result[key] = value
    return result


def _variables(environment: Mapping[str, str]) -> list[JsonValue]:
    # Kubernetes replaces $(NAME) in a value; $$ is a dollar sign.
    return [{"name": name, "value": value.replace("$", "$$")} for name, value in environment.items()]


def _pod_metadata(source: PodSource) -> JsonObject:
    ours = {**MANAGED_BY, JOB_UID: source.metadata.uid, ATTEMPT: str(source.attempt)}
    asked = {key: value for key, value in (source.cluster.labels or {}).items() if key != ROLE}
    return {
        "labels": {**asked, **ours},
        "annotations": {**(source.cluster.annotations or {}), JOB_NAME: source.metadata.name},
    }


def _with_account(template: JsonObject, service_account: str, *, token: bool) -> JsonObject:
    cast("JsonObject", template["spec"]).update(
        serviceAccountName=service_account, automountServiceAccountToken=token
    )
    return template


def _mounted(source: PodSource) -> tuple[list[str], list[str]]:
    """The names of the claims and of the config maps in a spec's paths, each once."""
    spec = source.spec
    paths = [source.storage, spec.model_id, *spec.data_paths, spec.resume_from]
    paths += [
        path
        for path in (spec.initial_base_model_ckpt_path, spec.initial_adapter_model_ckpt_path)
        if isinstance(path, str)
    ]
    if spec.deepspeed is not None:
        paths.append(spec.deepspeed.config_path)
    named = [path for path in paths if path]
    return _each_once(map(claim_of, named)), _each_once(map(config_map_of, named))


def _each_once(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name))


def _merged(default: JsonObject, group: NodeGroup | None) -> JsonObject:
    """The default resources with those of the spec over them, name by name."""
    if group is None or group.resources is None:
        return default
    asked = group.resources.model_dump(exclude_none=True)
    merged: JsonObject = {
        kind: {**cast("JsonObject", default.get(kind, {})), **asked.get(kind, {})}
        for kind in ("requests", "limits")
    }
    requests, limits = cast("JsonObject", merged["requests"]), cast("JsonObject", merged["limits"])
    # Who asks for one of the two asks for both: a request above the limit would be refused.
    for name in ("cpu", "memory"):
        if name in asked.get("limits", {}) and name not in asked.get("requests", {}):
            requests[name] = limits[name]
        if name in asked.get("requests", {}) and name not in asked.get("limits", {}) and name in limits:
            limits[name] = requests[name]
    return merged


def _with_node_labels(
    affinity: Mapping[str, JsonValue], alternatives: list[dict[str, list[str]]]
) -> JsonObject:
    """The affinity that also requires a node with the labels of one of the alternatives.

    Node selector terms are alternatives, and all expressions of a term must hold: so each term that is there
    is combined with each of the new alternatives.
    """
    if not alternatives:
        return dict(affinity)
    ours: list[list[JsonValue]] = [
        [{"key": label, "operator": "In", "values": list(values)} for label, values in alternative.items()]
        for alternative in alternatives
    ]
    node = affinity.get("nodeAffinity") or {}
    required = (
        node.get("requiredDuringSchedulingIgnoredDuringExecution") or {} if isinstance(node, dict) else None
    )
    existing = required.get("nodeSelectorTerms") or [{}] if isinstance(required, dict) else None
    if not isinstance(node, dict) or not isinstance(existing, list) or not all(map(_is_term, existing)):
        return dict(affinity)  # it is no affinity: the API server says so of the RayJob
    terms: list[JsonValue] = [
        {
            **term,
            "matchExpressions": [*cast("list[JsonValue]", term.get("matchExpressions") or []), *expressions],
        }
        for term in cast("list[JsonObject]", existing)
        for expressions in ours
    ]
    return {
        **affinity,
        "nodeAffinity": {
            **node,
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms},
        },
    }


def _is_term(term: JsonValue) -> bool:
    return isinstance(term, dict) and isinstance(term.get("matchExpressions") or [], list)


def _whole(amount: float) -> int:
    return int(amount)
