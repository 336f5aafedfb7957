"""The operator as a process, with its configuration in the environment, on a real API server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml
from kubernetes.client import (
    ApiException,
    AuthenticationV1TokenRequest,
    CoreV1Api,
    V1Namespace,
    V1ObjectMeta,
    V1TokenRequestSpec,
)
from tests.operator.conftest import CHILDREN, Namespace, Object

from devcluster.control_plane import ControlPlane, free_address
from devcluster.waiting import wait_for
from finetune_api.manifest import KIND
from finetune_operator.cluster.namespaces import CHECK_SECONDS
from finetune_operator.names import ATTEMPT, JOB_NAME, JOB_UID

SECONDS = 60
"""Until a process that hangs is ended."""


class Process:
    """One operator, and what it wrote to standard error."""

    def __init__(self, directory: Path, kubeconfig: Path, **variables: str) -> None:
        self.port = free_address().port
        self._log = directory / f"operator-{self.port}.log"
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(directory),
            "KUBECONFIG": str(kubeconfig),
            "FINETUNE_OPERATOR_TRAINER_IMAGE": "registry.test/trainer:1.0",
            "FINETUNE_OPERATOR_LISTEN_PORT": str(self.port),
            **variables,
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator"],
                env=environment,
                cwd=directory,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """Its log lines; everything it writes must be one."""
        return [json.loads(line) for line in self.log().splitlines()]

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return self.get("/readyz") == (200, "ok")
        except OSError:
            return False

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Cluster(Protocol):
    """Where an operator runs, and as whom."""

    @property
    def kubeconfig(self) -> Path:
        """What it connects with."""


@contextmanager
def running(directory: Path, control_plane: Cluster, namespaces: str, **variables: str) -> Iterator[Process]:
    """An operator for some namespaces that is ready."""
    process = Process(
        directory, control_plane.kubeconfig, FINETUNE_OPERATOR_WATCH_NAMESPACES=namespaces, **variables
    )
    try:
        wait_for("the operator to be ready", process.is_ready, seconds=SECONDS, seen=process.log, every=0.05)
        yield process
    finally:
        process.kill()


@contextmanager
def ending(directory: Path, control_plane: Cluster, **variables: str) -> Iterator[Process]:
    """An operator that ends by itself."""
    process = Process(directory, control_plane.kubeconfig, **variables)
    try:
        yield process
    finally:
        process.kill()


def has_ray_job(inside: Namespace, job: Object) -> bool:
    return "RayJob" in [each["kind"] for each in inside.children(job["metadata"]["uid"])]


def wait_for_phase(inside: Namespace, name: str, phase: str, process: Process, seconds: float = 10) -> Object:
    def shown() -> Object | None:
        job = inside.get(KIND, name)
        return job if job.get("status", {}).get("phase") == phase else None

    return wait_for(f"{name} to be {phase}", shown, seconds=seconds, seen=process.log, every=0.02)


def errors(process: Process) -> list[dict[str, Any]]:
    """What it did not expect. That somebody else wrote a job at the same moment is expected."""
    return [line for line in process.lines() if line["level"] in ("ERROR", "CRITICAL") or "exc_info" in line]


def test_a_job_has_its_ray_job_at_once_and_nothing_of_kopfs(
    served: ControlPlane, inside: Namespace, tmp_path: Path
) -> None:
    with running(tmp_path, served, inside.name) as process:
        began = time.monotonic()
        job = inside.create_job()
        wait_for("the RayJob", lambda: has_ray_job(inside, job), seconds=5, seen=process.log, every=0.01)
        taken = time.monotonic() - began

        name = inside.all("RayJob")[0]["metadata"]["name"]
        inside.patch_status("RayJob", name, jobDeploymentStatus="Initializing", rayClusterName="a")
        shown = wait_for_phase(inside, "job", "Starting", process)
        print(f"RayJob {taken:.2f} s after the job")
        assert taken < 5
        for each in [shown, *inside.children(job["metadata"]["uid"])]:
            assert "finalizers" not in each["metadata"], each["kind"]
            assert "kopf" not in json.dumps(each), each["kind"]
        assert "annotations" not in shown["metadata"]
        assert process.get("/livez") == (200, "ok")
        assert 'finetune_jobs{phase="Starting"} 1.0' in process.get("/metrics")[1]
        lines = [line for line in process.lines() if line.get("uid") == job["metadata"]["uid"]]
        assert f"made RayJob {name}" in [line["message"] for line in lines]
        assert errors(process) == []


def test_a_pod_that_is_deleted_as_soon_as_it_is_evicted_is_told_of(
    served: ControlPlane, inside: Namespace, tmp_path: Path
) -> None:
    with running(tmp_path, served, inside.name) as process:
        job = inside.create_job()
        wait_for("the RayJob", lambda: has_ray_job(inside, job), seconds=10, seen=process.log, every=0.05)
        name = inside.all("RayJob")[0]["metadata"]["name"]
        labels = {JOB_UID: job["metadata"]["uid"], ATTEMPT: "1", "ray.io/node-type": "worker"}
        inside.create(
            "Pod",
            "w-0",
            metadata={"name": "w-0", "labels": labels, "annotations": {JOB_NAME: "job"}},
            spec={
                "automountServiceAccountToken": False,
                "containers": [{"name": "worker", "image": "registry.test/trainer:1.0"}],
            },
        )
        inside.patch_status("RayJob", name, jobDeploymentStatus="Initializing", rayClusterName="a")
        wait_for_phase(inside, "job", "Starting", process)
        inside.patch_status("Pod", "w-0", phase="Failed", reason="Evicted", message="its disk is full")
        inside.delete("Pod", "w-0")

        def told() -> bool:
            return "pod w-0 was evicted: its disk is full" in inside.get(KIND, "job")["status"]["message"]

        wait_for("its reason", told, seconds=10, seen=process.log, every=0.05)
        assert not inside.exists("Pod", "w-0")
        assert errors(process) == []


def test_a_deleted_job_and_another_one_of_its_name(
    served: ControlPlane, inside: Namespace, tmp_path: Path
) -> None:
    with running(tmp_path, served, inside.name) as process:
        old = inside.create_job()
        wait_for("the RayJob", lambda: has_ray_job(inside, old), seconds=10, seen=process.log, every=0.05)
        inside.delete(KIND, "job")
        new = inside.create_job()
        wait_for(
            "the other RayJob", lambda: has_ray_job(inside, new), seconds=10, seen=process.log, every=0.05
        )
        wait_for("the old one to go", lambda: not inside.children(old["metadata"]["uid"]), seconds=90)
        wait_for_phase(inside, "job", "Pending", process)

        assert [each["kind"] for each in inside.children(new["metadata"]["uid"])] == list(CHILDREN)
        assert errors(process) == []


def test_an_operator_that_is_killed_and_started_again_goes_on_where_it_was(
    served: ControlPlane, inside: Namespace, tmp_path: Path
) -> None:
    with running(tmp_path, served, inside.name) as process:
        jobs = [inside.create_job(f"job-{number}") for number in range(5)]
        wait_for(
            "a RayJob",
            lambda: any(has_ray_job(inside, job) for job in jobs),
            seconds=10,
            seen=process.log,
            every=0.005,
        )
        process.kill()
    meanwhile = inside.create_job("meanwhile")

    with running(tmp_path, served, inside.name) as process:
        everything = [*jobs, meanwhile]
        wait_for(
            "all RayJobs",
            lambda: all(has_ray_job(inside, job) for job in everything),
            seconds=10,
            seen=process.log,
            every=0.05,
        )
        before = {each["metadata"]["name"]: each["metadata"]["uid"] for each in inside.all("RayJob")}
        inside.patch(KIND, "meanwhile", spec={"suspend": True})
        wait_for_phase(inside, "meanwhile", "Suspended", process)
        # The status is written before anything is deleted.
        wait_for(
            "its RayJob to go",
            lambda: not has_ray_job(inside, meanwhile),
            seconds=10,
            seen=process.log,
            every=0.05,
        )

        after = {each["metadata"]["name"]: each["metadata"]["uid"] for each in inside.all("RayJob")}
        assert len(before) == 6
        assert after.items() <= before.items()
        assert len(after) == 5
        assert errors(process) == []


def test_sigterm_ends_it_at_once(served: ControlPlane, inside: Namespace, tmp_path: Path) -> None:
    with running(tmp_path, served, inside.name) as process:
        job = inside.create_job()
        wait_for("the RayJob", lambda: has_ray_job(inside, job), seconds=10, seen=process.log, every=0.05)

        began = time.monotonic()
        process.process.send_signal(signal.SIGTERM)

        assert process.wait() == 0, process.log()
        taken = time.monotonic() - began
        print(f"ended {taken:.2f} s after SIGTERM")
        assert taken < 5
        assert "Traceback" not in process.log()
        assert has_ray_job(inside, job), "what runs goes on"


def test_sigterm_before_it_has_started_ends_it_as_well(served: ControlPlane, tmp_path: Path) -> None:
    """As the first process of a container it would not hear a signal that it has no handler for."""

    def hears(process: Process) -> bool:
        status = Path(f"/proc/{process.process.pid}/status").read_text()
        [caught] = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

    with ending(tmp_path, served) as process:
        wait_for("it to hear", partial(hears, process), seconds=20, every=0.01)
        assert process.log() == "", "it is on its way"
        process.process.send_signal(signal.SIGTERM)

        assert process.wait() == 128 + signal.SIGTERM
        assert "Traceback" not in process.log()


def test_jobs_of_other_namespaces_are_left_alone(
    served: ControlPlane, inside: Namespace, tmp_path: Path
) -> None:
    core = CoreV1Api(inside.dynamic.client)
    other = Namespace(inside.dynamic, f"{inside.name}-other")
    core.create_namespace(V1Namespace(metadata=V1ObjectMeta(name=other.name)))
    left_alone = other.create_job()
    with running(tmp_path, served, inside.name) as process:
        for number in range(3):
            other.create_job(f"job-{number}")
            watched = inside.create_job(f"job-{number}")
            wait_for(
                "the RayJob", partial(has_ray_job, inside, watched), seconds=10, seen=process.log, every=0.05
            )

        assert other.all("RayJob") == []
        assert other.get(KIND, "job") == left_alone
        assert errors(process) == []

    with running(tmp_path, served, f"{inside.name},{other.name}") as process:
        wait_for(
            "RayJobs in both", lambda: len(other.all("RayJob")) == 4, seconds=10, seen=process.log, every=0.05
        )
        assert len(inside.all("RayJob")) == 3
    core.delete_namespace(other.name)


OPERATORS_ROLE = "finetune-operator"


class Account:
    """A service account that the operator runs as; it has rights in the namespaces that it is let into."""

    def __init__(self, home: Namespace, kubeconfig: Path, directory: Path) -> None:
        self._home = home
        home.create("ServiceAccount", "operator")
        audience = V1TokenRequestSpec(audiences=["https://kubernetes.default.svc"])
        made = CoreV1Api(home.dynamic.client).create_namespaced_service_account_token(
            "operator", home.name, AuthenticationV1TokenRequest(spec=audience)
        )
        assert made.status is not None
        content = yaml.safe_load(kubeconfig.read_text())
        content["users"][0]["user"] = {"token": made.status.token}
        self.kubeconfig = directory / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(content))

    def let_into(self, where: Namespace) -> None:
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": OPERATORS_ROLE}
        account = {"kind": "ServiceAccount", "name": "operator", "namespace": self._home.name}
        everything = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
        where.create("Role", OPERATORS_ROLE, rules=[everything])
        where.create("RoleBinding", OPERATORS_ROLE, roleRef=role, subjects=[account])

    def shut_out_of(self, where: Namespace) -> None:
        where.delete("RoleBinding", OPERATORS_ROLE)
        where.delete("Role", OPERATORS_ROLE)


@pytest.fixture
def account(served: ControlPlane, inside: Namespace, tmp_path: Path) -> Account:
    found = Account(inside, served.kubeconfig, tmp_path)
    found.let_into(inside)
    return found


@pytest.fixture
def other(inside: Namespace) -> Iterator[Namespace]:
    """A second namespace, which is there and may go."""
    other = Namespace(inside.dynamic, f"{inside.name}-other")
    make_namespace(other)
    yield other
    delete_namespace(other)


def make_namespace(namespace: Namespace) -> None:
    CoreV1Api(namespace.dynamic.client).create_namespace(
        V1Namespace(metadata=V1ObjectMeta(name=namespace.name))
    )


def delete_namespace(namespace: Namespace) -> None:
    core = CoreV1Api(namespace.dynamic.client)
    with suppress(ApiException):
        core.delete_namespace(namespace.name)

    def is_gone() -> bool:
        try:
            core.read_namespace(namespace.name)
        except ApiException as error:
            return bool(error.status == HTTPStatus.NOT_FOUND)
        return False

    wait_for(f"namespace {namespace.name} to go", is_gone, seconds=60)


def left_alone(process: Process) -> float | None:
    found = re.search(r"^finetune_namespaces_left_alone (\S+)$", process.get("/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else None


def says(process: Process, words: str) -> bool:
    return any(words in str(line["message"]) for line in process.lines())


def runs(inside: Namespace, name: str, process: Process) -> None:
    """Waits until a new job of a namespace has its RayJob."""
    job = inside.create_job(name)
    wait_for(f"the RayJob of {name}", partial(has_ray_job, inside, job), seconds=20, seen=process.log)


@pytest.mark.parametrize("how", ["deleted", "not allowed"])
def test_a_namespace_that_ceases_to_be_there_is_left_alone_until_it_is_back_and_the_others_go_on(
    account: Account, inside: Namespace, other: Namespace, tmp_path: Path, how: str
) -> None:
    account.let_into(other)
    with running(tmp_path, account, f"{inside.name},{other.name}") as process:
        runs(inside, "before", process)
        runs(other, "before", process)
        assert left_alone(process) == 0

        if how == "deleted":
            delete_namespace(other)
        else:
            account.shut_out_of(other)
        wait_for("it to be told", lambda: left_alone(process) == 1, seconds=40, seen=process.log)
        assert says(
            process, f"namespace {other.name} is left alone, since it is gone or the operator may not"
        )
        told = len(process.lines())

        runs(inside, "meanwhile", process)
        time.sleep(1.2 * CHECK_SECONDS)
        later = [line["message"] for line in process.lines()[told:] if other.name in json.dumps(line)]
        assert later == [], "it is told of once"
        assert process.get("/livez") == (200, "ok")
        assert f'finetune_jobs{{phase="Pending"}} {len(inside.all(KIND))}.0' in process.get("/metrics")[1]

        if how == "deleted":
            make_namespace(other)
            account.let_into(other)
        else:
            other.patch(KIND, "before", spec={"suspend": True})
            account.let_into(other)
            wait_for_phase(other, "before", "Suspended", process, seconds=40)
        runs(other, "after", process)
        assert left_alone(process) == 0
        assert says(process, f"namespace {other.name} is watched again")
        runs(inside, "at-last", process)


def test_a_namespace_that_is_not_there_at_the_start_keeps_no_other_from_being_watched(
    account: Account, inside: Namespace, other: Namespace, tmp_path: Path
) -> None:
    with running(tmp_path, account, f"{other.name},{inside.name}") as process:
        runs(inside, "job", process)
        waiting = other.create_job()
        assert left_alone(process) == 1
        assert errors(process) == []

        account.let_into(other)

        wait_for("the job that waited", partial(has_ray_job, other, waiting), seconds=40, seen=process.log)
        assert errors(process) == []


def test_where_no_namespace_can_be_watched_it_ends_and_says_why(
    account: Account, other: Namespace, tmp_path: Path
) -> None:
    with ending(tmp_path, account, FINETUNE_OPERATOR_WATCH_NAMESPACES=f"{other.name},nowhere") as process:
        code = process.wait()

    assert code == 1
    for name in (other.name, "nowhere"):
        assert re.search(
            rf"cannot list resource .{{1,3}}pods.* in the namespace .{{1,3}}{name}", process.log()
        )
    assert "Traceback" not in process.log()


def test_without_a_list_of_namespaces_all_are_watched(
    served: ControlPlane, inside: Namespace, tmp_path: Path
) -> None:
    with running(tmp_path, served, "") as process:
        job = inside.create_job()
        wait_for("the RayJob", lambda: has_ray_job(inside, job), seconds=10, seen=process.log, every=0.05)


def test_a_job_with_a_wrong_status_is_reconciled_all_the_same(
    served: ControlPlane, inside: Namespace, tmp_path: Path
) -> None:
    with running(tmp_path, served, inside.name) as process:
        job = inside.create_job()
        inside.patch_status(KIND, "job", phase="Starting", message="somebody else's words", attempts=1)
        wait_for("the RayJob", lambda: has_ray_job(inside, job), seconds=10, seen=process.log, every=0.05)
        wait_for_phase(inside, "job", "Pending", process)


def test_a_wrong_configuration_ends_it_with_every_mistake(served: ControlPlane, tmp_path: Path) -> None:
    wrong = {
        "FINETUNE_OPERATOR_TRAINER_IMAGE": "",
        "FINETUNE_OPERATOR_WORKERS": "many",
        "FINETUNE_OPERATOR_LOG_LEVL": "INFO",
    }

    with ending(tmp_path, served, **wrong) as process:
        code = process.wait()

    assert code == 1
    assert "Traceback" not in process.log()
    assert "FINETUNE_OPERATOR_TRAINER_IMAGE: " in process.log()
    assert "FINETUNE_OPERATOR_WORKERS: " in process.log()
    assert (
        "FINETUNE_OPERATOR_LOG_LEVL: is not a variable of the operator; did you mean"
        " FINETUNE_OPERATOR_LOG_LEVEL?" in process.log()
    )


def test_without_kuberay_it_ends_and_says_what_to_install(
    without_kuberay: ControlPlane, tmp_path: Path
) -> None:
    with ending(tmp_path, without_kuberay) as process:
        code = process.wait()

    assert code == 1
    assert re.search(
        r"does not serve ray\.io/v1 RayJobs and RayClusters: install KubeRay 1\.6 or newer", process.log()
    )
    assert "Unclosed" not in process.log()
    assert "Traceback" not in process.log()
    assert process.lines(), "and nothing besides"


def test_a_port_that_is_taken_ends_it_and_is_said(
    served: ControlPlane, inside: Namespace, tmp_path: Path
) -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as taken,
        ending(
            tmp_path,
            served,
            FINETUNE_OPERATOR_WATCH_NAMESPACES=inside.name,
            FINETUNE_OPERATOR_LISTEN_PORT=str(taken.getsockname()[1]),
        ) as process,
    ):
        code = process.wait()

    assert code == 1
    assert "address already in use" in process.log()
    assert "Traceback" not in process.log()
    assert process.lines(), "and nothing besides"


def test_an_api_server_that_is_not_there_ends_it_and_is_said(served: ControlPlane, tmp_path: Path) -> None:
    """Kubernetes starts it again, later and later."""
    nowhere = tmp_path / "kubeconfig"
    nowhere.write_text(
        re.sub(
            r"https://127\.0\.0\.1:\d+",
            f"https://127.0.0.1:{free_address().port}",
            served.kubeconfig.read_text(),
        )
    )
    process = Process(tmp_path, nowhere)
    try:
        code = process.wait()
    finally:
        process.kill()

    assert code == 1
    assert "the API server at https://127.0.0.1:" in process.log()
    assert "does not answer: Cannot connect to host 127.0.0.1" in process.log()
    assert "networkPolicy.apiServerPorts" in process.log()
    assert "Traceback" not in process.log()
    assert process.lines(), "and nothing besides"
