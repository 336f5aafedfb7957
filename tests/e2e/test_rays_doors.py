"""Ray's ports run what they are sent.

They ask for the job's token: whoever is not of the job is turned away.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from uuid import uuid4

import pytest
from pydantic import JsonValue
from tests.e2e.jobs import job, wait_for_step
from tests.e2e.long_jobs import LONG
from tests.e2e.rights import Right, granted, may

from devcluster.failure import ClusterError
from devcluster.images import Image
from devcluster.installation import Installation
from devcluster.jobs import get
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.pods import pod_spec
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

STRANGER = "stranger"

KNOCK = """
import json, os, subprocess, sys, urllib.error, urllib.request
head, token = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}"} if token else {}

def ask(path, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://{head}:8265{path}", data, {**headers, "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code

def status():
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or "a guess"}
    command = ["ray", "status", f"--address={head}:6379"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return "Active" in ended.stdout

print(json.dumps({
    "jobs": ask("/api/jobs/"),
    "a job of one's own": ask("/api/jobs/", {"entrypoint": "id"}),
    "the log of a node": ask("/api/v0/logs?node_ip=" + head),
    "the cluster's state": status(),
}))
"""


@pytest.fixture
def stranger(kubectl: Kubectl, trainer: Image) -> Iterator[str]:
    """A namespace with a pod that has Ray, and no job."""
    name = f"e2e-{uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    wait_for("its service account", lambda: kubectl.get("serviceaccount", "default", name), seconds=60)
    spec = pod_spec(trainer.name, name=STRANGER, command=["sleep", "infinity"])
    spec["terminationGracePeriodSeconds"] = 0
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": STRANGER, "namespace": name}, "spec": spec}
    )
    kubectl(
        "wait", f"pod/{STRANGER}", "--namespace", name, "--for=condition=Ready", "--timeout=60s", seconds=70
    )
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def test_a_foreign_pod_is_turned_away_at_every_door_and_the_trainer_has_one_right(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume, stranger: str
) -> None:
    del operator, tiny_inputs
    kubectl.apply(job("job", namespace, **LONG))
    wait_for_step(kubectl, namespace, "job", 2, seconds=300)
    cluster = str(at(get(kubectl, namespace, "job"), "status", "rayClusterName"))
    secret = kubectl.get("secret", cluster, namespace)
    token = base64.b64decode(str(at(secret, "data", "auth_token"))).decode()
    head = _head(kubectl, namespace)

    def knock(with_token: str) -> dict[str, JsonValue]:
        words = ("exec", STRANGER, "--namespace", stranger, "--", "python3", "-c", KNOCK, head, with_token)
        return dict(json.loads(kubectl(*words, seconds=300).splitlines()[-1]))

    closed = {"jobs": 401, "a job of one's own": 401, "the log of a node": 401, "the cluster's state": False}
    assert knock("") == closed
    assert knock("a guess") == {
        **closed,
        **dict.fromkeys(("jobs", "a job of one's own", "the log of a node"), 403),
    }
    opened = knock(token)
    assert (opened["jobs"], opened["the cluster's state"]) == (200, True), "it is the token that opens"

    _check_that_the_token_is_told_nowhere(kubectl, namespace, token)
    _check_the_trainers_rights(kubectl, namespace)


def _head(kubectl: Kubectl, namespace: str) -> str:
    [pod] = kubectl.all("pods", namespace, "ray.io/node-type=head")
    return str(at(pod, "status", "podIP"))


def _check_that_the_token_is_told_nowhere(kubectl: Kubectl, namespace: str, token: str) -> None:
    """Neither in objects other than the secret, nor in a log."""
    told = kubectl(
        "get",
        "finetunejobs,rayjobs,rayclusters,pods,configmaps,events,jobs",
        "--namespace",
        namespace,
        "--output=yaml",
    )
    told += "".join(
        kubectl("logs", str(at(pod, "metadata", "name")), "--namespace", namespace, "--all-containers")
        for pod in kubectl.all("pods", namespace, "finetune.dev/job-uid")
    )
    assert token not in told


def _check_the_trainers_rights(kubectl: Kubectl, namespace: str) -> None:
    [role] = kubectl.all("roles", namespace)
    name = str(at(role, "metadata", "name"))
    trainer = f"system:serviceaccount:{namespace}:{name}"
    everybody = granted(kubectl, "system:serviceaccount:default:nobody", namespace)
    assert granted(kubectl, trainer, namespace) - everybody == {
        Right("", "configmaps", verb, (name,)) for verb in ("get", "patch")
    }
    assert not may(kubectl, trainer, Right("", "configmaps", "list"), namespace)

    kubectl("get", "configmap", name, "--namespace", namespace, f"--as={trainer}")
    tried = {
        "another config map": ("get", "configmap", "kube-root-ca.crt"),
        "the secrets": ("get", "secrets"),
        "the job": ("get", "finetunejob", "job"),
        "the pods": ("get", "pods"),
        "its config map's end": ("delete", "configmap", name),
        "more rights": (
            "create",
            "rolebinding",
            "more",
            "--clusterrole=admin",
            f"--serviceaccount={namespace}:{name}",
        ),
    }
    let = [
        what
        for what, words in tried.items()
        if _is_let(kubectl, *words, "--namespace", namespace, f"--as={trainer}")
    ]
    assert let == []
    workers = kubectl.all("pods", namespace, "ray.io/node-type=worker")
    assert [at(pod, "spec", "automountServiceAccountToken") for pod in workers] == [False]
    assert "kube-api-access" not in json.dumps([at(pod, "spec", "volumes") for pod in workers])


def _is_let(kubectl: Kubectl, *words: str) -> bool:
    try:
        kubectl(*words)
    except ClusterError as error:
        return "forbidden" not in str(error).lower()
    return True
