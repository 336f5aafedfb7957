"""The API calls that the operator makes, and no others: what it may do in a cluster can be read here."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import cast
from urllib.parse import quote, urlencode
from urllib.request import getproxies_environment

from aiohttp import ClientError
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from pydantic import JsonValue

from finetune_api.crd import PLURAL
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import API_VERSION, GROUP, KIND, VERSION
from finetune_operator.decide.events import Event
from finetune_operator.names import JOB_UID
from finetune_operator.observed import KubernetesObject, ObjectMeta
from finetune_operator.telemetry.metrics import API_CALLS

COMPONENT = "finetune-operator"
SECONDS = 20
"""The longest time that a call may take."""

_PLURALS = {
    KIND: (f"/apis/{GROUP}/{VERSION}", PLURAL),
    "RayJob": ("/apis/ray.io/v1", "rayjobs"),
    "RayCluster": ("/apis/ray.io/v1", "rayclusters"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Job": ("/apis/batch/v1", "jobs"),
    "Pod": ("/api/v1", "pods"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "Event": ("/api/v1", "events"),
    "Role": ("/apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
}

_JSON = "application/json"
_METADATA = f"{_JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = f"{_JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
PAGE = 500
"""Objects in one answer, where there are many."""

WATCHED = (KIND, "RayJob", "RayCluster", "Pod", "ConfigMap")
_NO_KUBERAY = (
    "this cluster does not serve ray.io/v1 RayJobs and RayClusters: install KubeRay 1.6 or newer, with its"
    " resource definitions"
)
_ABSENT = {
    KIND: (
        f"this cluster does not serve {GROUP}/{VERSION} {KIND}s: install the operator's resource definition,"
        " crds/finetunejobs.yaml"
    ),
    "RayJob": _NO_KUBERAY,
    "RayCluster": _NO_KUBERAY,
}
_ALLOW = (
    "bind the roles of the operator's chart to its service account (rbac.create), and let watch_namespaces"
    " name the namespaces they are for"
)


@dataclass(frozen=True)
class Listed:
    """Objects of one kind, all that there were at a version; of a page, all of that page."""

    objects: list[KubernetesObject]
    version: str


class ApiRefusedError(Exception):
    """The API server refused a call; `status` is HTTP's, `reason` Kubernetes' own word."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


class ApiUnreachableError(ConnectionError):
    """Nothing, or nothing that makes sense, came from the API server; the message has its address."""

    hint = (
        "if it is up, something is in the way: the NetworkPolicy of the operator's chart lets out the ports"
        " of networkPolicy.apiServerPorts, 443 and 6443 unless said otherwise, and the server's own must be"
        " among them, which `kubectl get endpointslices kubernetes --namespace default` shows"
    )
    """What to look at when it is so from the start."""


class KubernetesApi:
    """A client of the cluster.

    All methods raise ApiRefusedError for what the API server refuses, and ApiUnreachableError, an OSError,
    where it does not answer.
    """

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @classmethod
    async def connect(cls) -> KubernetesApi:
        """A client with the pod's service account, or else the kubeconfig in use, as kopf has it.

        Raises FineTuneError (AccessDenied) where there is neither.
        """
        try:
            config.load_incluster_config()
        except config.ConfigException:
            try:
                await config.load_kube_config()
            except config.ConfigException as error:
                problem = (
                    f"there is no cluster to connect to ({error}): run in a pod that has a service account's"
                    " token, or set KUBECONFIG"
                )
                raise FineTuneError(FailureClass.ACCESS_DENIED, problem) from error
        configuration = Configuration.get_default_copy()
        # aiohttp would look for a proxy in the environment before every call, in another thread.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies_environment())}
        client = ApiClient(configuration)
        client.user_agent = COMPONENT
        return cls(client)

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()

    async def check(self, namespaces: Sequence[str]) -> dict[str, list[str]]:
        """Checks that the cluster serves what the operator watches, and lets it.

        Without `namespaces` that is checked for all. Returns those that it may not watch, or that are gone,
        with every reason. Raises FineTuneError (AccessDenied) where there is nothing to watch at all, with
        all that is missing, and what to do about each.
        """
        asked = list(namespaces) or [""]
        absent: list[str] = []
        for kind in WATCHED:
            try:
                await self.refusals(asked[0], (kind,))
            except ApiRefusedError as refusal:
                if refusal.status != HTTPStatus.NOT_FOUND:
                    raise
                absent.append(_ABSENT[kind])
        if absent:
            raise FineTuneError(FailureClass.ACCESS_DENIED, *dict.fromkeys(absent))
        found = {namespace: await self.refusals(namespace, WATCHED) for namespace in asked}
        refused = {namespace: refusals for namespace, refusals in found.items() if refusals}
        if len(refused) == len(found):
            problems = [f"{refusal}; {_ALLOW}" for refusals in refused.values() for refusal in refusals]
            raise FineTuneError(FailureClass.ACCESS_DENIED, *problems)
        return refused

    async def refusals(self, namespace: str, kinds: Sequence[str]) -> list[str]:
        """Why the operator may not watch objects of these kinds in a namespace; empty where it may."""
        found: list[str] = []
        for kind in kinds:
            try:
                await self._call("list", kind, namespace, query={"limit": "1"})
            except ApiRefusedError as refusal:
                if refusal.status != HTTPStatus.FORBIDDEN:
                    raise
                found.append(refusal.message)
        return found

    @property
    def _address(self) -> str:
        return str(self._client.configuration.host)

    async def get(self, kind: str, namespace: str, name: str) -> KubernetesObject | None:
        """An object; None when there is none."""
        try:
            return await self._call("get", kind, namespace, name)
        except ApiRefusedError as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def of_jobs(self, kind: str, namespace: str, uids: Sequence[str]) -> Listed:
        """All objects of a kind that belong to the jobs with these UIDs."""
        selector = f"{JOB_UID}={uids[0]}" if len(uids) == 1 else f"{JOB_UID} in ({','.join(uids)})"
        return _listed(await self._call("list", kind, namespace, query={"labelSelector": selector}))

    async def pages(self, kind: str, namespace: str, *, metadata_only: bool = False) -> AsyncIterator[Listed]:
        """All objects of a kind that the operator watches, a page at a time, as of the first one's version.

        Without a namespace it is those of all. With `metadata_only` the objects have nothing but metadata.
        The next page is asked for while one is looked at.
        """
        query = {"limit": str(PAGE), **({} if kind == KIND else {"labelSelector": JOB_UID})}
        call = partial(self._call, "list", kind, namespace, accept=_METADATA_LIST if metadata_only else _JSON)
        coming: asyncio.Task[KubernetesObject] | None = asyncio.create_task(call(query=query))
        try:
            while coming is not None:
                page = await coming
                more = cast("dict[str, str]", page["metadata"]).get("continue")
                coming = asyncio.create_task(call(query={**query, "continue": more})) if more else None
                yield _listed(page)
        finally:
            if coming is not None:
                coming.cancel()

    async def create(self, manifest: KubernetesObject) -> KubernetesObject | None:
        """Creates an object; None when there is one of its name, which stays as it is.

        Returns it as it was asked for, with the metadata that it has then.
        """
        kind, metadata = str(manifest["kind"]), cast("dict[str, str]", manifest["metadata"])
        try:
            made = await self._call("create", kind, metadata["namespace"], body=manifest, accept=_METADATA)
            return {**manifest, "metadata": made["metadata"]}
        except ApiRefusedError as refusal:
            if refusal.reason != "AlreadyExists":  # a quota that is being counted is a conflict as well
                raise
            return None

    async def replace_status(self, job: ObjectMeta, status: JsonValue) -> str:
        """Writes the status of a FineTuneJob; returns the version that the job has then.

        It is refused with status 409 when somebody has written the job since its `job.resource_version`.
        """
        metadata: dict[str, JsonValue] = {
            "name": job.name,
            "namespace": job.namespace,
            "uid": job.uid,
            "resourceVersion": job.resource_version,
        }
        body: KubernetesObject = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": metadata,
            "status": status,
        }
        written = await self._call(
            "update", KIND, job.namespace, job.name, subresource="status", body=body, accept=_METADATA
        )
        return cast("dict[str, str]", written["metadata"])["resourceVersion"]

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Deletes an object and what it owns; does nothing when it is gone, or has another UID."""
        options: KubernetesObject = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._call("delete", kind, namespace, name, body=options)
        except ApiRefusedError as refusal:
            if refusal.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise

    async def post_event(self, job: ObjectMeta, event: Event, at: datetime) -> None:
        """Posts an event about a FineTuneJob that happened at a time, in UTC."""
        happened = at.strftime("%Y-%m-%dT%H:%M:%SZ")
        reference: KubernetesObject = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": job.name,
            "namespace": job.namespace,
            "uid": job.uid,
            "resourceVersion": job.resource_version,
        }
        posted: KubernetesObject = {
            "apiVersion": "v1",
            "kind": "Event",
            # As client-go names them: kubectl shows those of one second in the order of their names.
            "metadata": {"name": f"{job.name[:200]}.{time.time_ns():016x}", "namespace": job.namespace},
            "involvedObject": reference,
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "source": {"component": COMPONENT},
            "firstTimestamp": happened,
            "lastTimestamp": happened,
            "count": 1,
            "reportingComponent": COMPONENT,
        }
        await self._call("create", "Event", job.namespace, body=posted)

    async def _call(
        self,
        verb: str,
        kind: str,
        namespace: str,
        name: str = "",
        *,
        subresource: str = "",
        query: Mapping[str, str] | None = None,
        body: KubernetesObject | None = None,
        accept: str = _JSON,
    ) -> KubernetesObject:
        api, plural = _PLURALS[kind]
        scope = ["namespaces", quote(namespace)] if namespace else []
        parts = [api, *scope, plural, quote(name), subresource]
        path = "/".join(part for part in parts if part) + (f"?{urlencode(query)}" if query else "")
        method = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "delete": "DELETE"}[verb]
        return await self._request(method, path, verb, plural, body, accept)

    async def _request(
        self,
        method: str,
        path: str,
        verb: str,
        resource: str,
        body: KubernetesObject | None = None,
        accept: str = _JSON,
    ) -> KubernetesObject:
        headers = {"Accept": accept, "Content-Type": _JSON}
        # The body is JSON already, which the client would go through for models of its own.
        _, url, headers, _, _ = await self._client.param_serialize(
            method, path, header_params=headers, auth_settings=["BearerToken"]
        )
        try:
            answer = await self._client.call_api(method, url, headers, body, _request_timeout=SECONDS)
            text = await answer.read()
        except TimeoutError as error:
            raise ApiUnreachableError(
                f"the API server at {self._address} has not answered for {SECONDS} s"
            ) from error
        except (ClientError, OSError) as error:
            raise ApiUnreachableError(
                f"the API server at {self._address} does not answer: {str(error) or repr(error)}"
            ) from error
        API_CALLS.labels(verb=verb, resource=resource, code=str(answer.status)).inc()
        document = _object(text)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            message, reason = document.get("message") or answer.reason, document.get("reason") or ""
            raise ApiRefusedError(answer.status, str(message), str(reason))
        if not document:
            raise ApiUnreachableError(
                f"the API server at {self._address} answered {method} {path} with something else than an"
                " object"
            )
        return document


def _listed(page: KubernetesObject) -> Listed:
    version = cast("dict[str, str]", page["metadata"]).get("resourceVersion", "")
    return Listed(cast("list[KubernetesObject]", page.get("items") or []), version)


def _object(text: bytes) -> KubernetesObject:
    """The object in an answer; an empty one when there is none, as in a proxy's page."""
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
