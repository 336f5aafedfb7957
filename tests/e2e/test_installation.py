"""The chart's release: tested, upgraded, removed and installed again; two beside each other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydantic import JsonValue
from tests.e2e.jobs import job, left, wait_for_checkpoint, wait_for_phase, wait_for_step
from tests.e2e.long_jobs import MINUTE, check_the_end, long_job, ray_jobs
from tests.e2e.namespaces import temporary_namespace
from tests.e2e.rights import Right, granted
from tests.e2e.sightings import Sightings

from devcluster.failure import ClusterError
from devcluster.helm import Helm
from devcluster.images import Image
from devcluster.installation import CONFIGURATION, Installation
from devcluster.jobs import get, phase
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.programs import Say
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

EPOCHS = 2 * MINUTE
"""Of a job that trains through an upgrade, a removal and an installation."""
UNKNOWN_ACCELERATOR: dict[str, JsonValue] = {"worker_resources": {"accelerator_type:Z9": 1}}
"""What an operator says no to as soon as it sees it."""


def test_its_own_test_trains_a_tiny_model_and_leaves_nothing(
    operator: Installation, namespace: str, volume: Volume, say: Say
) -> None:
    del volume
    storage = "pvc://finetune/trial"
    operator.upgrade(test={"namespace": namespace, "storage": storage, "timeoutSeconds": 300})

    began = time.monotonic()
    said = operator.helm(
        "test", operator.release, "--namespace", operator.namespace, "--timeout=360s", seconds=400
    )

    say(f"helm test took {time.monotonic() - began:.0f} s:\n{said}")
    assert "Phase:          Succeeded" in said
    wait_for("nothing to be left", lambda: not left(operator.kubectl, namespace), seconds=60)


def test_an_upgrade_under_a_running_job_disturbs_nothing_and_neither_do_removal_and_another_installation(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume, sightings: Sightings
) -> None:
    kubectl.apply(job("done", namespace, **UNKNOWN_ACCELERATOR))
    wait_for_phase(kubectl, namespace, "done", "Failed", seconds=20)
    kubectl.apply(job("job", namespace, **long_job(EPOCHS)))
    wait_for_step(kubectl, namespace, "job", 2, seconds=300)
    pods = _pods(kubectl, namespace)
    before = _operator_pod(operator)

    operator.upgrade(config={**CONFIGURATION, "resync_seconds": 30})

    assert _operator_pod(operator) != before, "the new configuration is at work"
    assert phase(kubectl, namespace, "job") == "Running"
    assert _pods(kubectl, namespace) == pods
    wait_for_checkpoint(kubectl, namespace, "job", seconds=300)

    try:
        operator.uninstall()
        wait_for(
            "the release to go",
            lambda: not _of_the_release(operator),
            seconds=60,
            seen=lambda: "\n".join(_of_the_release(operator)),
        )

        assert kubectl("get", "crd", "finetunejobs.finetune.dev", "--output=name")
        assert at(get(kubectl, namespace, "job"), "status", "checkpoints")
        kubectl("delete", "finetunejob", "done", "--namespace", namespace, "--timeout=10s")
        kubectl.apply(job("new", namespace, **UNKNOWN_ACCELERATOR))
    finally:
        operator.configure(config=CONFIGURATION)
        operator.install()

    ended = wait_for_phase(kubectl, namespace, "job", "Succeeded", seconds=400)
    check_the_end(tiny_inputs, ended, EPOCHS)
    assert at(ended, "status", "attempts") == 1
    assert len(ray_jobs(sightings)) == 1
    wait_for_phase(kubectl, namespace, "new", "Failed", seconds=20)


def test_two_in_namespaces_of_their_own_are_blind_to_each_other(
    operator: Installation,
    helm: Helm,
    operator_image: Image,
    trainer: Image,
    kubectl: Kubectl,
    namespace: str,
    tiny_inputs: Volume,
) -> None:
    del tiny_inputs
    everybody = granted(kubectl, "system:serviceaccount:default:nobody", namespace)
    operator.kill()
    try:
        with (
            temporary_namespace(kubectl) as other,
            _pair(helm, operator_image, trainer, namespace, other) as (mine, others),
        ):
            for watched, blind in ((mine, other), (others, namespace)):
                rights = granted(kubectl, watched.user, watched.namespace) - everybody
                assert Right("ray.io", "rayjobs", "create") in rights
                assert granted(kubectl, watched.user, blind) - everybody == set()

            mine.kill()
            for where in (namespace, other):
                kubectl.apply(job("job", where, **UNKNOWN_ACCELERATOR))
            wait_for_phase(kubectl, other, "job", "Failed", seconds=20)
            time.sleep(5)
            assert phase(kubectl, namespace, "job") is None
            mine.start()
            others.kill()
            wait_for_phase(kubectl, namespace, "job", "Failed", seconds=20)
            kubectl.apply(job("unseen", other, **UNKNOWN_ACCELERATOR))

            kubectl.apply(job("trained", namespace))
            wait_for_phase(kubectl, namespace, "trained", "Succeeded", seconds=300)
            assert phase(kubectl, other, "unseen") is None
            assert mine.errors() == others.errors() == []
    finally:
        operator.start()


def test_without_its_rights_it_says_which_and_what_to_do(
    helm: Helm, operator_image: Image, trainer: Image, kubectl: Kubectl, namespace: str
) -> None:
    """Beside the one of all tests, which is not disturbed: this one comes to nothing."""
    bare = Installation(
        helm,
        operator_image,
        trainer,
        release="bare",
        namespace=namespace,
        crds={"install": False},
        rbac={"create": False, "aggregate": False},
    )
    with pytest.raises(ClusterError):
        bare.install(seconds=20)

    first = bare.log().splitlines()[0]
    helm("uninstall", "bare", "--namespace", namespace)
    line = json.loads(first)
    assert line["level"] == "ERROR"
    assert (
        f'finetunejobs.finetune.dev is forbidden: User "{bare.user}" cannot list resource' in line["message"]
    )
    assert "bind the roles of the operator's chart to its service account (rbac.create)" in line["message"]
    assert kubectl.get("finetunejob", "any", namespace) is None


def _pods(kubectl: Kubectl, namespace: str) -> set[str]:
    """UIDs."""
    return {str(at(each, "metadata", "uid")) for each in kubectl.all("pods", namespace)}


def _of_the_release(operator: Installation) -> list[str]:
    kinds = (
        *("deployments", "pods", "services", "configmaps", "serviceaccounts", "networkpolicies"),
        *("clusterroles", "clusterrolebindings"),
    )
    found = operator.kubectl(
        "get", ",".join(kinds), "--namespace", operator.namespace, "--output=name"
    ).split()
    return [each for each in found if f"/{operator.name}" in each]


def _operator_pod(operator: Installation) -> set[str]:
    return _pods(operator.kubectl, operator.namespace)


@contextmanager
def _pair(
    helm: Helm, operator_image: Image, trainer: Image, *namespaces: str
) -> Iterator[list[Installation]]:
    """Operators of two teams, in a namespace each, which is the only one that they watch."""
    pair = [
        Installation(
            helm,
            operator_image,
            trainer,
            release=f"team-{number}",
            namespace=namespace,
            watchNamespaces=[namespace],
            crds={"install": False},
            rbac={"aggregate": False},
        )
        for number, namespace in enumerate(namespaces)
    ]
    for each in pair:
        each.install()
    yield pair
    for each in pair:
        each.uninstall()
