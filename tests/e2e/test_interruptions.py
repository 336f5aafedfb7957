"""Whatever is interrupted: the operator, the API server, a worker, the job itself. The end is the same."""

from __future__ import annotations

import time

import pytest
from pydantic import JsonValue
from tests.e2e.jobs import change, events, job, names_of, wait_for_checkpoint, wait_for_phase, wait_for_step
from tests.e2e.long_jobs import MINUTE, SHORT, check_the_end, long_job, ray_jobs
from tests.e2e.pod_names import names
from tests.e2e.sightings import Sightings

from devcluster.faults import kill_pod, stopped
from devcluster.installation import Installation
from devcluster.jobs import get, phase
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.providers import NodeCluster
from devcluster.volumes import Volume
from devcluster.waiting import wait_for


def test_an_operator_that_is_killed_in_every_phase_goes_on_where_the_cluster_is(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume, sightings: Sightings
) -> None:
    kubectl.apply(job("job", namespace, **long_job(MINUTE)))
    wait_for("the RayJob", lambda: sightings.of("RayJob"), seconds=10)
    operator.restart()
    wait_for_phase(kubectl, namespace, "job", "Starting", seconds=30)
    operator.restart()
    wait_for_step(kubectl, namespace, "job", 2, seconds=300)
    operator.kill()
    time.sleep(5)
    operator.start()
    wait_for_checkpoint(kubectl, namespace, "job", seconds=300)
    operator.kill()
    ray_job = sightings.of("RayJob")[0].name
    wait_for(
        "the RayJob to end",
        lambda: sightings.first("RayJob", ray_job, "Complete", "status", "jobDeploymentStatus"),
        seconds=400,
    )
    assert phase(kubectl, namespace, "job") == "Running"
    operator.start()

    ended = wait_for_phase(kubectl, namespace, "job", "Succeeded", seconds=10)
    operator.restart()
    check_the_end(tiny_inputs, ended, MINUTE)
    assert len(ray_jobs(sightings)) == 1
    assert at(get(kubectl, namespace, "job"), "status") == at(ended, "status")


@pytest.mark.breaks_the_cluster
def test_an_api_server_that_is_gone_for_half_a_minute_changes_nothing(
    operator: Installation,
    node_cluster: NodeCluster,
    namespace: str,
    tiny_inputs: Volume,
    sightings: Sightings,
) -> None:
    del operator
    kubectl = node_cluster.kubectl
    kubectl.apply(job("job", namespace, **long_job(MINUTE)))
    wait_for_step(kubectl, namespace, "job", 2, seconds=300)

    with stopped(node_cluster, "kube-apiserver"):
        time.sleep(30)

    ended = wait_for_phase(kubectl, namespace, "job", "Succeeded", seconds=400)
    check_the_end(tiny_inputs, ended, MINUTE)
    assert at(ended, "status", "attempts") == 1
    assert len(ray_jobs(sightings)) == 1


def test_a_worker_that_is_lost_is_a_retry_from_the_newest_checkpoint(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume, sightings: Sightings
) -> None:
    del operator
    kubectl.apply(job("job", namespace, **long_job(SHORT)))
    wait_for_checkpoint(kubectl, namespace, "job", seconds=300)
    kill_pod(kubectl, namespace, min(names(kubectl, namespace, "ray.io/node-type=worker")))

    retrying = wait_for_phase(kubectl, namespace, "job", "Retrying", seconds=120)
    assert at(retrying, "status", "failure", "class") == "NodeLost"
    ended = wait_for_phase(kubectl, namespace, "job", "Succeeded", seconds=400)

    check_the_end(tiny_inputs, ended, SHORT)
    assert at(ended, "status", "attempts") == 2
    assert at(ended, "status", "failure") is None
    assert len(ray_jobs(sightings)) == 2
    assert "Retrying" in [reason for reason, _ in events(kubectl, namespace, "job")]


def test_a_job_that_is_suspended_gives_its_cluster_back_and_goes_on_from_what_was_saved(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume, sightings: Sightings
) -> None:
    del operator
    kubectl.apply(job("job", namespace, **long_job(SHORT)))
    wait_for_checkpoint(kubectl, namespace, "job", seconds=300)

    change(kubectl, namespace, "finetunejob", "job", suspend=True)
    wait_for_phase(kubectl, namespace, "job", "Suspended", seconds=20)
    wait_for(
        "the cluster to go", lambda: not names(kubectl, namespace, "ray.io/cluster"), seconds=60, every=0.5
    )

    def given_back() -> dict[str, JsonValue] | None:
        found = get(kubectl, namespace, "job")
        return found if "goes on from" in str(at(found, "status", "message")) else None

    suspended = wait_for("its word", given_back, seconds=60)
    done = int(str(at(suspended, "status", "progress", "step")))
    assert names_of(at(suspended, "status", "checkpoints"))
    change(kubectl, namespace, "finetunejob", "job", suspend=False)

    ended = wait_for_phase(kubectl, namespace, "job", "Succeeded", seconds=400)
    check_the_end(tiny_inputs, ended, SHORT)
    assert done < int(str(at(ended, "status", "plan", "totalSteps")))
    assert at(ended, "status", "attempts") == 1
    assert len(ray_jobs(sightings)) == 2
