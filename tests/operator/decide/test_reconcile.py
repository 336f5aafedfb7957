"""What the operator decides, each case of `reconcile/` by itself, and what holds whatever is seen.

A case names all that is created, deleted and posted, and when the job is reconciled again; of the status,
what matters to it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue
from tests.operator.cases import FOLDER, UID, Json, configuration, observed, read_case, record_text
from tests.operator.sources import at

from finetune_api.status import Condition, Failure, FineTuneJobStatus, Phase
from finetune_operator.decide.decision import Decision
from finetune_operator.decide.events import Event
from finetune_operator.decide.phases import ENDED
from finetune_operator.decide.reconcile import reconcile, refused
from finetune_operator.decide.recovery import attempt_of
from finetune_operator.observed import Observed


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_case(file: Path) -> None:
    case = read_case(file)

    decision = case.decide()

    assert shown(decision, case.expected) == case.expected


def shown(decision: Decision, wanted: Json) -> Json:
    """A decision as a case writes it: of the status, what is wanted."""
    status = cast("Json", decision.status.model_dump(mode="json", by_alias=True, exclude_none=True))
    conditions: dict[str, Condition] = {each.type: each for each in decision.status.conditions}
    done: dict[str, list[str]] = {
        "delete": [f"{each.kind} {each.name} {each.uid}" for each in decision.delete],
        "create": [f"{each['kind']} {cast('Json', each['metadata'])['name']}" for each in decision.create],
        "events": [_event(event, wanted.get("events")) for event in decision.events],
    }
    result: Json = {"phase": status.get("phase"), "message": decision.status.message}
    result |= {key: cast("JsonValue", value) for key, value in done.items() if value}
    if decision.requeue_after is not None:
        result["requeue_after"] = decision.requeue_after / timedelta(seconds=1)
    if "conditions" in wanted:
        named = cast("Json", wanted["conditions"])
        result["conditions"] = {
            kind: [each.status, each.reason] for kind, each in conditions.items() if kind in named
        }
    if "since" in wanted:
        named = cast("Json", wanted["since"])
        times = {kind: each.last_transition_time for kind, each in conditions.items() if kind in named}
        result["since"] = {kind: time.isoformat().replace("+00:00", "Z") for kind, time in times.items()}
    if "status" in wanted:
        result["status"] = _part(status, cast("Json", wanted["status"]))
    return result


def _event(event: Event, wanted: JsonValue) -> str:
    """`Reason`, or `Reason: message` where that is what the case says."""
    return (
        event.reason
        if isinstance(wanted, list) and event.reason in wanted
        else f"{event.reason}: {event.message}"
    )


def _part(status: Json, wanted: Json) -> Json:
    """Those fields of a status that are wanted; null is one that is not there."""
    part: Json = {}
    for key, value in wanted.items():
        found = status.get(key)
        part[key] = _wanted(found, value)
    return part


def _wanted(found: JsonValue, wanted: JsonValue) -> JsonValue:
    match found, wanted:
        case dict(), dict():
            return _part(found, wanted)
        case list(), list() if len(found) == len(wanted):
            return [_wanted(*pair) for pair in zip(found, wanted, strict=True)]
        case _:
            return found


TIMES = st.none() | st.integers(0, 7200).map(
    lambda seconds: (datetime(2026, 1, 1, 11, tzinfo=UTC) + timedelta(seconds=seconds)).isoformat()
)
REASONS = st.sampled_from(
    ["Unschedulable", "ImagePullBackOff", "CreateContainerConfigError", "OOMKilled", "CrashLoopBackOff", ""]
) | st.text(max_size=20)
CONDITION = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["PodScheduled", "Ready", "ReplicaFailure", "DisruptionTarget", "RayClusterProvisioned"]
        ),
        "status": st.sampled_from(["True", "False", "Unknown"]),
        "reason": REASONS,
        "message": st.sampled_from(["", "no room"]),
        "lastTransitionTime": TIMES,
    }
)
CONTAINER = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["head", "worker", "submitter", "prepare", "istio-proxy", "wait-gcs-ready"]),
        "state": st.dictionaries(
            st.sampled_from(["waiting", "running", "terminated"]),
            st.fixed_dictionaries(
                {
                    "reason": REASONS,
                    "startedAt": TIMES,
                    "finishedAt": TIMES,
                    "exitCode": st.sampled_from([None, 0, 1, 137, 143]),
                }
            ),
            max_size=1,
        ),
        "lastState": st.dictionaries(
            st.just("terminated"), st.fixed_dictionaries({"reason": REASONS}), max_size=1
        ),
    }
)
PODS = st.lists(
    st.builds(
        lambda role, name, ends, phase, reason, conditions, containers: {
            role: name,
            "metadata": {"deletionTimestamp": ends},
            "status": {
                "phase": phase,
                "reason": reason,
                "conditions": conditions,
                "containerStatuses": containers,
            },
        },
        st.sampled_from(["head", "worker", "submitter", "prepare"]),
        st.text("abc-", min_size=1, max_size=253),
        TIMES,
        st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown", ""]),
        st.sampled_from(["", "Evicted", "OutOfcpu"]),
        st.lists(CONDITION, max_size=2),
        st.lists(CONTAINER, max_size=2),
    ),
    max_size=4,
)
RAY_JOBS = st.none() | st.builds(
    lambda uid, suspend, deleted, status: {
        "metadata": {
            "uid": uid,
            "deletionTimestamp": deleted,
            "annotations": {"finetune.dev/unchecked-spec": ""},
        },
        "spec": {"suspend": suspend},
        "status": status,
    },
    st.uuids().map(str),
    st.booleans(),
    TIMES,
    st.fixed_dictionaries(
        {
            "jobStatus": st.sampled_from(["", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]),
            "jobDeploymentStatus": st.sampled_from(
                [
                    "",
                    "Initializing",
                    "Running",
                    "Complete",
                    "Failed",
                    "ValidationFailed",
                    "Suspending",
                    "Suspended",
                    "Retrying",
                    "Waiting",
                ]
            ),
            "reason": st.sampled_from(
                ["", "AppFailed", "DeadlineExceeded", "PreRunningDeadlineExceeded", "SubmissionFailed"]
            ),
            "message": st.sampled_from(["", "exit code 1", "exit code 143"]),
            "startTime": TIMES,
            "endTime": TIMES,
        }
    ),
)
PREPARE_JOBS = st.none() | st.builds(
    lambda uid, suspend, deleted, begun, found: {
        "metadata": {"uid": uid, "deletionTimestamp": deleted},
        "spec": {"suspend": suspend},
        "status": {"startTime": begun, "conditions": found},
    },
    st.uuids().map(str),
    st.booleans(),
    TIMES,
    TIMES,
    st.lists(
        st.fixed_dictionaries(
            {
                "type": st.sampled_from(["Complete", "Failed", "SuccessCriteriaMet", "FailureTarget"]),
                "status": st.sampled_from(["True", "False"]),
                "lastTransitionTime": TIMES,
            }
        ),
        max_size=2,
    ),
)
CLUSTERS = st.lists(
    st.builds(
        lambda deleted, found: {"metadata": {"deletionTimestamp": deleted}, "status": {"conditions": found}},
        TIMES,
        st.lists(CONDITION, max_size=2),
    ),
    max_size=2,
)
RECORDS = st.none() | st.one_of(
    st.text(max_size=50),
    st.builds(
        lambda attempt, state, changes: record_text({"attempt": attempt, **state, **changes}),
        st.integers(1, 4),
        st.sampled_from([{}, {"state": "finished record"}]),
        st.sampled_from(
            [
                {},
                {"progress": None},
                {"plan": None},
                {"checkpoints": []},
                {"failure": {"class": "NodeLost", "message": "gone"}},
                {"failure": {"class": "StorageError", "message": "no"}},
                {"failure": {"class": "NodeLost", "message": "gone"}, "interrupted": True},
                {"failure": {"class": "InvalidData", "message": "row 7"}},
                {"finished": True},
                {"preparing": True, "progress": None, "checkpoints": []},
                {"preparing": True, "progress": None, "plan": None, "checkpoints": []},
                {
                    "preparing": True,
                    "progress": None,
                    "plan": None,
                    "checkpoints": [],
                    "failure": {"class": "InvalidData", "message": "row 17"},
                },
                {
                    "preparing": True,
                    "progress": None,
                    "plan": None,
                    "checkpoints": [],
                    "failure": {"class": "StorageError", "message": "no"},
                },
            ]
        ),
    ),
)
JOBS = st.builds(
    lambda state, attempt, changes, spec: {
        **({"state": state, "status": {"attempts": attempt, **changes}} if state else {}),
        "spec": spec,
    },
    st.sampled_from(
        [
            None,
            "preparing",
            "asked",
            "starting",
            "running",
            "retrying",
            "suspended",
            "succeeded",
            "failed",
        ]
    ),
    st.integers(1, 3),
    st.sampled_from(
        [
            {},
            {"startTime": None},
            {"interruptions": 1},
            {"phase": "Queued"},
            {"workers": None, "runDirectory": None},
            {"plan": None},
        ]
    ),
    st.fixed_dictionaries(
        {"suspend": st.booleans()},
        optional={
            "run_policy": st.fixed_dictionaries(
                {},
                optional={
                    "active_deadline_seconds": st.integers(1, 7200),
                    "backoff_limit": st.integers(0, 3),
                    "ttl_seconds_after_finished": st.integers(0, 7200),
                    "starting_deadline_seconds": st.integers(1, 7200),
                    "prepare_first": st.booleans(),
                },
            ),
            "num_devices": st.integers(0, 3),
            "worker_resources": st.sampled_from(
                [{"accelerator_type:Abacus": 1}, {"accelerator_type:A10G": 1}]
            ),
            "lora_config": st.none(),
        },
    ),
)
SEEN = st.builds(
    lambda job, ray_job, prepare_job, clusters, pods, record: observed(
        {
            "job": job,
            "rayJob": ray_job,
            "prepareJob": prepare_job if ray_job is None else None,
            "rayClusters": clusters,
            "pods": pods,
            "record": record,
        }
    ),
    JOBS,
    RAY_JOBS,
    PREPARE_JOBS,
    CLUSTERS,
    PODS,
    RECORDS,
)
BEFORE_A_CLUSTER = st.builds(
    lambda state, changes, prepare_first, suspend, prepare_job, pods, record: observed(
        {
            "job": {
                **({"state": state, "status": changes} if state else {}),
                "spec": {
                    "suspend": suspend,
                    "run_policy": {"prepare_first": prepare_first},
                    "worker_resources": {"accelerator_type:A10G": 1},
                },
            },
            "prepareJob": prepare_job,
            "pods": [pod for pod in pods if "prepare" in pod],
            "record": record,
        }
    ),
    st.sampled_from([None, "preparing", "asked", "retrying", "suspended"]),
    st.sampled_from([{}, {"plan": None}]),
    st.booleans(),
    st.sampled_from([False] * 5 + [True]),
    PREPARE_JOBS,
    st.one_of(st.just([]), PODS),
    RECORDS,
)
"""Of a job with a device that has no RayJob."""
CONFIGURATION = configuration()
NOW = st.integers(0, 7200).map(
    lambda seconds: datetime(2026, 1, 1, 11, tzinfo=UTC) + timedelta(seconds=seconds)
)


@given(SEEN, NOW)
def test_what_is_decided_holds_whatever_is_seen(seen: Observed, now: datetime) -> None:
    check_what_holds(seen, reconcile(seen, CONFIGURATION, now))


@given(BEFORE_A_CLUSTER, NOW)
def test_what_is_decided_before_a_cluster_is_there_holds(seen: Observed, now: datetime) -> None:
    decision = reconcile(seen, CONFIGURATION, now)

    check_what_holds(seen, decision)
    check_that_it_is_decided_again(seen, decision, now)


def check_what_holds(seen: Observed, decision: Decision) -> None:
    """Whatever is seen: of clusters there is one at a time, and only of a job that is prepared."""

    runs = [str(each["kind"]) for each in decision.create if each["kind"] in ("RayJob", "Job")]
    assert len(runs) <= 1
    if decision.create:
        assert seen.job.status.phase not in ENDED
        assert decision.status.phase not in ENDED
        assert not seen.job.spec["suspend"]
        assert not any(pod.metadata.deletion_timestamp is None and not pod.has_ended for pod in seen.pods)
        assert all(cluster.metadata.deletion_timestamp is not None for cluster in seen.ray_clusters)
        assert seen.ray_job is None or seen.ray_job.has_ended
        policy = cast("Json", seen.job.spec.get("run_policy", {}))
        done, attempt = seen.prepare_job, decision.status.attempts or 1
        # That of an earlier attempt, whose plan was lost with the status, does not count.
        prepared = done is not None and done.has_succeeded and attempt_of(done) == attempt
        prepared = prepared or decision.status.plan is not None
        if runs == ["Job"]:
            assert policy.get("prepare_first") is not False
            assert not prepared
            assert decision.status.ray_job_name is None
        elif policy.get("prepare_first"):
            assert prepared
    own = {UID} | {each.metadata.uid for each in (seen.ray_job, seen.prepare_job) if each is not None}
    assert {each.uid for each in decision.delete} <= own
    assert decision.status.phase is not Phase.FAILED or decision.status.failure is not None
    assert decision.requeue_after is None or decision.requeue_after > timedelta()


@given(SEEN, NOW)
def test_what_was_decided_is_decided_again(seen: Observed, now: datetime) -> None:
    check_that_it_is_decided_again(seen, reconcile(seen, CONFIGURATION, now), now)


def check_that_it_is_decided_again(seen: Observed, first: Decision, now: datetime) -> None:
    """When the status is as decided, nothing else is decided, and no event is posted again."""
    if seen.record is not None and seen.job.status.run_directory is None:
        return  # what it says is read once there is a directory
    same_attempt = (first.status.attempts or 1) == seen.job.attempt
    # As the API server gives the status back, with RayJob and Job of the attempt that it now names.
    job = seen.job.model_copy(
        update={"status": FineTuneJobStatus.model_validate_json(first.status.model_dump_json(by_alias=True))}
    )

    again = reconcile(
        replace(
            seen,
            job=job,
            ray_job=seen.ray_job if same_attempt else None,
            prepare_job=seen.prepare_job if same_attempt else None,
        ),
        CONFIGURATION,
        now,
    )

    assert again.status == first.status
    assert again.events == ()


@given(SEEN, NOW)
def test_status_is_one_that_the_api_server_takes(seen: Observed, now: datetime) -> None:
    decision = reconcile(seen, CONFIGURATION, now)

    written = decision.status.model_dump_json(by_alias=True, exclude_none=True)
    assert FineTuneJobStatus.model_validate_json(written) == decision.status
    assert [each.type for each in decision.status.conditions] == list(
        dict.fromkeys(each.type for each in decision.status.conditions)
    )


def test_workers_have_the_memory_that_prepare_says_they_need() -> None:
    seen = observed(
        {
            "job": {"state": "preparing", "spec": {"worker_resources": {"accelerator_type:A10G": 0.001}}},
            "prepareJob": {"ended": "Complete"},
            "record": {"preparing": True, "plan": {"hostMemory": 20 * 2**30}},
        }
    )

    decision = reconcile(seen, CONFIGURATION, datetime(2026, 1, 1, 12, tzinfo=UTC))

    [ray_job] = [each for each in decision.create if each["kind"] == "RayJob"]
    container = "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0"
    assert at(ray_job, f"{container}.resources.requests.memory") == "20480Mi"


def test_object_that_the_api_server_never_takes_ends_the_job() -> None:
    job = observed({"job": {"state": "asked"}}).job
    what = "the API server refuses RayJob tune-11111111-1: spec.rayClusterSpec is wrong"

    decision = refused(job, job.status, what, final=True, now=datetime(2026, 1, 1, 12, tzinfo=UTC))

    assert decision.status.phase is Phase.FAILED
    assert decision.status.failure == Failure.model_validate({"class": "InvalidSpec", "message": what})
    assert [event.reason for event in decision.events] == ["Failed"]


def test_object_that_the_api_server_refuses_for_now_is_shown() -> None:
    job = observed({"job": {"state": "asked"}}).job

    decision = refused(
        job, job.status, "exceeded quota: compute", final=False, now=datetime(2026, 1, 1, 12, tzinfo=UTC)
    )

    assert (decision.status.phase, decision.status.message) == (Phase.PENDING, "exceeded quota: compute")
    assert [each.reason for each in decision.status.conditions if each.type == "ClusterReady"] == [
        "PodsRefused"
    ]


@pytest.mark.parametrize(
    "seen",
    [
        {"job": {"spec": {"x" * 40_000: 1}}},
        {"job": {"spec": {"worker_resources": {"accelerator_type:" + "x" * 200: 1, "x" * 40_000: 1}}}},
        {"job": {"state": "running", "spec": {"x" * 40_000: 1}}, "rayJob": {}},
        {
            "job": {"state": "asked"},
            "rayJob": {"status": {"jobDeploymentStatus": "ValidationFailed", "message": "x" * 40_000}},
        },
        *(
            {
                "job": {"state": "running", "status": {"attempts": 2, "rayJobName": "tune-11111111-2"}},
                "rayJob": {
                    "metadata": {"name": "tune-11111111-2"},
                    "status": {"jobDeploymentStatus": "Failed"},
                },
                "record": {"attempt": 2, "failure": {"class": failure, "message": "x" * 32768}},
            }
            for failure in ("NodeLost", "InvalidData")
        ),
    ],
    ids=[
        "a field",
        "an accelerator",
        "a field of a job that trains",
        "KubeRay's message",
        "a failure that is retried",
        "a failure that is final",
    ],
)
def test_words_of_any_length_fit_into_a_status(seen: Json) -> None:
    status = reconcile(observed(seen), CONFIGURATION, datetime(2026, 1, 1, 12, tzinfo=UTC)).status
    assert 10_000 < len(status.message or "") <= 32768


@pytest.mark.parametrize("final", [True, False])
def test_refusal_of_any_length_is_shown(final: bool) -> None:
    job = observed({"job": {}}).job
    decision = refused(job, job.status, "no" * 40_000, final=final, now=datetime(2026, 1, 1, 12, tzinfo=UTC))
    assert (decision.status.message or "").startswith("nono")
