"""Reads cases: two YAML documents, what is observed of a job at a moment, and what the operator is to decide.

What is seen is written as it is on the wire, less what does not matter: each object is laid over one of
`objects.yaml`, where null takes a field away. `12:34:56` is a time of the one day on which all happens;
`state` names one of the statuses in `states.yaml`, whose conditions are written as `type: [status, reason,
message, last transition]`; `worker`, `head`, `submitter` or `prepare` is a pod's role and name, and
`ready: true` its condition. `ended: Complete` or `ended: Failed` is how a Job has ended, a minute ago."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from finetune_api.yaml_text import parse
from finetune_operator.decide.decision import Decision
from finetune_operator.decide.reconcile import reconcile
from finetune_operator.names import ATTEMPT, PREPARE, ROLE
from finetune_operator.observed import Observed, Pod, PrepareJob, RayCluster, RayJob, read_job
from finetune_operator.settings.configuration import Configuration

Json = dict[str, JsonValue]

FOLDER = Path(__file__).parent / "decide/reconcile"
UID = "11111111-1111-4111-8111-111111111111"
RUN = f"s3://runs/team/tune-{UID}"


@dataclass(frozen=True)
class Case:
    """What is seen, and what is expected."""

    observed: Observed
    configuration: Configuration
    now: datetime
    expected: Json

    def decide(self) -> Decision:
        """What the operator decides."""
        return reconcile(self.observed, self.configuration, self.now)


def read_case(file: Path) -> Case:
    """The case in a file."""
    situation, expected = (_document(text, file) for text in file.read_text().split("\n---\n"))
    seen = _map(situation.pop("seen"))
    now = situation.pop("now", "2026-01-01T12:00:00Z")
    settings = situation.pop("configuration", {})
    assert not situation, f"{file.name}: {', '.join(situation)} is not part of a case"
    return Case(observed(seen), configuration(_map(settings)), datetime.fromisoformat(str(now)), expected)


def observed(seen: Json) -> Observed:
    """What is seen, from its abbreviation."""
    seen = dict(seen)
    job = _job(_map(seen.pop("job", {})))
    ray_job, prepare_job, record = (seen.pop(kind, None) for kind in ("rayJob", "prepareJob", "record"))
    clusters, pods, lost_pods = (
        cast("list[Json]", seen.pop(kind, [])) for kind in ("rayClusters", "pods", "lostPods")
    )
    attempt = str(_map(job["status"]).get("attempts", 1))
    assert not seen, f"{', '.join(seen)} cannot be seen"
    return Observed(
        job=read_job(job),
        ray_job=(
            RayJob.model_validate(_laid_over(_OBJECTS["rayJob"], ray_job)) if ray_job is not None else None
        ),
        prepare_job=_prepare_job(prepare_job) if prepare_job is not None else None,
        ray_clusters=tuple(
            RayCluster.model_validate(_laid_over(_OBJECTS["rayCluster"], each)) for each in clusters
        ),
        pods=tuple(_pod(each, attempt) for each in pods),
        lost_pods=tuple(_pod(each, attempt) for each in lost_pods),
        record=_record(record),
    )


def configuration(settings: Json | None = None) -> Configuration:
    """A configuration for tests."""
    return Configuration.model_validate(
        {"trainer_image": "trainer:1", "storage": "s3://runs", **(settings or {})}
    )


def record_text(changes: Json) -> str:
    """A progress record as the trainer writes it: that of `objects.yaml` with changes."""
    changes = dict(changes)
    state = _STATES[str(changes.pop("state"))] if "state" in changes else {}
    record = _laid_over(_laid_over(_OBJECTS["record"], state), changes)
    for checkpoint in cast("list[Json]", record.get("checkpoints", [])):
        checkpoint.setdefault("path", f"{RUN}/{checkpoint['name']}")
    return json.dumps(record)


def _job(changes: Json) -> Json:
    changes = dict(changes)
    state = changes.pop("state", None)
    job = _laid_over(_OBJECTS["job"], changes)
    if state is not None:
        job["status"] = _laid_over(_STATES[str(state)], changes.get("status", {}))
    status = _map(job.get("status", {}))
    status["conditions"] = _conditions(_map(status.get("conditions", {})))
    return {**job, "status": status}


def _conditions(written: Json) -> list[JsonValue]:
    found: list[JsonValue] = []
    for kind, values in written.items():
        status, reason, message, since = [*cast("list[JsonValue]", values), "", "2026-01-01T11:00:00Z"][:4]
        found.append(
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": since or "2026-01-01T11:00:00Z",
                "observedGeneration": 1,
            }
        )
    return found


def _prepare_job(changes: JsonValue) -> PrepareJob:
    changes = _map(changes)
    ended = changes.pop("ended", None)
    job = _laid_over(_OBJECTS["prepareJob"], changes)
    if ended is not None:
        condition: Json = {"type": ended, "status": "True", "lastTransitionTime": "2026-01-01T11:59:00Z"}
        job = _laid_over(job, {"status": {"conditions": [condition]}})
    return PrepareJob.model_validate(job)


def _pod(changes: Json, attempt: str) -> Pod:
    changes = dict(changes)
    role = next(role for role in ("worker", "head", "submitter", PREPARE) if role in changes)
    pod = _laid_over(_OBJECTS["pod"], {"metadata": {"name": changes.pop(role), "labels": {ATTEMPT: attempt}}})
    if role == PREPARE:
        pod = _laid_over(pod, {"metadata": {"labels": {ROLE: PREPARE}}})
    elif role != "submitter":
        pod = _laid_over(pod, {"metadata": {"labels": {"ray.io/node-type": role}}})
    if changes.pop("ready", False):
        pod = _laid_over(
            pod, {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
        )
    return Pod.model_validate(_laid_over(pod, changes))


def _record(written: JsonValue) -> str | None:
    if written is None or isinstance(written, str):
        return written
    return record_text(_map(written))


def _laid_over(below: Json, above: JsonValue) -> Json:
    """A map with another one laid over it, key by key all the way down; null takes away."""
    result = dict(below)
    for key, value in _map(above).items():
        under = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = _laid_over(under if isinstance(under, dict) else {}, value)
        else:
            result[key] = value
    return result


def _map(value: JsonValue) -> Json:
    assert isinstance(value, dict), f"{value!r} is not a map"
    return dict(value)


def _document(text: str, file: Path) -> Json:
    """A YAML document with the times written out."""
    document, remarks = parse(text, file.name)
    assert not remarks, remarks
    return _map(_with_times(document))


def _with_times(value: JsonValue) -> JsonValue:
    match value:
        case str() if re.fullmatch(r"\d\d:\d\d:\d\d(\.\d+)?", value):
            return f"2026-01-01T{value}Z"
        case list():
            return [_with_times(each) for each in value]
        case dict():
            return {key: _with_times(each) for key, each in value.items()}
        case _:
            return value


def _maps(name: str) -> Mapping[str, Json]:
    file = Path(__file__).parent / name
    return {key: _map(value) for key, value in _document(file.read_text(), file).items()}


_OBJECTS = _maps("objects.yaml")
_STATES = _maps("states.yaml")
