"""A real API server takes what is made for a job, and so does a policy that lets nobody choose a user."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
from kubernetes.client import ApiException
from kubernetes.dynamic import DynamicClient
from pydantic import JsonValue
from tests.admission import CHOSEN, NOBODY_CHOOSES
from tests.operator.cases import Json
from tests.operator.children.test_objects import made, made_to_prepare, templates
from tests.operator.children.test_pods import EVERYTHING, RDMA
from tests.operator.sources import at, source

from devcluster.waiting import wait_for
from finetune_operator.children.pods import PodSource

ANY_USER: Json = {"pod_security_context": {}}
SHAPED: Json = {
    **EVERYTHING,
    "cluster": {
        **cast("Json", EVERYTHING["cluster"]),
        "runtime_class_name": "nvidia",
        "scheduler_name": "volcano",
        "topology_spread_constraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "head": {"node_selector": {"on": "demand"}, "tolerations": [], "runtime_class_name": "runc"},
        "worker": {
            "node_selector": {"spot": "yes"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "resource_claims": [{"name": "nic", "resourceClaimTemplateName": "nics"}],
        },
    },
}
CLAIMED: Json = {
    "accelerators": {"A10G": {"resource_claim_template": "one-a10g", "cpu": 3, "memory": "11Gi"}},
    "image_pull_secrets": [{"name": "registry"}],
}


class Offered:
    """Offers objects to the server, which says whether it would take them; unknown fields are refused."""

    def __init__(self, dynamic: DynamicClient, namespace: str) -> None:
        self._dynamic = dynamic
        self._namespace = namespace

    def offer(self, body: Json) -> None:
        """Raises ApiException with the server's objections."""
        resource = self._dynamic.resources.get(api_version=body["apiVersion"], kind=body["kind"])
        metadata = {**cast("Json", body["metadata"]), "namespace": self._namespace}
        resource.create(
            body={**body, "metadata": metadata},
            namespace=self._namespace,
            query_params=[("fieldValidation", "Strict"), ("dryRun", "All")],
        )

    def offer_pod(self, template: JsonValue) -> None:
        """Offers the pod that a controller would make of a template."""
        body = cast("Json", template)
        # Their admission looks for an account and classes that are not there; these are not what is tested.
        left_out = ("serviceAccountName", "priorityClassName", "runtimeClassName")
        spec = {key: value for key, value in cast("Json", body["spec"]).items() if key not in left_out}
        pod: Json = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        self.offer(pod)


@pytest.fixture
def server(dynamic: DynamicClient, namespace: str) -> Offered:
    accounts = dynamic.resources.get(api_version="v1", kind="ServiceAccount")
    wait_for(
        "the namespace's account",
        lambda: any(each.metadata.name == "default" for each in accounts.get(namespace=namespace).items),
        seconds=30,
        every=0.05,
    )
    return Offered(dynamic, namespace)


MADE = {
    "smallest": source(),
    "everything": source(SHAPED),
    "claims": source(SHAPED, CLAIMED),
    "a profile's overlay": source(EVERYTHING, RDMA),
    "any user": source(EVERYTHING, ANY_USER),
}


@pytest.mark.parametrize("made_from", MADE.values(), ids=MADE)
def test_kuberays_definition_has_every_field_that_is_set(server: Offered, made_from: PodSource) -> None:
    server.offer(made(made_from)["RayJob"])


@pytest.mark.parametrize("made_from", MADE.values(), ids=MADE)
def test_every_pod_is_one_that_the_server_takes(server: Offered, made_from: PodSource) -> None:
    for template in templates(made(made_from)["RayJob"]):
        server.offer_pod(template)


@pytest.mark.parametrize("made_from", MADE.values(), ids=MADE)
def test_what_prepares_is_a_job_that_the_server_takes(server: Offered, made_from: PodSource) -> None:
    job = made_to_prepare(made_from)["Job"]
    server.offer(job)
    server.offer_pod(at(job, "spec.template"))


@pytest.mark.usefixtures("restricted")
@pytest.mark.parametrize("made_from", MADE.values(), ids=MADE)
def test_what_prepares_is_let_in_where_restricted_is_enforced(server: Offered, made_from: PodSource) -> None:
    server.offer_pod(at(made_to_prepare(made_from)["Job"], "spec.template"))


@pytest.fixture
def restricted(dynamic: DynamicClient, namespace: str, server: Offered) -> None:
    """The namespace enforces the Pod Security level, which an API server that is here checks."""
    namespaces = dynamic.resources.get(api_version="v1", kind="Namespace")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespaces.patch(
        name=namespace,
        body={"metadata": {"labels": labels}},
        content_type="application/merge-patch+json",
    )
    careless: Json = {"metadata": {}, "spec": {"containers": [{"name": "a", "image": "a"}]}}

    def refuses() -> bool:
        try:
            server.offer_pod(careless)
        except ApiException as error:
            return "violates PodSecurity" in str(error.body)
        return False

    wait_for("the level to be enforced", refuses, seconds=30, every=0.1)


@pytest.fixture
def policed(dynamic: DynamicClient, server: Offered) -> Iterator[Offered]:
    """The server, with a policy that refuses pods which choose their user."""
    made_now = []
    for body in NOBODY_CHOOSES:
        resource = dynamic.resources.get(api_version=body["apiVersion"], kind=body["kind"])
        resource.server_side_apply(body=body, field_manager="test")
        made_now.append((resource, cast("Json", body["metadata"])["name"]))

    def refuses() -> bool:
        try:
            server.offer_pod(templates(made(source())["RayJob"])[0])
        except ApiException as error:
            return CHOSEN in str(error.body)
        return False

    wait_for("the policy to hold", refuses, seconds=60, every=0.1)
    yield server
    for resource, name in made_now:
        resource.delete(name=name)


def test_where_the_cluster_assigns_users_no_pod_of_a_job_chooses_one(policed: Offered) -> None:
    for template in templates(made(source())["RayJob"]):
        with pytest.raises(ApiException, match=CHOSEN):
            policed.offer_pod(template)
    for made_from in (source(settings=ANY_USER), source(SHAPED, {**ANY_USER, **CLAIMED})):
        for template in templates(made(made_from)["RayJob"]):
            policed.offer_pod(template)
