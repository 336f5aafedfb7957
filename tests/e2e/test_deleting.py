"""A FineTuneJob that is deleted leaves nothing within a minute, whatever it was doing.

While it trains: test_running_job.py. While it is retried: chaos/test_interruptions.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from pydantic import JsonValue
from tests.e2e.deleting import delete_and_see_everything_go
from tests.e2e.jobs import UNKNOWN_ACCELERATOR, change, job, left, wait_for_nothing, wait_for_phase
from tests.e2e.pod_names import names

from devcluster.faults import stopped
from devcluster.installation import Installation
from devcluster.jobs import get
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.programs import Say
from devcluster.providers import NodeCluster
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

IMPOSSIBLE: JsonValue = {"worker": {"resources": {"requests": {"cpu": "1000"}}}}
"""Workers that no node takes."""


@pytest.mark.parametrize(
    ("wanted", "spec"),
    [
        ("Failed", {"worker_resources": {"accelerator_type:X1": 0.001}}),
        ("Starting", {"cluster": IMPOSSIBLE}),
        ("Suspended", {"cluster": IMPOSSIBLE, "suspend": True}),
    ],
)
def test_before_it_trains(
    operator: Installation,
    kubectl: Kubectl,
    namespace: str,
    tiny_inputs: Volume,
    say: Say,
    wanted: str,
    spec: dict[str, JsonValue],
) -> None:
    del operator, tiny_inputs
    kubectl.apply(job("job", namespace, **spec))
    wait_for_phase(kubectl, namespace, "job", wanted, seconds=60)

    delete_and_see_everything_go(kubectl, namespace, say, wanted)


def test_while_kueue_holds_it_back(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume, say: Say
) -> None:
    del operator, tiny_inputs
    queued = job("job", namespace, cluster=IMPOSSIBLE)
    queued["metadata"] = {
        "name": "job",
        "namespace": namespace,
        "labels": {"kueue.x-k8s.io/queue-name": "team-a"},
    }
    kubectl.apply(queued)
    ray_job = wait_for("the RayJob", lambda: kubectl.all("rayjobs", namespace), seconds=10)[0]
    assert at(ray_job, "metadata", "labels", "kueue.x-k8s.io/queue-name") == "team-a"
    name = str(at(ray_job, "metadata", "name"))
    change(kubectl, namespace, "rayjob", name, suspend=True)

    held = wait_for_phase(kubectl, namespace, "job", "Queued", seconds=30)
    assert "from queue team-a" in str(at(held, "status", "message"))
    wait_for(
        "its pods to go", lambda: not names(kubectl, namespace, "ray.io/cluster", phase="Pending"), seconds=60
    )
    change(kubectl, namespace, "rayjob", name, suspend=False)
    wait_for_phase(kubectl, namespace, "job", "Starting", seconds=30)
    change(kubectl, namespace, "rayjob", name, suspend=True)
    wait_for_phase(kubectl, namespace, "job", "Queued", seconds=30)

    delete_and_see_everything_go(kubectl, namespace, say, "Queued")


def test_by_its_time_to_live(operator: Installation, kubectl: Kubectl, namespace: str, say: Say) -> None:
    del operator
    kubectl.apply(job("job", namespace, **UNKNOWN_ACCELERATOR))
    wait_for_phase(kubectl, namespace, "job", "Failed", seconds=20)

    began = time.monotonic()
    change(kubectl, namespace, "finetunejob", "job", run_policy={"ttl_seconds_after_finished": 1})
    wait_for_nothing(kubectl, namespace, seconds=20)
    say(f"Failed, by its time to live: nothing left after {time.monotonic() - began:.1f} s")


@pytest.mark.breaks_the_cluster
def test_without_kuberay_a_job_that_is_deleted_goes_at_once_and_its_devices_are_free(
    operator: Installation, node_cluster: NodeCluster, namespace: str, tiny_inputs: Volume, say: Say
) -> None:
    del operator, tiny_inputs
    kubectl: Kubectl = node_cluster.kubectl
    pods: Callable[[], set[str]] = lambda: names(kubectl, namespace, "ray.io/cluster")  # noqa: E731
    kubectl.apply(job("job", namespace, num_epochs=1000, checkpoint_every_n_epochs=500))
    wait_for("the cluster to run", lambda: len(pods()) == 2, seconds=120, every=0.5)

    with stopped(node_cluster, "ray-operator"):
        began = time.monotonic()
        kubectl("delete", "finetunejob", "job", "--namespace", namespace, "--timeout=10s", seconds=20)
        assert get(kubectl, namespace, "job") is None
        wait_for("the pods to go", lambda: not pods(), seconds=60, every=0.5)
        say(f"without KubeRay: its pods are gone after {time.monotonic() - began:.1f} s")
        kubectl.apply(job("job", namespace))
        waits = wait_for_phase(kubectl, namespace, "job", "Pending", seconds=10)
        assert "KubeRay" in str(at(waits, "status", "message")) or "asked for" in str(
            at(waits, "status", "message")
        )
        kubectl("delete", "finetunejob", "job", "--namespace", namespace, "--timeout=10s", seconds=20)
        assert [each for each in left(kubectl, namespace) if each.startswith("finetunejob")] == []

    wait_for_nothing(kubectl, namespace, seconds=60)
