from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml
from kubernetes.client import (
    ApiClient,
    ApiException,
    CoreV1Api,
    V1ConfigMap,
    V1ObjectMeta,
    V1OwnerReference,
    V1ServiceAccount,
)
from kubernetes.config import new_client_from_config
from kubernetes.dynamic import DynamicClient

from devcluster.control_plane import ControlPlane, free_address
from devcluster.failure import ClusterError
from devcluster.processes import Processes
from devcluster.programs import find, version_of
from devcluster.waiting import wait_for
from finetune_api.yaml_text import parse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(api_server: ControlPlane) -> Iterator[ApiClient]:
    with new_client_from_config(str(api_server.kubeconfig)) as client:
        yield client


@pytest.fixture
def another(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane that a test may break."""
    control_plane = ControlPlane(
        tmp_path / "cluster", partial(find, say=print), Processes(tmp_path / "processes"), free_address()
    )
    control_plane.start()
    yield control_plane
    control_plane.remove()


def config_map(name: str, *owners: V1OwnerReference) -> V1ConfigMap:
    return V1ConfigMap(metadata=V1ObjectMeta(name=name, owner_references=list(owners)), data={"key": "value"})


def names(listed: Iterable[V1ConfigMap | V1ServiceAccount]) -> set[str]:
    return {each.metadata.name for each in listed if each.metadata and each.metadata.name}


def test_the_version_is_the_one_of_go_mod(api_server: ControlPlane) -> None:
    assert json.loads(api_server.get("/version"))["gitVersion"] == version_of("k8s.io/kubernetes")


def test_what_belongs_to_something_deleted_is_collected(client: ApiClient, namespace: str) -> None:
    core = CoreV1Api(client)
    owner = core.create_namespaced_config_map(namespace, config_map("owner")).metadata
    assert owner is not None
    assert owner.uid is not None
    reference = V1OwnerReference(api_version="v1", kind="ConfigMap", name="owner", uid=owner.uid)
    core.create_namespaced_config_map(namespace, config_map("owned", reference))

    core.delete_namespaced_config_map("owner", namespace)

    wait_for(
        "the owned one to go",
        lambda: "owned" not in names(core.list_namespaced_config_map(namespace).items),
        seconds=30,
    )


def test_every_namespace_gets_its_service_account(client: ApiClient, namespace: str) -> None:
    core = CoreV1Api(client)
    wait_for(
        "the service account",
        lambda: "default" in names(core.list_namespaced_service_account(namespace).items),
        seconds=30,
    )


def test_the_crd_is_served_and_refuses_what_breaks_its_rules(client: ApiClient, namespace: str) -> None:
    crd = yaml.safe_load((ROOT / "crds/finetunejobs.yaml").read_text())
    dynamic = DynamicClient(client)
    definitions = dynamic.resources.get(
        api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition"
    )
    definitions.server_side_apply(body=crd, field_manager="test")
    name = crd["metadata"]["name"]

    def established() -> bool:
        conditions = definitions.get(name=name).to_dict()["status"].get("conditions") or ()
        return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)

    wait_for("the CRD to be served", established, seconds=30)
    jobs = dynamic.resources.get(api_version="finetune.dev/v1alpha1", kind="FineTuneJob")
    job, _ = parse((ROOT / "examples/llama-3.1-8b-lora.yaml").read_text(), "the example")
    spec = job["spec"]
    assert isinstance(spec, dict)
    created = jobs.create(body=job, namespace=namespace).to_dict()
    assert created["spec"]["learning_rate"] == 1e-4
    assert created["spec"]["lora_config"]["bias"] == "none", "defaults are filled in"

    wrong = {**job, "metadata": {"name": "wrong"}, "spec": {**spec, "num_devices": 0}}
    with pytest.raises(ApiException, match=r"spec\.num_devices"):
        jobs.create(body=wrong, namespace=namespace)
    with pytest.raises(ApiException, match="cannot change after creation"):
        jobs.patch(
            name=created["metadata"]["name"],
            namespace=namespace,
            body={"spec": {"learning_rate": 0.5}},
            content_type="application/merge-patch+json",
        )


@pytest.mark.parametrize("program", ["kube-apiserver", "etcd"])
def test_what_was_stored_is_there_after_a_program_was_stopped_and_started(
    another: ControlPlane, program: str
) -> None:
    with new_client_from_config(str(another.kubeconfig)) as client:
        CoreV1Api(client).create_namespaced_config_map("default", config_map("kept"))

    another.stop_program(program)
    if program == "kube-apiserver":
        with pytest.raises(OSError, match="refused"):
            another.get("/readyz")
    another.start_program(program)

    def kept() -> bool:
        try:
            return b'"key":"value"' in another.get("/api/v1/namespaces/default/configmaps/kept")
        except OSError:
            return False

    wait_for("the API server to see what etcd has", kept, seconds=30)


def test_control_planes_side_by_side_do_not_see_each_other(
    api_server: ControlPlane, another: ControlPlane, namespace: str
) -> None:
    assert f'"name":"{namespace}"' in api_server.get("/api/v1/namespaces").decode()
    assert namespace not in another.get("/api/v1/namespaces").decode()


def test_the_audit_log_says_who_did_what(another: ControlPlane) -> None:
    another.get("/api/v1/namespaces/default/secrets")

    def logged() -> bool:
        entries = [json.loads(line) for line in another.audit_log.read_text().splitlines()]
        requests = [
            (each["user"]["username"], each["verb"], each["objectRef"]["resource"])
            for each in entries
            if "objectRef" in each
        ]
        return ("admin", "list", "secrets") in requests

    wait_for("the audit log", logged, seconds=10)


def test_a_program_that_ends_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no room left >&2\nexit 3\n")
    broken.chmod(0o755)
    control_plane = ControlPlane(
        tmp_path / "cluster", lambda _: broken, Processes(tmp_path / "processes"), free_address()
    )
    with pytest.raises(ClusterError, match=r"kube-apiserver has ended\n  kube-apiserver: no room left"):
        control_plane.start()
    control_plane.remove()


STARTED_AND_KILLED = """
import os, signal, sys
from functools import partial
from pathlib import Path
from devcluster.control_plane import ControlPlane, free_address
from devcluster.processes import Processes
from devcluster.programs import find
directory = Path(sys.argv[1])
ControlPlane(directory, partial(find, say=print), Processes(directory / "processes"), free_address()).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_test_run_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STARTED_AND_KILLED, tmp_path], cwd=ROOT, check=False, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL

    def left() -> list[str]:
        shown = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        return [line for line in shown if str(tmp_path) in line and "pytest" not in line]

    wait_for("the processes to go", lambda: not left(), seconds=10, seen=lambda: "\n".join(left()))


def test_a_wait_that_ends_says_what_it_waited_for_and_what_it_saw() -> None:
    began = time.monotonic()
    with pytest.raises(ClusterError, match="waited 0 s for rain\nblue sky"):
        wait_for("rain", lambda: None, seconds=0.3, seen=lambda: "blue sky", every=0.1)
    assert time.monotonic() - began < 5
