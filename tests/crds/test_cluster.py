"""What a spec says of pods, in Kubernetes' own words."""

from __future__ import annotations

import pytest
from tests.crds.reading import problems_of, spec_of

from finetune_api.cluster import Cluster, RunPolicy


def cluster_of(text: str) -> Cluster:
    cluster = spec_of(f"cluster: {text}").cluster
    assert cluster is not None
    return cluster


@pytest.mark.parametrize(
    ("written", "quantity"),
    [
        ("2", 2),
        ("0", 0),
        ('"2"', "2"),
        ("500m", "500m"),
        ("16Gi", "16Gi"),
        ("1.5Gi", "1.5Gi"),
        ("100M", "100M"),
        ("128k", "128k"),
        ('"0.5"', "0.5"),
        ('"1e3"', "1e3"),
    ],
)
def test_a_quantity_is_a_whole_number_or_a_text(written: str, quantity: object) -> None:
    cluster = cluster_of(f"{{worker: {{resources: {{requests: {{memory: {written}}}}}}}}}")

    assert cluster.worker is not None
    assert cluster.worker.resources is not None
    assert cluster.worker.resources.requests == {"memory": quantity}


@pytest.mark.parametrize(
    "written", ["16 GB", "16gb", "-1", '"1."', '".5"', "GiB", "true", '""', "[1]", "1e300", ".inf"]
)
def test_a_text_that_is_no_quantity_is_refused(written: str) -> None:
    [problem] = problems_of(f"cluster: {{head: {{resources: {{limits: {{cpu: {written}}}}}}}}}")

    assert problem.startswith(
        "spec.cluster.head.resources.limits.cpu: must be a quantity such as 2, 500m or 16Gi, is "
    )


@pytest.mark.parametrize(
    ("written", "right"), [("0.5", '"0.5"'), (".5", '"0.5"'), ("2.0", '"2.0"'), ("1e3", '"1000.0"')]
)
def test_a_decimal_needs_quotes_since_the_api_server_refuses_it_without(written: str, right: str) -> None:
    [problem] = problems_of(f"cluster: {{head: {{resources: {{limits: {{cpu: {written}}}}}}}}}")

    assert problem.startswith(f"spec.cluster.head.resources.limits.cpu: must be in quotes, {right}, is ")


@pytest.mark.parametrize(
    "claim",
    [
        "{name: a}",
        "{name: a, resourceClaimName: b, resourceClaimTemplateName: c}",
    ],
)
def test_a_claim_is_one_that_is_there_or_one_that_is_made(claim: str) -> None:
    [problem] = problems_of(f"cluster: {{worker: {{resource_claims: [{claim}]}}}}")

    assert problem == (
        "spec.cluster.worker.resource_claims[0]:"
        " must have either resourceClaimName or resourceClaimTemplateName"
    )


def test_parts_of_pods_are_passed_on_as_they_are_written() -> None:
    text = """
  {image: registry/trainer:1, image_pull_policy: IfNotPresent, image_pull_secrets: [{name: key}],
   service_account_name: reader,
   env: [{name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hub, key: token}}}],
   env_from: [{secretRef: {name: s3}}],
   volumes: [{name: data, persistentVolumeClaim: {claimName: data}}],
   volume_mounts: [{name: data, mountPath: /data}],
   node_selector: {zone: a}, tolerations: [{key: gpu, operator: Exists}],
   affinity: {nodeAffinity: {}}, priority_class_name: low,
   topology_spread_constraints: [{maxSkew: 1}], runtime_class_name: nvidia, scheduler_name: volcano,
   labels: {team: nlp}, annotations: {note: "x"}}
"""
    cluster = cluster_of(text)

    assert cluster.model_dump(exclude_unset=True)["env"] == [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    ]
    assert cluster.volume_mounts == [{"name": "data", "mountPath": "/data"}]
    assert set(cluster.model_fields_set) == set(Cluster.model_fields) - {
        "head",
        "worker",
        "prepare",
        "submitter",
    }


def test_a_job_is_tried_four_times_and_waits_half_an_hour_for_its_pods() -> None:
    assert spec_of("").run_policy == RunPolicy(
        backoff_limit=3,
        active_deadline_seconds=None,
        starting_deadline_seconds=1800,
        ttl_seconds_after_finished=None,
    )


def test_a_job_may_vanish_as_soon_as_it_is_done_but_not_be_given_no_time() -> None:
    assert spec_of("run_policy: {ttl_seconds_after_finished: 0}").run_policy.ttl_seconds_after_finished == 0
    assert problems_of("run_policy: {active_deadline_seconds: 0}") == (
        "spec.run_policy.active_deadline_seconds: must be at least 1, is 0",
    )


@pytest.mark.parametrize(
    "path", ["s3://bucket/runs", "gs://bucket", "pvc://claim/runs/here", "/shared/runs", "file:///runs"]
)
def test_runs_are_written_to_paths_of_these_forms(path: str) -> None:
    storage = spec_of(f"storage: {{path: '{path}'}}").storage

    assert storage is not None
    assert storage.path == path
