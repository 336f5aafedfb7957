"""After all other tests: the operator has no right that it did not use."""

from __future__ import annotations

import pytest
from tests.e2e.rights import Right, granted, may, used

from devcluster.failure import ClusterError
from devcluster.installation import Installation
from devcluster.kubectl import Kubectl
from devcluster.providers import NodeCluster

TO_GIVE = {Right("", "configmaps", "patch")}
"""What the operator does not do, and gives to the head of each job, which needs it: nobody can give what he
has not."""


@pytest.mark.breaks_the_cluster
def test_the_operator_may_do_what_it_did_and_nothing_else(
    node_cluster: NodeCluster, operator: Installation, namespace: str
) -> None:
    """By the audit log of a whole run: of a part of the tests, this one fails."""
    kubectl = node_cluster.kubectl
    everybody = granted(kubectl, "system:serviceaccount:default:nobody", namespace)
    allowed = granted(kubectl, operator.user, namespace) - everybody
    done = used(node_cluster.directory / "audit.log", operator.user)

    assert done <= allowed
    assert allowed - done - TO_GIVE == set(), "allowed, and not used by these tests"


def test_no_secret_and_no_way_to_more_rights(
    operator: Installation, kubectl: Kubectl, namespace: str
) -> None:
    forbidden = [
        *(
            Right("", "secrets", verb)
            for verb in ("get", "list", "watch", "create", "update", "patch", "delete")
        ),
        *(
            Right("", resource, "create")
            for resource in ("pods", "pods/exec", "pods/portforward", "serviceaccounts/token")
        ),
        *(Right("", resource, "get") for resource in ("pods/log", "services/proxy", "nodes")),
        *(
            Right("rbac.authorization.k8s.io", "roles", verb)
            for verb in ("escalate", "bind", "update", "patch")
        ),
        Right("rbac.authorization.k8s.io", "clusterroles", "create"),
        Right("finetune.dev", "finetunejobs", "update"),
        Right("finetune.dev", "finetunejobs", "create"),
        Right("ray.io", "rayjobs", "update"),
        Right("ray.io", "rayjobs", "patch"),
    ]
    assert [right for right in forbidden if may(kubectl, operator.user, right, namespace)] == []


def test_the_right_to_give_is_needed_to_give(
    operator: Installation, kubectl: Kubectl, namespace: str
) -> None:
    """A role with more than the operator has itself, tried in its name."""

    def give(verb: str) -> None:
        words = (
            "create",
            "role",
            f"try-{verb}",
            f"--verb={verb}",
            "--resource=configmaps",
            "--resource-name=record",
        )
        kubectl(*words, "--namespace", namespace, f"--as={operator.user}")

    give("patch")
    with pytest.raises(ClusterError, match="attempting to grant RBAC permissions not currently held"):
        give("update")
