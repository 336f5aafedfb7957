"""Whatever is interrupted: the operator, a worker, the job itself. The end is the same.

The API server, and the operator's release: test_running_job.py.
"""

from __future__ import annotations

import time

from pydantic import JsonValue
from tests.e2e.jobs import (
    OURS,
    change,
    events,
    job,
    mark,
    names_of,
    wait_for_checkpoint,
    wait_for_nothing,
    wait_for_phase,
    wait_for_step,
)
from tests.e2e.long_jobs import MINUTE, SHORT, check_the_end, long_job, ray_jobs
from tests.e2e.pod_names import names
from tests.e2e.sightings import Sightings

from devcluster.faults import kill_pod
from devcluster.installation import Installation
from devcluster.jobs import get, phase
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.programs import Say
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
    assert len(ray_jobs(sightings, "job")) == 1
    assert at(get(kubectl, namespace, "job"), "status") == at(ended, "status")


def test_a_worker_that_is_lost_and_a_suspension_end_in_resuming_from_what_was_saved(
    operator: Installation,
    kubectl: Kubectl,
    namespace: str,
    tiny_inputs: Volume,
    sightings: Sightings,
    say: Say,
) -> None:
    """Beside another job that loses its worker, and is deleted while it is retried."""
    del operator
    kubectl.apply(job("unwanted", namespace, num_epochs=5000, checkpoint_every_n_epochs=2500))
    kubectl.apply(job("job", namespace, **long_job(SHORT)))
    wait_for_step(kubectl, namespace, "unwanted", 2, seconds=400)
    _lose_its_worker(kubectl, namespace, "unwanted")
    wait_for_phase(kubectl, namespace, "unwanted", "Retrying", seconds=120)
    unwanted, deleted = mark(kubectl, namespace, "unwanted"), time.monotonic()
    kubectl("delete", "finetunejob", "unwanted", "--namespace", namespace, "--timeout=20s", seconds=30)

    wait_for_checkpoint(kubectl, namespace, "job", seconds=300)
    _lose_its_worker(kubectl, namespace, "job")
    retrying = wait_for_phase(kubectl, namespace, "job", "Retrying", seconds=120)
    assert at(retrying, "status", "failure", "class") == "NodeLost"
    before = names_of(at(retrying, "status", "checkpoints"))
    wait_for_nothing(kubectl, namespace, unwanted, seconds=deleted + 60 - time.monotonic())
    say(f"Retrying: nothing left after {time.monotonic() - deleted:.1f} s")
    wait_for_phase(kubectl, namespace, "job", "Running", seconds=300)
    wait_for(
        "another checkpoint",
        lambda: names_of(at(get(kubectl, namespace, "job"), "status", "checkpoints")) - before,
        seconds=120,
        seen=lambda: kubectl.story(namespace),
    )

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
    assert names_of(at(suspended, "status", "checkpoints")) >= before
    assert len(ray_jobs(sightings, "job")) == 2
    change(kubectl, namespace, "finetunejob", "job", suspend=False)

    ended = wait_for_phase(kubectl, namespace, "job", "Succeeded", seconds=400)
    check_the_end(tiny_inputs, ended, SHORT)
    assert done < int(str(at(ended, "status", "plan", "totalSteps")))
    assert at(ended, "status", "attempts") == 2
    assert at(ended, "status", "failure") is None
    assert len(ray_jobs(sightings, "job")) == 3
    assert "Retrying" in [reason for reason, _ in events(kubectl, namespace, "job")]


def _lose_its_worker(kubectl: Kubectl, namespace: str, name: str) -> None:
    ours = f"ray.io/node-type=worker,{OURS}={at(get(kubectl, namespace, name), 'metadata', 'uid')}"
    [pod] = names(kubectl, namespace, ours)
    kill_pod(kubectl, namespace, pod)
