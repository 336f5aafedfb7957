"""What pods are made from, for a test that writes a spec down in part."""

from __future__ import annotations

from typing import cast

from pydantic import JsonValue
from tests.operator.cases import UID, Json, configuration

from finetune_api.manifest import read_spec
from finetune_operator.children.placement import placement
from finetune_operator.children.pods import PodSource
from finetune_operator.observed import ObjectMeta


def source(
    spec: Json | None = None,
    settings: Json | None = None,
    *,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    attempt: int = 1,
    host_memory: int | None = None,
) -> PodSource:
    """The source of the smallest job with these fields in its spec."""
    read = read_spec(
        {"model_id": "org/model", "train_path": "s3://data/train.jsonl", "lora_config": {}, **(spec or {})}
    )
    made_with = configuration(settings)
    storage = read.storage.path if read.storage else str(made_with.storage)
    metadata = ObjectMeta(
        name="tune", namespace="team", uid=UID, labels=labels or {}, annotations=annotations or {}
    )
    return PodSource(metadata, attempt, read, placement(read, made_with), made_with, storage, host_memory)


def at(document: JsonValue, path: str) -> JsonValue:
    """What a document has at a path: `spec.containers.0.env`."""
    for part in path.split("."):
        document = document[int(part)] if isinstance(document, list) else cast("Json", document)[part]
    return document


def maps(document: JsonValue, path: str) -> list[Json]:
    """A list of maps at a path."""
    return cast("list[Json]", at(document, path))
