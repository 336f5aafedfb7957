"""The parts of a spec that are about the cluster: storage, run policy, pods. `finetune run` on one machine ignores the pods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.fields import Integer, JsonObject, ShortText, SpecModel, StoragePath

Name = Annotated[str, Field(min_length=1, max_length=253)]
Quantity = Annotated[str | int | float, Field(json_schema_extra={"x-kubernetes-int-or-string": True})]
Labels = Annotated[dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=63)]], Field(max_length=64)]
Annotations = Annotated[dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=16384)]], Field(max_length=64)]
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
    """Longest time an attempt may wait for its pods."""
    ttl_seconds_after_finished: Annotated[Integer, Field(ge=0, le=10 * 366 * 86400)] | None = None
    """When a finished FineTuneJob is deleted; never, if left out. Checkpoints stay."""


class Resources(SpecModel):
    """Requests and limits of a container, as in a pod."""

    requests: Annotated[dict[ShortText, Quantity], Field(max_length=32)] | None = None
    limits: Annotated[dict[ShortText, Quantity], Field(max_length=32)] | None = None


class NodeGroup(SpecModel):
    """One kind of pod in the Ray cluster."""

    resources: Resources | None = None


class Reference(SpecModel):
    """The name of an object in the same namespace."""

    name: Name


class Cluster(SpecModel):
    """What the pods look like. Values below each field are Kubernetes' own, spelt as in a pod (`volumeMounts` items, `tolerations` items, ...)."""

    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Image of head and workers; the operator's configuration has the default."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: Annotated[list[Reference], Field(max_length=16)] | None = None
    service_account_name: Name | None = None
    """Service account of the workers; the head's is made by the operator."""
    env: Annotated[list[JsonObject], Field(max_length=256)] | None = None
    """Environment variables, `{name, value}` or `{name, valueFrom}`."""
    env_from: Annotated[list[JsonObject], Field(max_length=64)] | None = None
    """Secrets and config maps whose keys become environment variables."""
    volumes: Annotated[list[JsonObject], Field(max_length=64)] | None = None
    volume_mounts: Annotated[list[JsonObject], Field(max_length=64)] | None = None
    node_selector: Labels | None = None
    """Node labels, besides those of the accelerator."""
    tolerations: Annotated[list[JsonObject], Field(max_length=64)] | None = None
    affinity: JsonObject | None = None
    priority_class_name: Name | None = None
    labels: Labels | None = None
    """Labels of all pods."""
    annotations: Annotations | None = None
    """Annotations of all pods."""
    head: NodeGroup | None = None
    worker: NodeGroup | None = None
