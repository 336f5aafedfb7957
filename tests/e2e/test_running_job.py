"""One job that trains, and what is true of every such job, up to its being deleted."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import JsonValue
from tests.chart.dashboard_picture import draw
from tests.chart.dashboard_queries import queries
from tests.e2e.deleting import delete_and_see_everything_go
from tests.e2e.jobs import (
    OURS,
    UNKNOWN_ACCELERATOR,
    change,
    events,
    job,
    names_of,
    put_tiny_inputs,
    wait_for_checkpoint,
    wait_for_phase,
    wait_for_step,
    wait_until_given_back,
)
from tests.e2e.long_jobs import MINUTE, long_job, steps_of
from tests.e2e.namespaces import temporary_namespace
from tests.e2e.prometheus import Prometheus, scraping
from tests.e2e.rights import Right, granted, may
from tests.e2e.sightings import Sightings, watching

from devcluster.failure import ClusterError
from devcluster.faults import stopped
from devcluster.images import Image
from devcluster.installation import CHART, CONFIGURATION, Installation
from devcluster.jobs import CLAIM, get, phase
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.pods import pod_spec
from devcluster.programs import Say
from devcluster.providers import Cluster, NodeCluster
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

ENDLESS: dict[str, JsonValue] = {**long_job(MINUTE), "num_epochs": 5000}
"""Steps for more than half an hour, with a checkpoint every 15 seconds."""

DASHBOARD = CHART / "files/dashboard.json"
PICTURE = "FINETUNE_DASHBOARD_PICTURE"
"""The environment variable with a file to draw the panels to; docs/pictures/dashboard.png was made so."""

STRANGER = "stranger"

KNOCK = """
import json, os, subprocess, sys, urllib.error, urllib.request
head, token = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}"} if token else {}

def ask(path, body=None):
    data = json.dumps(body).encode() if body else None
    typed = {**headers, "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{head}:8265{path}", data, typed)
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


@dataclass(frozen=True)
class Running:
    """The FineTuneJob `job`, alone in a namespace."""

    namespace: str
    prometheus: Prometheus
    """It has scraped the operator since before the job was made."""
    applied: float
    """By time.time()."""
    volume: Volume


@pytest.fixture(scope="module")
def running(
    operator: Installation,
    cluster: Cluster,
    kubeconfig: Path,
    trainer: Image,
    tiny_model: Path,
    tiny_rows: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """It has just begun to train, and goes on for longer than all these tests take."""
    kubectl = cluster.kubectl
    directory = tmp_path_factory.mktemp("prometheus")
    with (
        temporary_namespace(kubectl) as namespace,
        scraping(operator, kubeconfig, directory) as prometheus,
    ):
        volume = Volume(cluster, namespace, CLAIM, trainer.name)
        put_tiny_inputs(volume, tiny_model, tiny_rows)
        applied = time.time()
        kubectl.apply(job("job", namespace, **ENDLESS, run_policy={"prepare_first": True}))
        wait_for_phase(kubectl, namespace, "job", "Running", seconds=300)
        yield Running(namespace, prometheus, applied, volume)


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


# The first of these tests: some panels show what happened in the last seconds, and a job has just begun.
def test_every_panel_of_the_dashboard_has_data(running: Running, kubectl: Kubectl, say: Say) -> None:
    asked = queries(DASHBOARD, running.namespace, "job", "20s")
    empty = {(title, query) for title, panel in asked.items() for query in panel}

    def answered() -> bool:
        empty.difference_update({each for each in empty if running.prometheus.has_data(each[1])})
        return not empty

    wait_for(
        "data in every panel", answered, seconds=120, seen=lambda: "\n".join(map(str, sorted(empty))), every=1
    )
    assert phase(kubectl, running.namespace, "job") == "Running"
    say(
        f"data for all {sum(map(len, asked.values()))} queries of {len(asked)} panels"
        f" {time.time() - running.applied:.0f} s after kubectl apply"
    )
    if picture := os.environ.get(PICTURE):
        _draw(running, kubectl, Path(picture))


def test_it_trains_on_what_was_prepared_before_a_cluster_was_asked_for(
    running: Running, kubectl: Kubectl
) -> None:
    namespace = running.namespace
    told = [reason for reason, _ in events(kubectl, namespace, "job")]
    first = ["Preparing", "Prepared", "ClusterRequested"]
    assert [reason for reason in told if reason in first] == first

    shown = get(kubectl, namespace, "job")
    log = kubectl("logs", f"job/{at(shown, 'status', 'rayJobName')}", "--namespace", namespace)
    assert f"the tokens of the rows are those in {at(shown, 'status', 'runDirectory')}/prepared" in log


def test_a_foreign_pod_is_turned_away_at_every_door_and_the_trainer_has_one_right(
    running: Running, kubectl: Kubectl, stranger: str
) -> None:
    """Ray's ports run what they are sent; they ask for the job's token."""
    namespace = running.namespace
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


def test_a_hostile_progress_record_is_not_shown_and_does_no_harm(
    running: Running, kubectl: Kubectl, kubeconfig: Path
) -> None:
    namespace = running.namespace
    wait_for_step(kubectl, namespace, "job", 1, seconds=300)
    [ray_job] = kubectl.all("rayjobs", namespace)
    config_map = str(at(ray_job, "metadata", "name")).removesuffix("-1")
    theirs = {
        "name": "epoch-0",
        "path": "pvc://finetune/runs/other/job/epoch-0",
        "epoch": 1,
        "step": 1,
        "time": "2026-01-01T00:00:00Z",
    }
    with watching(kubeconfig, namespace) as sightings:
        for record, words in (
            ('"' + "x" * 950_000 + '"', "it has 950002 bytes"),
            ('{"progress": 1}', "progress: Input should be"),
            ("[" * 100_000, "it: Invalid JSON"),
            (json.dumps({"checkpoints": [theirs]}), "checkpoints.0.path is not that of epoch-0"),
        ):
            told = partial(
                _told_of, kubectl, namespace, config_map, record, f"is not shown: {words}", sightings
            )
            shown = wait_for(f"the operator's word: {words}", told, seconds=30)
            assert at(shown, "status", "phase") == "Running"
            _check_that_checkpoints_are_its_own(shown)
            assert "xxxx" not in json.dumps(shown)
            wait_for(
                "the trainer's next word",
                lambda: "training" in str(at(get(kubectl, namespace, "job"), "status", "message")),
                seconds=30,
            )
        for each in sightings.of("FineTuneJob"):
            _check_that_checkpoints_are_its_own(each.body)
    assert "RecordInvalid" in [reason for reason, _ in events(kubectl, namespace, "job")]


def test_a_record_is_read_by_its_name_when_its_label_is_gone(running: Running, kubectl: Kubectl) -> None:
    """The job's pods may write it, and the operator watches what bears the label."""
    namespace = running.namespace
    wait_for_step(kubectl, namespace, "job", 1, seconds=300)
    [ray_job] = kubectl.all("rayjobs", namespace)
    record = ("configmap", str(at(ray_job, "metadata", "name")).removesuffix("-1"), "--namespace", namespace)
    before = int(str(at(get(kubectl, namespace, "job"), "status", "progress", "step")))
    kubectl("label", *record, f"{OURS}-")
    try:
        time.sleep(1)  # until the watch has told of it

        def further() -> bool:
            # So the operator looks at the job.
            touched = f"touched={time.monotonic()}"
            kubectl("annotate", "finetunejob", "job", touched, "--overwrite", "--namespace", namespace)
            return int(str(at(get(kubectl, namespace, "job"), "status", "progress", "step"))) > before + 1

        wait_for("later steps", further, seconds=30)
    finally:
        kubectl("label", *record, f"{OURS}={at(get(kubectl, namespace, 'job'), 'metadata', 'uid')}")


@pytest.mark.breaks_the_cluster
def test_an_api_server_that_is_gone_for_half_a_minute_changes_nothing(
    running: Running, node_cluster: NodeCluster
) -> None:
    with _undisturbed(running, node_cluster.kubectl), stopped(node_cluster, "kube-apiserver"):
        time.sleep(30)


def test_an_upgrade_disturbs_nothing_and_neither_do_removal_and_another_installation(
    running: Running, operator: Installation, kubectl: Kubectl
) -> None:
    namespace = running.namespace
    kubectl.apply(job("done", namespace, **UNKNOWN_ACCELERATOR))
    wait_for_phase(kubectl, namespace, "done", "Failed", seconds=20)

    with _undisturbed(running, kubectl):
        before = _operator_pod(operator)
        operator.upgrade(config={**CONFIGURATION, "resync_seconds": 30})
        assert _operator_pod(operator) != before, "the new configuration is at work"
        assert phase(kubectl, namespace, "job") == "Running"

    with _undisturbed(running, kubectl):
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

    wait_for_phase(kubectl, namespace, "new", "Failed", seconds=20)
    kubectl("delete", "finetunejob", "new", "--namespace", namespace, "--timeout=10s")


def test_suspended_it_gives_its_devices_back_and_goes_on_from_what_it_saved(
    running: Running, kubectl: Kubectl
) -> None:
    namespace = running.namespace
    wait_for_checkpoint(kubectl, namespace, "job", seconds=60)

    change(kubectl, namespace, "finetunejob", "job", suspend=True)
    suspended = wait_until_given_back(kubectl, namespace, "job")
    done = int(str(at(suspended, "status", "progress", "step")))
    change(kubectl, namespace, "finetunejob", "job", suspend=False)

    wait_for_step(kubectl, namespace, "job", done + 1, seconds=300)
    resumed = get(kubectl, namespace, "job")
    assert at(resumed, "status", "attempts") == 1
    assert at(resumed, "status", "rayJobName") != at(suspended, "status", "rayJobName")
    steps = steps_of(running.volume, at(resumed, "status"))
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > done


# The last one.
def test_when_it_is_deleted_everything_goes(running: Running, kubectl: Kubectl, say: Say) -> None:
    wait_for_step(kubectl, running.namespace, "job", 2, seconds=300)

    delete_and_see_everything_go(kubectl, running.namespace, say, "Running")


@contextmanager
def _undisturbed(running: Running, kubectl: Kubectl) -> Iterator[None]:
    """The job trains on in the same pods meanwhile, and its status goes on afterwards."""
    namespace = running.namespace
    wait_for_checkpoint(kubectl, namespace, "job", seconds=300)
    before = get(kubectl, namespace, "job")
    pods, ray_job = _pods(kubectl, namespace), _uids(kubectl.all("rayjobs", namespace))
    yield
    saved = names_of(at(before, "status", "checkpoints"))
    wait_for(
        "another checkpoint",
        lambda: names_of(at(get(kubectl, namespace, "job"), "status", "checkpoints")) - saved,
        seconds=120,
        seen=lambda: kubectl.story(namespace),
    )
    after = get(kubectl, namespace, "job")
    assert (_pods(kubectl, namespace), _uids(kubectl.all("rayjobs", namespace))) == (pods, ray_job)
    assert (at(after, "status", "phase"), at(after, "status", "attempts")) == ("Running", 1)
    assert at(after, "status", "startTime") == at(before, "status", "startTime")
    steps = steps_of(running.volume, at(after, "status"))
    assert steps == list(range(1, len(steps) + 1))


def _draw(running: Running, kubectl: Kubectl, picture: Path) -> None:
    """What the panels show of a whole job beside this one."""
    began = time.time()
    kubectl.apply(job("picture", running.namespace, **long_job(MINUTE)))
    wait_for_phase(kubectl, running.namespace, "picture", "Succeeded", seconds=500)
    time.sleep(10)
    now = time.time()
    asked = queries(DASHBOARD, running.namespace, "picture", "20s")
    answers = {
        title: [running.prometheus.range(query, began, now) for query in panel]
        for title, panel in asked.items()
    }
    draw(DASHBOARD, answers, picture)


def _check_that_checkpoints_are_its_own(shown: dict[str, JsonValue]) -> None:
    checkpoints = at(shown, "status", "checkpoints")
    directory = str(at(shown, "status", "runDirectory"))
    assert isinstance(checkpoints, list)
    paths = [str(each["path"]) for each in checkpoints if isinstance(each, dict)]
    assert len(paths) == len(checkpoints)
    assert [path for path in paths if not path.startswith(f"{directory}/")] == []


def _told_of(
    kubectl: Kubectl, namespace: str, config_map: str, record: str, words: str, sightings: Sightings
) -> dict[str, JsonValue] | None:
    """Writes the record at every call: the trainer's next one may replace it before the operator reads it.

    Returns the first FineTuneJob whose message has the words.
    """
    patch = json.dumps({"data": {"record.json": record}})
    kubectl(
        "patch",
        "configmap",
        config_map,
        "--namespace",
        namespace,
        "--type=merge",
        "--patch-file=/dev/stdin",
        stdin=patch,
    )
    return next(
        (
            each.body
            for each in sightings.of("FineTuneJob")
            if words in str(at(each.body, "status", "message"))
        ),
        None,
    )


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


def _pods(kubectl: Kubectl, namespace: str) -> set[str]:
    return _uids(kubectl.all("pods", namespace))


def _uids(objects: list[dict[str, JsonValue]]) -> set[str]:
    return {str(at(each, "metadata", "uid")) for each in objects}


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


def _is_let(kubectl: Kubectl, *words: str) -> bool:
    try:
        kubectl(*words)
    except ClusterError as error:
        return "forbidden" not in str(error).lower()
    return True
