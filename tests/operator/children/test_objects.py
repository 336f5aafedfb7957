"""What is made for a job, and what it may do."""

from __future__ import annotations

from typing import cast

import pytest
from pydantic import JsonValue
from tests.operator.cases import UID, Json
from tests.operator.sources import at, maps, source

from finetune_api.assignment import Assignment
from finetune_api.manifest import read_manifest
from finetune_operator.children.objects import children, children_that_prepare, unchecked_hash
from finetune_operator.children.pods import PodSource

NAME = "tune-11111111"
SHAPE: Json = {"num_devices": 6, "worker_resources": {"anyscale/accelerator_shape:4xA10G": 0.001}}


def made(made_from: PodSource, deadline_seconds: int | None = None) -> dict[str, Json]:
    """The children by kind."""
    manifests = children(made_from, deadline_seconds=deadline_seconds)
    return {str(each["kind"]): each for each in manifests}


def made_to_prepare(made_from: PodSource) -> dict[str, Json]:
    """The same of what prepares."""
    return {str(each["kind"]): each for each in children_that_prepare(made_from)}


def ray_job(spec: Json | None = None, deadline_seconds: int | None = None) -> Json:
    return cast("Json", made(source(spec), deadline_seconds)["RayJob"]["spec"])


def assignment(spec: Json | None = None, attempt: int = 1) -> Assignment:
    """What the head is told, as the trainer reads it from its environment."""
    return assigned(
        at(made(source(spec, attempt=attempt))["RayJob"], "spec.rayClusterSpec.headGroupSpec.template")
    )


def assigned(pod: JsonValue) -> Assignment:
    """What a pod is told."""
    (value,) = (
        each["value"] for each in maps(pod, "spec.containers.0.env") if each["name"] == "FINETUNE_ASSIGNMENT"
    )
    return Assignment.model_validate_json(str(value).replace("$$", "$"))


def test_children_are_made_in_the_order_in_which_they_need_each_other() -> None:
    made_now = children(source(attempt=2), deadline_seconds=None)
    assert [(each["kind"], at(each, "metadata.name")) for each in made_now] == [
        ("ConfigMap", NAME),
        ("ServiceAccount", NAME),
        ("Role", NAME),
        ("RoleBinding", NAME),
        ("NetworkPolicy", NAME),
        ("RayJob", f"{NAME}-2"),
    ]


@pytest.mark.parametrize(
    "kind", ["ConfigMap", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "RayJob"]
)
def test_child_is_owned_by_its_job_and_labelled(kind: str) -> None:
    metadata = cast("Json", made(source())[kind]["metadata"])
    assert metadata["namespace"] == "team"
    assert metadata["ownerReferences"] == [
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "name": "tune",
            "uid": UID,
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]
    ours = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job-uid": UID}
    assert metadata["labels"] == ({**ours, "finetune.dev/attempt": "1"} if kind == "RayJob" else ours)


def test_config_map_holds_the_job_as_the_trainer_reads_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    made_from = source({"learning_rate": "1e-4", "num_epochs": 2})
    file = tmp_path_factory.mktemp("job") / "job.yaml"
    file.write_text(str(at(made(made_from)["ConfigMap"], "data").get("job.yaml")))  # type: ignore[union-attr]

    manifest = read_manifest(file)

    assert (manifest.metadata.name, manifest.metadata.namespace) == ("tune", "team")
    assert manifest.spec == made_from.spec


def test_record_is_not_there_before_the_trainer_writes_it() -> None:
    assert cast("Json", made(source())["ConfigMap"]["data"]).keys() == {"job.yaml"}


def test_role_may_read_and_patch_one_config_map_and_nothing_else() -> None:
    assert made(source())["Role"]["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get", "patch"]}
    ]


def test_role_is_bound_to_the_account_that_is_made() -> None:
    binding = made(source())["RoleBinding"]
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": NAME, "namespace": "team"}]
    assert made(source())["ServiceAccount"]["automountServiceAccountToken"] is False


def test_account_that_the_job_names_is_bound_and_none_is_made() -> None:
    objects = made(source({"cluster": {"service_account_name": "s3-reader"}}))
    assert list(objects) == ["ConfigMap", "Role", "RoleBinding", "NetworkPolicy", "RayJob"]
    assert objects["RoleBinding"]["subjects"] == [
        {"kind": "ServiceAccount", "name": "s3-reader", "namespace": "team"}
    ]
    assert {at(pod, "spec.serviceAccountName") for pod in templates(objects["RayJob"])} == {"s3-reader"}


def templates(job: Json) -> list[JsonValue]:
    """The pod templates of a RayJob."""
    cluster = "spec.rayClusterSpec"
    paths = (
        "spec.submitterPodTemplate",
        f"{cluster}.headGroupSpec.template",
        f"{cluster}.workerGroupSpecs.0.template",
    )
    return [at(job, path) for path in paths]


def test_rayjob_is_tried_once_and_gives_its_devices_back() -> None:
    spec = ray_job()
    assert (spec["submissionMode"], spec["entrypoint"]) == (
        "K8sJobMode",
        "python -P -m finetune_trainer.on_cluster",
    )
    assert spec["shutdownAfterJobFinishes"] is True
    assert (spec["backoffLimit"], spec["submitterConfig"]) == (0, {"backoffLimit": 0})
    # Kueue sets it where there is one; KubeRay forbids the others beside shutdownAfterJobFinishes.
    assert spec.keys().isdisjoint(
        {"suspend", "deletionStrategy", "ttlSecondsAfterFinished", "clusterSelector"}
    )


def test_deadlines_are_kuberays_to_keep_as_well() -> None:
    assert ray_job()["preRunningDeadlineSeconds"] == 1800
    assert "activeDeadlineSeconds" not in ray_job()
    spec = ray_job({"run_policy": {"starting_deadline_seconds": 60, "active_deadline_seconds": 7200}}, 3600)
    assert (spec["preRunningDeadlineSeconds"], spec["activeDeadlineSeconds"]) == (60, 3600)


def test_cluster_has_so_many_workers_from_beginning_to_end() -> None:
    (group,) = maps(ray_job(SHAPE), "rayClusterSpec.workerGroupSpecs")
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 2


def test_head_takes_no_work() -> None:
    parameters = at(ray_job(), "rayClusterSpec.headGroupSpec.rayStartParams")
    assert parameters == {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"}


@pytest.mark.parametrize(
    ("spec", "resources"),
    [
        ({}, {"CPU": "2", "accelerator_type:CPU": "1"}),
        (
            {"worker_resources": {"accelerator_type:A100-80G": 0.5}},
            {"CPU": "10", "accelerator_type:A100-80G": "1", "GPU": "1"},
        ),
        (SHAPE, {"CPU": "12", "accelerator_type:A10G": "4", "GPU": "4"}),
    ],
    ids=["no device", "a type that Ray never sets itself", "a shape"],
)
def test_workers_declare_their_accelerator_to_ray(spec: Json, resources: Json) -> None:
    (group,) = maps(ray_job(spec), "rayClusterSpec.workerGroupSpecs")
    assert group["resources"] == resources
    assert group["rayStartParams"] == {}  # KubeRay takes resources in one of the two places


def test_version_of_ray_is_the_configurations() -> None:
    job = made(source(None, {"ray_version": "2.61.1"}))["RayJob"]
    assert at(job, "spec.rayClusterSpec.rayVersion") == "2.61.1"


@pytest.mark.parametrize(
    "labels",
    [
        {
            "kueue.x-k8s.io/queue-name": "gpus",
            "kueue.x-k8s.io/priority-class": "high",
            "kueue.x-k8s.io/max-exec-time-seconds": "3600",
        },
        {"volcano.sh/queue-name": "gpus", "ray.io/priority-class-name": "high"},
        {"kai.scheduler/queue": "team-a"},
        {"yunikorn.apache.org/app-id": "a", "yunikorn.apache.org/queue": "root.gpus"},
    ],
    ids=["Kueue", "Volcano", "KAI", "YuniKorn"],
)
def test_labels_of_queues_and_schedulers_are_passed_on_and_others_are_not(labels: dict[str, str]) -> None:
    job = made(source(labels={**labels, "team": "blue", "finetune.dev/job-uid": "another"}))["RayJob"]
    assert at(job, "metadata.labels") == {
        **labels,
        "app.kubernetes.io/managed-by": "finetune-operator",
        "finetune.dev/job-uid": UID,
        "finetune.dev/attempt": "1",
    }


def test_what_else_is_passed_on_the_configuration_lists_and_it_is_never_what_the_operator_sets() -> None:
    labels = {"finetune.dev/job-uid": "mine", "finetune.dev/attempt": "mine", "example.com/queue": "gpus"}
    annotations = {
        "finetune.dev/job-name": "mine",
        "finetune.dev/unchecked-spec": "mine",
        "finetune.dev/storage": "s3://mine",
        "example.com/note": "a",
    }
    made_from = source(
        settings={"ray_job_labels": [*labels], "ray_job_annotations": [*annotations]},
        labels={**labels, "kueue.x-k8s.io/queue-name": "gpus"},
        annotations={**annotations, "example.com/other": "b"},
    )
    metadata = cast("Json", made(made_from)["RayJob"]["metadata"])
    assert metadata["labels"] == {
        "example.com/queue": "gpus",
        "app.kubernetes.io/managed-by": "finetune-operator",
        "finetune.dev/job-uid": UID,
        "finetune.dev/attempt": "1",
    }
    assert metadata["annotations"] == {
        "example.com/note": "a",
        "finetune.dev/job-name": "tune",
        "finetune.dev/unchecked-spec": unchecked_hash(made_from.spec),
        "finetune.dev/storage": "s3://runs",
    }


def test_the_longest_run_of_a_provisioning_request_is_passed_on() -> None:
    provisioning = {"provreq.kueue.x-k8s.io/maxRunDurationSeconds": "3600"}
    job = made(source(annotations={**provisioning, "kubectl.kubernetes.io/last-applied": "x"}))["RayJob"]
    annotations = cast("Json", at(job, "metadata.annotations"))
    assert annotations.items() >= provisioning.items()
    assert "kubectl.kubernetes.io/last-applied" not in annotations


def test_head_is_told_what_the_trainer_needs() -> None:
    assert assignment(attempt=3) == Assignment(
        uid=UID,
        attempt=3,
        storage="s3://runs",
        config_map=NAME,
        on_gpu=False,
        worker_resources={"CPU": 2, "accelerator_type:CPU": 0.001},
        worker_threads=2,
    )


def test_head_is_told_how_much_memory_a_device_has() -> None:
    assert assignment().device_memory is None
    assert assignment(SHAPE).device_memory == 22 * 2**30


@pytest.mark.parametrize(
    "spec",
    [{}, SHAPE, {"worker_resources": {"accelerator_type:A10G": 1, "CPU": 0.5}}],
    ids=["smallest", "shape", "half a processor"],
)
def test_trainer_asks_ray_for_no_more_than_a_pod_has(spec: Json) -> None:
    """Otherwise Ray would wait for ever."""
    assigned = assignment(spec)
    (group,) = maps(ray_job(spec), "rayClusterSpec.workerGroupSpecs")
    has = {name: float(str(number)) for name, number in cast("Json", group["resources"]).items()}
    workers = int(has.get("GPU", 1))
    assert all(number * workers <= has[name] for name, number in assigned.worker_resources.items())
    assert assigned.on_gpu == ("GPU" in has)


@pytest.mark.parametrize("storage", ["s3://$(HOME)/runs", "pvc://claim/$dir", 'gs://b/"quoted"'])
def test_storage_reaches_the_trainer_as_it_is_written(storage: str) -> None:
    assert assignment({"storage": {"path": storage}}).storage == storage


def test_hash_changes_with_the_fields_that_the_api_server_does_not_watch() -> None:
    first = unchecked_hash(source().spec)
    assert unchecked_hash(source({"suspend": True, "run_policy": {"backoff_limit": 0}}).spec) == first
    assert unchecked_hash(source({"initial_base_model_ckpt_path": {"repo_id": "org/other"}}).spec) != first
    assert unchecked_hash(source({"initial_adapter_model_ckpt_path": "s3://adapters/a"}).spec) != first
    assert at(made(source())["RayJob"], "metadata.annotations") == {
        "finetune.dev/job-name": "tune",
        "finetune.dev/unchecked-spec": first,
        "finetune.dev/storage": "s3://runs",
    }


def test_rays_ports_ask_for_a_token() -> None:
    assert at(ray_job(), "rayClusterSpec.authOptions") == {"mode": "token"}


def test_rays_ports_are_closed_to_other_pods_but_for_the_dashboard() -> None:
    pods = {"matchLabels": {"finetune.dev/job-uid": UID}}
    assert made(source())["NetworkPolicy"]["spec"] == {
        "podSelector": pods,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": pods}]}, {"ports": [{"protocol": "TCP", "port": 8265}]}],
    }


def test_the_dashboard_is_for_the_clients_of_the_configuration() -> None:
    kuberay: Json = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    policy = made(source(settings={"dashboard_clients": [kuberay]}))["NetworkPolicy"]
    assert at(policy, "spec.ingress.1.from") == [kuberay]


def test_every_pod_of_a_job_is_among_those_that_the_network_policy_is_for() -> None:
    spec = ray_job()
    for template in (
        "submitterPodTemplate",
        "rayClusterSpec.headGroupSpec.template",
        "rayClusterSpec.workerGroupSpecs.0.template",
    ):
        assert cast("Json", at(spec, f"{template}.metadata.labels"))["finetune.dev/job-uid"] == UID


def test_network_policies_can_be_left_to_others() -> None:
    assert "NetworkPolicy" not in made(source(settings={"network_policies": False}))


def test_what_prepares_is_a_job_of_its_own_beside_what_the_rayjob_needs_too() -> None:
    made_from = source(SHAPE, attempt=2)
    found = children_that_prepare(made_from)
    assert found[:-1] == children(made_from, deadline_seconds=None)[:-1]
    assert (found[-1]["apiVersion"], found[-1]["kind"]) == ("batch/v1", "Job")
    assert at(found[-1], "metadata.name") == f"{NAME}-2-prepare"


def test_prepare_is_tried_once_and_told_what_the_head_is_told() -> None:
    job = made_to_prepare(source(SHAPE, attempt=3))["Job"]
    assert at(job, "spec.backoffLimit") == 0
    assert assigned(at(job, "spec.template")) == assignment(SHAPE, attempt=3)
    command = at(job, "spec.template.spec.containers.0.command")
    assert command == ["/bin/bash", "-lc", "--", "exec python -P -m finetune_trainer.prepare_on_cluster"]
    assert at(job, "spec.template.spec.serviceAccountName") == NAME


def test_no_queue_sees_what_prepares() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "volcano.sh/queue-name": "gpus"}
    provisioning = {"provreq.kueue.x-k8s.io/maxRunDurationSeconds": "3600"}
    job = made_to_prepare(source(labels=labels, annotations=provisioning))["Job"]
    assert at(job, "metadata.labels") == {
        "app.kubernetes.io/managed-by": "finetune-operator",
        "finetune.dev/job-uid": UID,
        "finetune.dev/attempt": "1",
    }
    assert cast("Json", at(job, "metadata.annotations")).keys() == {
        "finetune.dev/job-name",
        "finetune.dev/unchecked-spec",
        "finetune.dev/storage",
    }
    assert cast("Json", at(job, "spec.template.metadata.labels")).keys() == {
        "app.kubernetes.io/managed-by",
        "finetune.dev/job-uid",
        "finetune.dev/attempt",
        "finetune.dev/role",
    }


def test_what_prepares_goes_with_its_job() -> None:
    [owner] = maps(made_to_prepare(source())["Job"], "metadata.ownerReferences")
    assert (owner["kind"], owner["uid"], owner["blockOwnerDeletion"]) == ("FineTuneJob", UID, False)
