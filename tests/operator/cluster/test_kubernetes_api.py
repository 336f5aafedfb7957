"""The operator's calls, on a real API server; and what it makes of answers that none should give."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client import Configuration as ClientConfiguration
from kubernetes.aio.config import new_client_from_config
from kubernetes.client import AuthenticationV1TokenRequest, CoreV1Api, V1TokenRequestSpec
from prometheus_client import REGISTRY
from tests.operator.conftest import Namespace, Object

from devcluster.control_plane import ControlPlane, free_address
from devcluster.waiting import wait_for
from finetune_api.crd import UNSEEN
from finetune_api.failure import FineTuneError
from finetune_api.manifest import API_VERSION, KIND
from finetune_operator.cluster import kubernetes_api
from finetune_operator.cluster.kubernetes_api import (
    ApiRefusedError,
    ApiUnreachableError,
    KubernetesApi,
    Listed,
)
from finetune_operator.decide.events import LONGEST_EVENT, Event
from finetune_operator.names import JOB_UID
from finetune_operator.observed import KubernetesObject, ObjectMeta

Run = Callable[..., Any]

AT = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture
def run(runner: asyncio.Runner) -> Run:
    return runner.run


def config_map(
    namespace: str, name: str, data: dict[str, str] | None = None, **metadata: object
) -> KubernetesObject:
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "data": data or {"key": "value"},
    }
    return cast("KubernetesObject", body)


def metadata_of(body: Object) -> ObjectMeta:
    return ObjectMeta.model_validate(body["metadata"])


def test_an_object_is_got_as_it_is_and_one_that_is_not_there_is_none(
    api: KubernetesApi, run: Run, inside: Namespace
) -> None:
    job = inside.create_job()

    assert run(api.get(KIND, inside.name, "job")) == job
    assert run(api.get(KIND, inside.name, "another")) is None
    assert run(api.get(KIND, "no-such-namespace", "job")) is None


def test_what_is_made_twice_is_made_once(api: KubernetesApi, run: Run, inside: Namespace) -> None:
    made = run(api.create(config_map(inside.name, "made")))
    assert run(api.create(config_map(inside.name, "made", {"key": "another"}))) is None

    assert inside.get("ConfigMap", "made") == made
    assert made["data"] == {"key": "value"}


def test_what_the_server_refuses_to_make_is_refused_in_its_words(
    api: KubernetesApi, run: Run, inside: Namespace
) -> None:
    with pytest.raises(ApiRefusedError) as invalid:
        run(api.create(config_map(inside.name, "Not_A_Name")))
    with pytest.raises(ApiRefusedError) as nowhere:
        run(api.create(config_map("no-such-namespace", "made")))

    assert invalid.value.status == 422
    assert 'ConfigMap "Not_A_Name" is invalid: metadata.name' in invalid.value.message
    assert str(nowhere.value) == '404: namespaces "no-such-namespace" not found'


def test_the_status_is_written_and_nothing_else(api: KubernetesApi, run: Run, inside: Namespace) -> None:
    job = inside.create_job()

    written = run(api.replace_status(metadata_of(job), {"phase": "Running"}))

    stored = inside.get(KIND, "job")
    assert stored["metadata"]["resourceVersion"] == written
    assert stored["status"] == {"phase": "Running"}
    assert stored["spec"] == job["spec"]
    assert stored["metadata"]["generation"] == 1
    assert int(stored["metadata"]["resourceVersion"]) > int(job["metadata"]["resourceVersion"])


def test_a_status_is_not_written_over_what_somebody_else_wrote_meanwhile(
    api: KubernetesApi, run: Run, inside: Namespace
) -> None:
    job = inside.create_job()
    inside.patch(KIND, "job", metadata={"labels": {"team": "ours"}})

    with pytest.raises(ApiRefusedError) as refused:
        run(api.replace_status(metadata_of(job), {"phase": "Running"}))

    assert refused.value.status == 409
    assert "the object has been modified" in refused.value.message
    assert inside.get(KIND, "job")["status"] == UNSEEN


def test_a_status_that_is_the_same_again_is_no_new_version(
    api: KubernetesApi, run: Run, inside: Namespace
) -> None:
    metadata = metadata_of(inside.create_job())
    written = run(api.replace_status(metadata, {"phase": "Running"}))

    again = metadata.model_copy(update={"resource_version": written})
    assert run(api.replace_status(again, {"phase": "Running"})) == written


def test_the_status_of_a_job_that_is_gone_is_refused(api: KubernetesApi, run: Run, inside: Namespace) -> None:
    job = inside.create_job()
    inside.delete(KIND, "job")

    with pytest.raises(ApiRefusedError) as refused:
        run(api.replace_status(metadata_of(job), {"phase": "Running"}))

    assert refused.value.status == 404


def test_what_is_deleted_goes_with_what_belongs_to_it(
    api: KubernetesApi, run: Run, inside: Namespace
) -> None:
    job = inside.create_job()
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": "job", "uid": job["metadata"]["uid"]}
    run(api.create(config_map(inside.name, "owned", ownerReferences=[owner])))

    run(api.delete(KIND, inside.name, "job", job["metadata"]["uid"]))
    run(api.delete(KIND, inside.name, "job", job["metadata"]["uid"]))

    wait_for("what belonged to the job to go", lambda: not inside.exists("ConfigMap", "owned"), seconds=90)
    assert not inside.exists(KIND, "job")


def test_another_object_of_the_name_is_not_deleted(api: KubernetesApi, run: Run, inside: Namespace) -> None:
    old = inside.create_job()
    inside.delete(KIND, "job")
    new = inside.create_job()

    run(api.delete(KIND, inside.name, "job", old["metadata"]["uid"]))

    stored = inside.get(KIND, "job")
    assert stored["metadata"]["uid"] == new["metadata"]["uid"]
    assert "deletionTimestamp" not in stored["metadata"]


def test_the_objects_of_a_job_are_found_by_its_uid(api: KubernetesApi, run: Run, inside: Namespace) -> None:
    for name, labels in (
        ("a", {JOB_UID: "u-1"}),
        ("b", {JOB_UID: "u-1", "more": "labels"}),
        ("c", {JOB_UID: "u-2"}),
        ("d", {}),
    ):
        inside.create("ConfigMap", name, metadata={"name": name, "labels": labels})

    def found(kind: str, *uids: str) -> list[str]:
        listed = run(api.of_jobs(kind, inside.name, uids))
        assert int(listed.version) > 0
        return [each["metadata"]["name"] for each in listed.objects]

    assert found("ConfigMap", "u-1") == ["a", "b"]
    assert found("ConfigMap", "u-2", "u-1") == ["a", "b", "c"]
    assert found("ConfigMap", "u-3") == []
    assert found("RayCluster", "u-1") == []


def test_pages_have_all_that_is_watched_as_of_one_version(
    api: KubernetesApi, run: Run, inside: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_api, "PAGE", 2)
    for name in ("a", "b", "c"):
        labels = {JOB_UID: f"u-{name}"}
        inside.create("ConfigMap", name, metadata={"name": name, "labels": labels}, data={"key": name})
    inside.create("ConfigMap", "nobodys")

    async def pages(**how: bool) -> list[Listed]:
        return [page async for page in api.pages("ConfigMap", inside.name, **how)]

    first, second = run(pages())
    assert [each["metadata"]["name"] for each in first.objects + second.objects] == ["a", "b", "c"]
    assert first.objects[0]["data"] == {"key": "a"}
    assert first.version == second.version

    [only, last] = run(pages(metadata_only=True))
    assert [each["metadata"] for each in only.objects + last.objects] == [
        each["metadata"] for each in first.objects + second.objects
    ]
    assert "data" not in only.objects[0]


def test_the_next_page_is_asked_for_while_one_is_looked_at(
    api: KubernetesApi, run: Run, inside: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_api, "PAGE", 1)
    for name in ("a", "b"):
        inside.create("ConfigMap", name, metadata={"name": name, "labels": {JOB_UID: "u"}})

    def answers() -> float:
        labels = {"verb": "list", "resource": "configmaps", "code": "200"}
        return REGISTRY.get_sample_value("finetune_api_calls_total", labels) or 0.0

    async def look() -> None:
        pages = api.pages("ConfigMap", inside.name)
        first, before = await anext(pages), answers()
        while answers() == before:
            await asyncio.sleep(0.01)
        second = await anext(pages)
        names = [metadata_of(cast("Object", each)).name for each in first.objects + second.objects]
        assert names == ["a", "b"]

    run(asyncio.wait_for(look(), 10))


def test_an_event_is_seen_with_its_job(api: KubernetesApi, run: Run, inside: Namespace) -> None:
    job = inside.create_job()

    run(api.post_event(metadata_of(job), Event("Warning", "Retrying", "attempt 1 failed"), AT))
    run(api.post_event(metadata_of(job), Event("Normal", "Running", "x" * LONGEST_EVENT), AT))

    core = CoreV1Api(inside.dynamic.client)
    # What `kubectl describe` asks for.
    about = f"involvedObject.kind={KIND},involvedObject.name=job,involvedObject.uid={job['metadata']['uid']}"
    events = sorted(
        core.list_namespaced_event(inside.name, field_selector=about).items,
        key=lambda event: str(event.reason),
    )
    assert [(event.type, event.reason, event.message) for event in events] == [
        ("Warning", "Retrying", "attempt 1 failed"),
        ("Normal", "Running", "x" * LONGEST_EVENT),
    ]
    first = events[0]
    assert first.source is not None
    assert first.source.component == "finetune-operator"
    assert (first.count, first.involved_object.api_version) == (1, API_VERSION)
    assert (first.first_timestamp, first.last_timestamp) == (AT, AT)


@pytest.mark.parametrize("name", ["a", f"{'a' * 199}-{'b' * 53}", f"{'a' * 199}.{'b' * 53}", "1.2.3"])
def test_a_job_of_any_name_has_events(api: KubernetesApi, run: Run, inside: Namespace, name: str) -> None:
    job = inside.create_job(name)

    run(api.post_event(metadata_of(job), Event("Normal", "Running", "on its way"), AT))

    assert [event["involvedObject"]["name"] for event in inside.all("Event")] == [name]


def test_a_cluster_with_kuberay_and_our_definition_is_one(
    api: KubernetesApi, run: Run, inside: Namespace
) -> None:
    run(api.check([]))
    run(api.check([inside.name]))


def test_a_cluster_without_kuberay_is_an_error_that_says_what_to_install(
    without_kuberay: ControlPlane, run: Run
) -> None:
    api = KubernetesApi(run(new_client_from_config(config_file=str(without_kuberay.kubeconfig))))

    with pytest.raises(FineTuneError) as missing:
        run(api.check([]))

    ours, kuberays = missing.value.problems
    assert ours.startswith(
        "this cluster does not serve finetune.dev/v1alpha1 FineTuneJobs: install the operator's resource"
        " definition"
    )
    assert kuberays.startswith(
        "this cluster does not serve ray.io/v1 RayJobs and RayClusters: install KubeRay 1.6 or newer"
    )
    with pytest.raises(ApiRefusedError) as refused:
        run(
            api.create(
                {
                    "apiVersion": "ray.io/v1",
                    "kind": "RayJob",
                    "metadata": {"name": "a", "namespace": "default"},
                }
            )
        )
    assert refused.value.status == 404
    run(api.close())


def test_a_service_account_is_known_by_its_token_and_may_only_do_what_it_is_allowed(
    served: ControlPlane, run: Run, inside: Namespace, tmp_path: Path
) -> None:
    inside.create("ServiceAccount", "operator")
    request = AuthenticationV1TokenRequest(
        spec=V1TokenRequestSpec(audiences=["https://kubernetes.default.svc"])
    )
    asked = (
        CoreV1Api(inside.dynamic.client)
        .create_namespaced_service_account_token("operator", inside.name, request)
        .status
    )
    assert asked is not None
    kubeconfig = yaml.safe_load(served.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {"token": asked.token}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    api = KubernetesApi(run(new_client_from_config(config_file=str(tmp_path / "kubeconfig"))))

    with pytest.raises(FineTuneError) as missing:
        run(api.check([inside.name]))
    assert [problem.partition(" is forbidden")[0] for problem in missing.value.problems] == [
        "finetunejobs.finetune.dev",
        "rayjobs.ray.io",
        "rayclusters.ray.io",
        "pods",
        "configmaps",
    ]
    assert all("bind the roles of the operator's chart" in problem for problem in missing.value.problems)
    with pytest.raises(ApiRefusedError) as refused:
        run(api.get(KIND, inside.name, "job"))

    assert refused.value.status == 403
    assert (
        f'User "system:serviceaccount:{inside.name}:operator" cannot get resource "finetunejobs"'
        in refused.value.message
    )
    run(api.close())


def test_calls_are_counted_by_how_they_ended(api: KubernetesApi, run: Run, inside: Namespace) -> None:
    def counted(**labels: str) -> float:
        return REGISTRY.get_sample_value("finetune_api_calls_total", labels) or 0.0

    found = {"verb": "get", "resource": "configmaps", "code": "200"}
    missing = {"verb": "get", "resource": "configmaps", "code": "404"}
    before = counted(**found), counted(**missing)
    inside.create("ConfigMap", "a")

    run(api.get("ConfigMap", inside.name, "a"))
    run(api.get("ConfigMap", inside.name, "b"))

    assert (counted(**found) - before[0], counted(**missing) - before[1]) == (1, 1)


@asynccontextmanager
async def answering(answer: bytes, *, hang: bool = False) -> AsyncIterator[KubernetesApi]:
    """A client of a server that gives one answer to everything, and hangs up, or does not."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if hang:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    api = KubernetesApi(ApiClient(ClientConfiguration(host=host)))
    try:
        yield api
    finally:
        await api.close()
        server.close()


def http(status: str, body: str, *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n{body}".encode()


async def get(answer: bytes, *, hang: bool = False) -> KubernetesObject | None:
    async with answering(answer, hang=hang) as api:
        return await api.get("ConfigMap", "default", "a")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        http("200 OK", '{"kind":', length=100),
        b"no HTTP at all\r\n\r\n",
        http("200 OK", '{"kind":'),
    ],
    ids=["hangs up", "breaks off in the head", "breaks off in the body", "no HTTP", "no JSON"],
)
def test_a_server_that_breaks_off_could_not_be_reached(run: Run, answer: bytes) -> None:
    with pytest.raises(ApiUnreachableError, match=r"^the API server at http://127\.0\.0\.1:\d+ .*\w"):
        run(get(answer))


def test_a_server_that_is_not_there_could_not_be_reached(run: Run) -> None:
    address = f"http://127.0.0.1:{free_address().port}"
    api = KubernetesApi(ApiClient(ClientConfiguration(host=address)))

    with pytest.raises(ApiUnreachableError, match=rf"^the API server at {address} does not answer: Cannot"):
        run(api.get("ConfigMap", "default", "a"))
    run(api.close())


@pytest.mark.parametrize(
    "answer", [b"", http("200 OK", "{", length=100)], ids=["silent", "stops in the middle"]
)
def test_a_server_that_does_not_go_on_could_not_be_reached(
    run: Run, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(kubernetes_api, "SECONDS", 0.05)

    with pytest.raises(
        ApiUnreachableError, match=r"^the API server at http://127\.0\.0\.1:\d+ has not answered for 0\.05 s$"
    ):
        run(get(answer, hang=True))


def test_a_server_whose_certificate_is_not_trusted_could_not_be_reached(
    run: Run, served: ControlPlane
) -> None:
    host = re.findall(r"https://127\.0\.0\.1:\d+", served.kubeconfig.read_text())[0]
    api = KubernetesApi(ApiClient(ClientConfiguration(host=host)))

    with pytest.raises(ApiUnreachableError, match=rf"^the API server at {host} .*CERTIFICATE_VERIFY_FAILED"):
        run(api.get("ConfigMap", "default", "a"))
    run(api.close())


def test_a_server_whose_name_nobody_knows_could_not_be_reached(run: Run) -> None:
    api = KubernetesApi(ApiClient(ClientConfiguration(host="https://kubernetes.invalid:6443")))

    with pytest.raises(
        ApiUnreachableError, match=r"^the API server at https://kubernetes\.invalid:6443 does"
    ):
        run(api.get("ConfigMap", "default", "a"))
    run(api.close())


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (http("503 Service Unavailable", "upstream is down"), "503: Service Unavailable"),
        (http("429 Too Many Requests", '{"kind": "Status", "message": "slow down"}'), "429: slow down"),
        (http("500 Internal Server Error", ""), "500: Internal Server Error"),
        (http("502 Bad Gateway", "{a proxy's page"), "502: Bad Gateway"),
    ],
)
def test_an_error_is_refused_in_the_words_of_whoever_answered(run: Run, answer: bytes, told: str) -> None:
    with pytest.raises(ApiRefusedError) as refused:
        run(get(answer))

    assert str(refused.value) == told


@pytest.mark.parametrize("reason", ["AlreadyExists", "Conflict"])
def test_a_quota_that_is_being_counted_does_not_pass_for_an_object_that_is_there(
    run: Run, reason: str
) -> None:
    """Both are 409; of the second one clients are to try again."""
    message = "Operation cannot be fulfilled on resourcequotas: the object has been modified"
    body = f'{{"kind": "Status", "reason": "{reason}", "message": "{message}", "code": 409}}'

    async def make() -> KubernetesObject | None:
        async with answering(http("409 Conflict", body)) as api:
            return await api.create(config_map("default", "a"))

    if reason == "AlreadyExists":
        assert run(make()) is None
    else:
        with pytest.raises(ApiRefusedError, match="409: Operation cannot be fulfilled on resourcequotas"):
            run(make())
