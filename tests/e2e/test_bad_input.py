"""Jobs that cannot work end, or wait, with words that a person can act on."""

from __future__ import annotations

from pydantic import JsonValue
from tests.e2e.jobs import job, wait_for_phase

from devcluster.installation import Installation
from devcluster.jobs import get
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.programs import Say
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

SOON: JsonValue = {"starting_deadline_seconds": 15}
QUOTA_GIB = 64
"""More than all pods of the jobs in a namespace ask for, but one."""


def test_what_the_operator_can_tell_before_anything_is_made(
    operator: Installation, kubectl: Kubectl, namespace: str
) -> None:
    del operator
    kubectl.apply(job("job", namespace, worker_resources={"accelerator_type:H1000": 0.001}))

    failed = wait_for_phase(kubectl, namespace, "job", "Failed", seconds=10)
    message = str(at(failed, "status", "message"))
    assert "H1000" in message
    assert "A10G" in message
    assert at(failed, "status", "failure", "class") == "InvalidSpec"
    assert kubectl.all("rayjobs", namespace) == []


def test_an_image_that_does_not_exist_and_a_node_that_does_not(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume
) -> None:
    del operator, tiny_inputs
    kubectl.apply(job("image", namespace, cluster={"image": "localhost/absent:1"}, run_policy=SOON))
    kubectl.apply(
        job(
            "node",
            namespace,
            cluster={"worker": {"resources": {"requests": {"cpu": "1000"}}}},
            run_policy=SOON,
        )
    )

    def says(name: str, words: str) -> None:
        wait_for(
            words, lambda: words in str(at(get(kubectl, namespace, name), "status", "message")), seconds=30
        )

    says("image", "cannot get the image localhost/absent:1")
    says("node", "Insufficient cpu")
    for name, expected in (("image", "ImagePull"), ("node", "Unschedulable")):
        failed = wait_for_phase(kubectl, namespace, name, "Failed", seconds=60)
        assert at(failed, "status", "failure", "class") == expected
        assert "starting_deadline_seconds" in str(at(failed, "status", "message"))
        assert at(failed, "status", "attempts") == 1


def test_a_pod_that_a_quota_refuses_one_that_is_evicted_data_that_is_not_there_and_a_model_that_is_none(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume, say: Say
) -> None:
    """All of Ray is up, and the submitter may not be; what Ray writes is more than a worker may keep.

    The other two end while the first waits for its deadline.
    """
    del operator, tiny_inputs
    kubectl("create", "quota", "memory", "--namespace", namespace, f"--hard=requests.memory={QUOTA_GIB}Gi")
    too_large: JsonValue = {"resources": {"limits": {"memory": f"{QUOTA_GIB + 1}Gi"}}}
    too_small: JsonValue = {"resources": {"limits": {"ephemeral-storage": "4Ki"}}}
    starting: JsonValue = {"starting_deadline_seconds": 90}
    kubectl.apply(job("refused", namespace, cluster={"submitter": too_large}, run_policy=starting))
    kubectl.apply(job("evicted", namespace, cluster={"worker": too_small}, run_policy=starting))
    kubectl.apply(job("data", namespace, train_path="pvc://finetune/data/absent.jsonl"))
    kubectl.apply(job("model", namespace, model_id="pvc://finetune/models/absent"))

    for name, expected, words in (
        (
            "refused",
            "Unschedulable",
            "has no pod: a quota, a LimitRange or an admission policy may refuse it",
        ),
        ("evicted", "InvalidSpec", "raise spec.cluster.worker.resources.limits.ephemeral-storage"),
        ("data", "InvalidData", "data/absent.jsonl"),
        ("model", "ModelNotFound", "models/absent"),
    ):
        _check_that_it_fails(kubectl, namespace, name, expected, words, say)


def _check_that_it_fails(
    kubectl: Kubectl, namespace: str, name: str, expected: str, words: str, say: Say
) -> None:
    """In its first attempt, with this class of failure and these words."""
    failed = wait_for_phase(kubectl, namespace, name, "Failed", seconds=240)
    say(f"{name}: {at(failed, 'status', 'message')}")
    assert at(failed, "status", "failure", "class") == expected
    assert words in str(at(failed, "status", "message"))
    assert at(failed, "status", "attempts") == 1
