"""The parts of a spec that are about the cluster: storage, run policy, pods.

`finetune run` on one machine ignores the pods.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from finetune_api.fields import VALIDATIONS, Integer, JsonObject, ShortText, SpecModel, StoragePath
from finetune_api.names import AnnotationKey, LabelKey, LabelValue

_QUANTITY = r"^[0-9]+(\.[0-9]+)?(n|u|m|k|Ki|[MGTPE]i?|[eE][-+]?[0-9]{1,2})?$"
_QUANTITY_WORDS = "must be a quantity such as 2, 500m or 16Gi"


def _quantity(value: object) -> object:
    """An amount as Kubernetes writes it: a whole number, or a text.

    A bare `0.5` is right in a pod only: the API server takes it in no resource that is defined by a schema,
    and Helm in no value.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, float) and re.fullmatch(_QUANTITY, str(value)):
        raise PydanticCustomError("quantity", 'must be in quotes, "{value}"', {"value": str(value)})
    if not isinstance(value, str) or not re.fullmatch(_QUANTITY, value):
        raise PydanticCustomError("quantity", _QUANTITY_WORDS)
    return value


Name = Annotated[str, Field(min_length=1, max_length=253)]
Quantity = Annotated[
    int | str,
    BeforeValidator(_quantity),
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "maxLength": 64,
            VALIDATIONS: [
                {
                    "rule": f"type(self) == int ? self >= 0 : self.matches(r'{_QUANTITY}')",
                    "message": _QUANTITY_WORDS,
                }
            ],
        }
    ),
]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
Annotations = Annotated[dict[AnnotationKey, Annotated[str, Field(max_length=16384)]], Field(max_length=64)]
Seconds = Annotated[Integer, Field(ge=1, le=10 * 366 * 86400)]


class Storage(SpecModel):
    """Where runs go."""

    path: StoragePath
    """`s3://`, `gs://`, `pvc://CLAIM/sub/dir`, or a path in the containers that all pods share."""


class RunPolicy(SpecModel):
    """How long and how often a job is tried."""

    backoff_limit: Annotated[Integer, Field(ge=0, le=100)] = 3
    """Attempts after the first that failed for a reason a new attempt may cure."""
    active_deadline_seconds: Seconds | None = None
    """Longest time from the first attempt's start to the end."""
    starting_deadline_seconds: Seconds = 1800
    """Longest time an attempt may wait for its pods, and for the trainer to begin."""
    prepare_first: bool | None = None
    """Whether one pod without a device reads and checks data and model, and tokenizes the rows, before a
    cluster is asked for; default: where workers have a device, or the job has the label of a queue."""
    ttl_seconds_after_finished: Annotated[Integer, Field(ge=0, le=10 * 366 * 86400)] | None = None
    """Seconds after its end until a finished FineTuneJob is deleted; never by default. Checkpoints stay."""


class Resources(SpecModel):
    """Requests and limits of a container, as in a pod."""

    requests: Annotated[dict[ShortText, Quantity], Field(max_length=32)] | None = None
    """What is set aside for it: `cpu`, `memory`, ..."""
    limits: Annotated[dict[ShortText, Quantity], Field(max_length=32)] | None = None
    """What it can use at most."""


_ONE_CLAIM = "must have either resourceClaimName or resourceClaimTemplateName"


class ResourceClaim(SpecModel):
    """A device by Kubernetes' dynamic resource allocation, spelt as in a pod; its container gets it."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: [
                {
                    "rule": "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)",
                    "message": _ONE_CLAIM,
                }
            ]
        }
    )

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """Its name in the pod."""
    resourceClaimName: Name | None = None  # noqa: N815 - spelt as in a pod
    """A ResourceClaim that is there, which pods share."""
    resourceClaimTemplateName: Name | None = None  # noqa: N815
    """A ResourceClaimTemplate, of which each pod gets a claim of its own."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.resourceClaimName is None) == (self.resourceClaimTemplateName is None):
            raise ValueError(_ONE_CLAIM)
        return self


class NodeGroup(SpecModel):
    """One kind of pod of a job. What is given here is in place of what `cluster` says."""

    resources: Resources | None = None
    """Its CPU, memory and local storage; the accelerator's profile, or the operator's configuration, has the
    default."""
    node_selector: Labels | None = None
    """Node labels, in place of `cluster.node_selector`; `{}` is none."""
    tolerations: Annotated[list[JsonObject], Field(max_length=64)] | None = None
    """Tolerations, in place of `cluster.tolerations`; `[]` is none."""
    runtime_class_name: Name | None = None
    """The RuntimeClass, in place of `cluster.runtime_class_name`."""
    resource_claims: Annotated[list[ResourceClaim], Field(max_length=32)] | None = None
    """Devices by dynamic resource allocation, besides the accelerator."""


class Reference(SpecModel):
    """The name of an object in the same namespace."""

    name: Name
    """Its name."""


class Cluster(SpecModel):
    """What the pods look like. Below a list's items, names are those of a pod: `mountPath`, `valueFrom`."""

    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Image of head and workers; the operator's configuration has the default."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled."""
    image_pull_secrets: Annotated[list[Reference], Field(max_length=16)] | None = None
    """Secrets that a private registry asks for; the operator's configuration has the default."""
    service_account_name: Name | None = None
    """Service account of all pods, for workload identity; default: one without rights, made for the job."""
    env: Annotated[list[JsonObject], Field(max_length=256)] | None = None
    """Environment variables, `{name, value}` or `{name, valueFrom}`."""
    env_from: Annotated[list[JsonObject], Field(max_length=64)] | None = None
    """Secrets and config maps whose keys become environment variables."""
    volumes: Annotated[list[JsonObject], Field(max_length=64)] | None = None
    """Volumes of all pods."""
    volume_mounts: Annotated[list[JsonObject], Field(max_length=64)] | None = None
    """Where the containers of all pods see them."""
    node_selector: Labels | None = None
    """Node labels, besides those of the accelerator, of pods that have none of their own."""
    tolerations: Annotated[list[JsonObject], Field(max_length=64)] | None = None
    """Tolerations, besides those of the accelerator, of pods that have none of their own."""
    affinity: JsonObject | None = None
    """Which nodes and neighbours are preferred or needed."""
    topology_spread_constraints: Annotated[list[JsonObject], Field(max_length=16)] | None = None
    """How workers are spread over zones or nodes; without labelSelector, those of this job are counted."""
    runtime_class_name: Name | None = None
    """The RuntimeClass of all pods, such as `nvidia` or `gvisor`."""
    scheduler_name: Name | None = None
    """Who schedules the pods; default: Kubernetes' own scheduler."""
    priority_class_name: Name | None = None
    """Which pods go first."""
    labels: Labels | None = None
    """Labels of all pods."""
    annotations: Annotations | None = None
    """Annotations of all pods."""
    head: NodeGroup | None = None
    """The pod that coordinates the workers; it does not train."""
    worker: NodeGroup | None = None
    """The pods that train, one for each device."""
    prepare: NodeGroup | None = None
    """The pod that prepares the job before a cluster is asked for; what is not given here is as for `head`,
    but for resource_claims."""
    submitter: NodeGroup | None = None
    """The pod that hands the program to Ray, and follows its log."""
