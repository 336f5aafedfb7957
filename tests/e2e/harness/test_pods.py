"""Pods run, find each other, train with Ray, and are replaced when they are lost."""

from __future__ import annotations

import pytest
from tests.e2e.pod_names import names
from tests.e2e.ray_jobs import ray_job, workers_service

from devcluster.failure import ClusterError
from devcluster.faults import kill_pod
from devcluster.images import Image
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.pods import pod_spec
from devcluster.waiting import wait_for


def test_a_ray_job_of_the_trainers_image_runs_on_two_workers_that_see_each_other(
    kubectl: Kubectl, namespace: str, trainer: Image
) -> None:
    kubectl.apply(workers_service(namespace))
    kubectl.apply(ray_job("job", namespace, trainer.name))

    def ended() -> str | None:
        status = at(kubectl.get("rayjob", "job", namespace), "status", "jobStatus")
        return str(status) if status in ("SUCCEEDED", "FAILED", "STOPPED") else None

    status = wait_for("the RayJob to end", ended, seconds=420, seen=lambda: kubectl.story(namespace), every=1)
    log = kubectl("logs", "--namespace", namespace, "--selector=job-name=job", "--tail=-1")

    assert status == "SUCCEEDED", kubectl.story(namespace)
    assert "'accelerator_type:A10G': 2.0" in log
    assert "trained" in log.splitlines()
    workers = kubectl.all("pods", namespace, "ray.io/node-type=worker")
    addresses = sorted(str(at(pod, "status", "podIP")) for pod in workers)
    assert len(set(addresses)) == 2
    for rank in range(2):
        assert any(f"worker {rank} at {address} sees {addresses}" in log for address in addresses), log


def test_a_wait_in_vain_shows_pods_events_and_logs(kubectl: Kubectl, namespace: str, trainer: Image) -> None:
    speaker = pod_spec(trainer.name, command=["python3", "-c", "print('last words'); raise SystemExit(3)"])
    absent = pod_spec("localhost/absent:1")
    for name, spec in (("speaker", speaker), ("absent", absent)):
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace},
                "spec": spec,
            }
        )
    wait_for(
        "the pods to fail",
        lambda: "last words" in kubectl.story(namespace) and "Failed" in kubectl.story(namespace),
        seconds=60,
    )

    with pytest.raises(ClusterError) as raised:
        wait_for(
            "both to run",
            lambda: len(names(kubectl, namespace, "")) == 2,
            seconds=1,
            seen=lambda: kubectl.story(namespace),
        )

    said = str(raised.value)
    assert said.startswith(f"waited 1 s for both to run\npods in {namespace}:\n")
    assert "log of speaker:\n  last words" in said
    assert 'Failed to pull image "localhost/absent:1"' in said


def test_a_worker_that_is_killed_is_replaced(kubectl: Kubectl, namespace: str, trainer: Image) -> None:
    kubectl.apply(workers_service(namespace))
    kubectl.apply(ray_job("job", namespace, trainer.name, seconds=600))
    workers = "ray.io/node-type=worker"

    def two() -> set[str] | None:
        running = names(kubectl, namespace, workers)
        return running if len(running) == 2 else None

    before = wait_for("two workers", two, seconds=240, seen=lambda: kubectl.story(namespace), every=1)
    victim = min(before)
    kill_pod(kubectl, namespace, victim)

    def replaced() -> set[str] | None:
        running = names(kubectl, namespace, workers)
        return running if len(running) == 2 and victim not in running else None

    after = wait_for(
        "another worker in its place", replaced, seconds=240, seen=lambda: kubectl.story(namespace), every=1
    )
    assert len(after - before) >= 1
