"""A real Kubernetes API that knows FineTuneJobs and KubeRay's kinds, and what tests do there themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import settings
from kubernetes.aio.config import new_client_from_config
from kubernetes.client import ApiException
from kubernetes.config import new_client_from_config as new_sync_client
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ResourceNotFoundError
from pydantic import JsonValue

from devcluster.control_plane import ControlPlane
from devcluster.waiting import wait_for
from finetune_api.crd import crd
from finetune_api.manifest import API_VERSION, KIND
from finetune_operator.cluster.kubernetes_api import KubernetesApi

# A machine that is busy with other tests is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

Object = dict[str, Any]

SPEC: dict[str, JsonValue] = {
    "model_id": "pvc://finetune/models/m",
    "train_path": "pvc://finetune/data/train.jsonl",
    "storage": {"path": "pvc://finetune/runs"},
    "num_devices": 2,
    "worker_resources": {"accelerator_type:A10G": 0.001},
    "run_policy": {"prepare_first": False},
}
"""Two workers, everything on one claim, and no Job that prepares."""

API_VERSIONS = {
    KIND: API_VERSION,
    "RayJob": "ray.io/v1",
    "RayCluster": "ray.io/v1",
    "Job": "batch/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
}
"""Of kinds that are not in the core API."""

CHILDREN = ("ConfigMap", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "RayJob")
"""Kinds that the operator makes for a job that is not prepared first."""

MERGE = "application/merge-patch+json"


@dataclass(frozen=True)
class Namespace:
    """What a test does in its namespace, with the rights of whoever the client is."""

    dynamic: DynamicClient
    name: str

    def create(self, kind: str, name: str, **content: object) -> Object:
        body = {
            "apiVersion": API_VERSIONS.get(kind, "v1"),
            "kind": kind,
            "metadata": {"name": name},
            **content,
        }
        return self._object(self._of(kind).create(body=body, namespace=self.name))

    def create_job(
        self,
        name: str = "job",
        spec: Mapping[str, JsonValue] | None = None,
        labels: dict[str, str] | None = None,
    ) -> Object:
        """A FineTuneJob with the smallest spec and what is laid over it, run policy over run policy."""
        changes = dict(spec or {})
        asked = changes.pop("run_policy", {})
        assert isinstance(asked, dict)
        policy = {**cast("dict[str, JsonValue]", SPEC["run_policy"]), **asked}
        return self.create(
            KIND,
            name,
            metadata={"name": name, "labels": labels or {}},
            spec={**SPEC, **changes, "run_policy": policy},
        )

    def get(self, kind: str, name: str) -> Object:
        return self._object(self._of(kind).get(name=name, namespace=self.name))

    def all(self, kind: str, selector: str | None = None) -> list[Object]:
        """By name."""
        found = self._of(kind).get(namespace=self.name, label_selector=selector).to_dict()["items"]
        return sorted((dict(each) for each in found), key=lambda each: str(each["metadata"]["name"]))

    def patch(self, kind: str, name: str, **content: object) -> Object:
        return self._object(
            self._of(kind).patch(name=name, namespace=self.name, body=content, content_type=MERGE)
        )

    def patch_status(self, kind: str, name: str, **status: object) -> Object:
        resource = self._of(kind).status
        return self._object(
            resource.patch(name=name, namespace=self.name, body={"status": status}, content_type=MERGE)
        )

    def delete(self, kind: str, name: str) -> None:
        self._of(kind).delete(name=name, namespace=self.name)

    def exists(self, kind: str, name: str) -> bool:
        try:
            self.get(kind, name)
        except ApiException as error:
            if error.status != 404:
                raise
            return False
        return True

    def children(self, uid: str) -> list[Object]:
        """Everything that the operator made for a job."""
        kinds = (*CHILDREN, "Job")
        return [each for kind in kinds for each in self.all(kind, f"finetune.dev/job-uid={uid}")]

    def _of(self, kind: str) -> Any:  # noqa: ANN401 - the dynamic client's own types say no more
        return self.dynamic.resources.get(api_version=API_VERSIONS.get(kind, "v1"), kind=kind)

    @staticmethod
    def _object(answer: Any) -> Object:  # noqa: ANN401
        return dict(answer.to_dict())


@pytest.fixture(scope="session")
def served(api_server: ControlPlane, kuberay_definitions: Path) -> ControlPlane:
    """The API server, with the definitions of FineTuneJobs and KubeRay's kinds; KubeRay does not run."""
    definitions = [
        crd(),
        *(
            yaml.safe_load((kuberay_definitions / f"ray.io_{plural}.yaml").read_text())
            for plural in ("rayjobs", "rayclusters")
        ),
    ]
    with new_sync_client(str(api_server.kubeconfig)) as client:
        resource = DynamicClient(client).resources.get(
            api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition"
        )
        for definition in definitions:
            resource.server_side_apply(body=definition, field_manager="test", force_conflicts=True)

    def is_served(path: str) -> bool:
        try:
            return bool(api_server.get(path))
        except OSError:
            return False

    for path in (
        f"/apis/{API_VERSION}/finetunejobs",
        "/apis/ray.io/v1/rayjobs",
        "/apis/ray.io/v1/rayclusters",
    ):
        wait_for(path, partial(is_served, path), seconds=30, every=0.05)
    return api_server


@pytest.fixture(scope="session")
def dynamic(served: ControlPlane) -> Iterator[DynamicClient]:
    with new_sync_client(str(served.kubeconfig)) as client:
        dynamic = DynamicClient(client)

        def found() -> bool:
            with suppress(ResourceNotFoundError):
                return bool(dynamic.resources.get(api_version="ray.io/v1", kind="RayJob"))
            return False

        # What has just been defined is not found at once.
        wait_for("KubeRay's definitions to be found", found, seconds=30)
        yield dynamic


@pytest.fixture
def inside(dynamic: DynamicClient, namespace: str) -> Namespace:
    """The test's namespace."""
    return Namespace(dynamic, namespace)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def api(served: ControlPlane, runner: asyncio.Runner) -> Iterator[KubernetesApi]:
    """The operator's client, with an administrator's rights."""
    api = KubernetesApi(runner.run(new_client_from_config(config_file=str(served.kubeconfig))))
    yield api
    runner.run(api.close())
