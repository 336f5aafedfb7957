"""The chart's release: two beside each other, tested; one without rights.

Upgraded, removed and installed again: test_running_job.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.e2e.jobs import UNKNOWN_ACCELERATOR, job, left, wait_for_phase
from tests.e2e.namespaces import temporary_namespace
from tests.e2e.rights import Right, granted

from devcluster.failure import ClusterError
from devcluster.helm import Helm
from devcluster.images import Image
from devcluster.installation import Installation
from devcluster.jobs import CLAIM, phase
from devcluster.kubectl import Kubectl
from devcluster.programs import Say
from devcluster.volumes import Volume
from devcluster.waiting import wait_for


def test_two_in_namespaces_of_their_own_are_blind_to_each_other_and_their_own_test_leaves_nothing(
    operator: Installation,
    helm: Helm,
    operator_image: Image,
    trainer: Image,
    kubectl: Kubectl,
    namespace: str,
    volume: Volume,
    say: Say,
) -> None:
    """The chart's test trains a tiny model, and only one of the two operators sees it."""
    del volume
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

            kubectl("delete", "finetunejob", "job", "--namespace", namespace, "--timeout=20s", seconds=30)
            before = left(kubectl, namespace)
            began = time.monotonic()
            said = helm("test", mine.release, "--namespace", mine.namespace, "--timeout=360s", seconds=400)
            say(f"helm test took {time.monotonic() - began:.0f} s:\n{said}")
            assert "Phase:          Succeeded" in said
            wait_for("what it made to go", lambda: left(kubectl, namespace) == before, seconds=60)
            assert phase(kubectl, other, "unseen") is None
            assert mine.errors() == others.errors() == []
    finally:
        operator.start()


@pytest.mark.usefixtures("operator")
def test_without_its_rights_it_says_which_and_what_to_do(
    helm: Helm, operator_image: Image, trainer: Image, kubectl: Kubectl, namespace: str
) -> None:
    """Beside the one of all tests, whose definition it finds and which is not disturbed: it fails."""
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

    first = wait_for("the log of a pod that is started again and again", bare.log, seconds=60).splitlines()[0]
    helm("uninstall", "bare", "--namespace", namespace)
    line = json.loads(first)
    assert line["level"] == "ERROR"
    assert (
        f'finetunejobs.finetune.dev is forbidden: User "{bare.user}" cannot list resource' in line["message"]
    )
    assert "bind the roles of the operator's chart to its service account (rbac.create)" in line["message"]
    assert kubectl.get("finetunejob", "any", namespace) is None


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
            test={"namespace": namespace, "storage": f"pvc://{CLAIM}/trial", "timeoutSeconds": 300},
        )
        for number, namespace in enumerate(namespaces)
    ]
    for each in pair:
        each.install()
    yield pair
    for each in pair:
        each.uninstall()
