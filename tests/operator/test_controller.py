"""Reconciles jobs on a real API server.

KubeRay does not run: tests write what it would, and set what watches have reported.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kubernetes.aio.config import new_client_from_config
from kubernetes.client import ApiException
from kubernetes.config import new_client_from_config as new_sync_client
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ForbiddenError
from prometheus_client import REGISTRY
from pydantic import JsonValue
from tests.operator.conftest import CHILDREN, Namespace, Object

from devcluster.control_plane import ControlPlane
from devcluster.waiting import wait_for
from finetune_api.assignment import RECORD_KEY
from finetune_api.failure import FailureClass
from finetune_api.manifest import API_VERSION, KIND
from finetune_api.status import Checkpoint, Failure, FineTuneJobStatus, Phase, Plan, Progress, ProgressRecord
from finetune_operator.cluster.caches import WatchCaches
from finetune_operator.cluster.event_recorder import EventRecorder
from finetune_operator.cluster.freshness import STALE_SECONDS, Freshness
from finetune_operator.cluster.kubernetes_api import ApiRefusedError, KubernetesApi
from finetune_operator.controller import REFUSED_AGAIN_AFTER, Controller, Key, NotOursError
from finetune_operator.decide import event_limit
from finetune_operator.decide.cleanup import RELEASE_AFTER
from finetune_operator.names import JOB_UID, child_name
from finetune_operator.observed import KubernetesObject, Pod, RayCluster
from finetune_operator.settings.configuration import Configuration

NOW = datetime.now(UTC).replace(microsecond=0)
CONFIGURATION = Configuration(trainer_image="registry.test/trainer:1.0")
STEPS = 8
PLAN = Plan(
    rows=32,
    validation_rows=0,
    tokens=1000,
    truncated_rows=0,
    context_length=512,
    effective_batch_size=8,
    steps_per_epoch=4,
    total_epochs=2,
    total_steps=STEPS,
    checkpoint_epochs=[0, 1],
    trainable_parameters=1,
    total_parameters=2,
)
EVERYTHING: dict[str, JsonValue] = {
    "trainer_resources": {"memory": 2**30},
    "valid_path": "configmap://rows/valid.jsonl",
    "run_policy": {"active_deadline_seconds": 3600, "ttl_seconds_after_finished": 60},
    "lora_config": {"r": 8},
    "cluster": {
        "image": "registry.test/mine:2",
        "image_pull_policy": "Always",
        "image_pull_secrets": [{"name": "registry"}],
        "service_account_name": "mine",
        "env": [
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
            {"name": "A", "value": "$(B)"},
        ],
        "env_from": [{"secretRef": {"name": "storage"}}],
        "volumes": [{"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}],
        "volume_mounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "node_selector": {"pool": "training"},
        "tolerations": [{"key": "training", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priority_class_name": "low",
        "labels": {"team": "ours"},
        "annotations": {"example.com/cost": "1"},
        "head": {"resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "4Gi"}}},
        "worker": {"resources": {"limits": {"cpu": 8, "memory": "64Gi"}}},
    },
}
"""Changes to a spec by which every field of a manifest is used."""


class DiedError(Exception):
    """The operator has gone without a word."""


class RecordingApi(KubernetesApi):
    """Notes the calls, does what a test wants done between them, and fails at one of them."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401
        super().__init__(client)
        self.done: list[str] = []
        self.before: Callable[[str], None] = lambda _: None
        self.after: Callable[[str, bool], None] = lambda *_: None
        """Called with whether the call was carried out."""

    async def _request(
        self,
        method: str,
        path: str,
        verb: str,
        resource: str,
        body: KubernetesObject | None = None,
        accept: str = "application/json",
    ) -> KubernetesObject:
        call = f"{verb} {resource}"
        self.before(call)
        try:
            answer = await super()._request(method, path, verb, resource, body, accept)
        except ApiRefusedError:
            self.after(call, False)
            raise
        self.done.append(call)
        self.after(call, True)
        return answer

    def written(self) -> list[str]:
        """The calls that have changed something."""
        return [call for call in self.done if not call.startswith(("get ", "list "))]


class Watched(WatchCaches):
    """What watches have told, which may be old, or nothing that there ever was."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._told: dict[str, set[str]] = {}

    def tell(self, kind: str, namespace: str, told: Sequence[Pod | RayCluster]) -> None:
        """These are all objects of a kind that a watch knows; one that it told of before is deleted."""
        for uid in self._told.get(kind, set()):
            self.gone(kind, namespace, uid)
        self._told[kind] = {each.metadata.uid for each in told}
        for each in told:
            self._gone.pop(each.metadata.uid, None)
            body = each.model_dump(mode="json", by_alias=True, exclude_none=True)
            version = each.metadata.resource_version or "1"
            self.put(
                kind,
                {**body, "metadata": body["metadata"] | {"namespace": namespace, "resourceVersion": version}},
            )


class Operator:
    """An operator that can die, and whose time stands still unless a test moves it on.

    Its watches are up to date whenever it looks at a job, unless a test holds them back. Nothing there
    makes pods, so tests say what a watch has told of them.
    """

    def __init__(
        self, inside: Namespace, api: RecordingApi, runner: asyncio.Runner, configuration: Configuration
    ) -> None:
        self.inside = inside
        self.api = api
        self.of_pods: list[Pod] = []
        self.of_clusters: list[RayCluster] = []
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.watches_are_late = False
        self._runner = runner
        self._configuration = configuration
        self.restart()

    def restart(self) -> None:
        """Puts a new one in its place, which remembers nothing."""
        self.freshness = Freshness(self._seconds)
        self.caches = Watched(self._seconds)
        self.events = EventRecorder(self.api.post_event)
        self.controller = Controller(
            self.api, self._configuration, self.caches, self.freshness, self.events, lambda: self.now
        )
        self.watch()

    def watch(self) -> None:
        """What the watches tell comes in: all that there is, and what is gone."""
        for kind in ("RayJob", "ConfigMap", KIND):
            there = self.inside.all(kind, None if kind == KIND else JOB_UID)
            for each in there:
                self.caches.put(kind, each)
            for uid in self.caches.versions(kind, self.inside.name).keys() - {
                each["metadata"]["uid"] for each in there
            }:
                self.caches.gone(kind, self.inside.name, uid)
        self.caches.tell("Pod", self.inside.name, self.of_pods)
        self.caches.tell("RayCluster", self.inside.name, self.of_clusters)

    def _seconds(self) -> float:
        return self.now.timestamp()

    def reconcile(self, job: Object) -> timedelta | None:
        if not self.watches_are_late:
            self.watch()
        metadata = job["metadata"]
        key = Key(metadata["namespace"], metadata["name"], metadata["uid"])

        async def reconcile() -> timedelta | None:
            try:
                return await self.controller.reconcile(key)
            finally:
                await self.events.posted()

        return self._runner.run(reconcile())

    def settle(self, job: Object) -> FineTuneJobStatus:
        """Reconciles until nothing changes any more."""
        for _ in range(8):
            before = len(self.api.written())
            self.reconcile(job)
            if len(self.api.written()) == before:
                return self.status(job)
        raise AssertionError(f"it writes on and on: {self.api.written()[-20:]}")

    def status(self, job: Object) -> FineTuneJobStatus:
        return FineTuneJobStatus.model_validate(
            self.inside.get(KIND, job["metadata"]["name"]).get("status") or {}
        )

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def recording_api(served: ControlPlane, runner: asyncio.Runner) -> Iterator[RecordingApi]:
    api = RecordingApi(runner.run(new_client_from_config(config_file=str(served.kubeconfig))))
    yield api
    runner.run(api.close())


@pytest.fixture
def operator(inside: Namespace, recording_api: RecordingApi, runner: asyncio.Runner) -> Operator:
    return Operator(inside, recording_api, runner, CONFIGURATION)


class World:
    """What happens to a job besides the operator: KubeRay and the trainer, by hand."""

    def __init__(self, operator: Operator, job: Object) -> None:
        self.operator = operator
        self.job = job
        self.inside = operator.inside
        self.name = job["metadata"]["name"]
        self.uid = job["metadata"]["uid"]
        self.config_map = child_name(self.name, self.uid)

    @property
    def ray_job(self) -> str:
        name = self.operator.status(self.job).ray_job_name
        assert name is not None
        return name

    @property
    def ray_jobs(self) -> list[Object]:
        return self.inside.all("RayJob", f"{JOB_UID}={self.uid}")

    def kuberay_says(self, deployment: str, job: str = "", **more: str) -> None:
        now = self.operator.now.isoformat().replace("+00:00", "Z")
        ended = {"endTime": now} if deployment in ("Complete", "Failed") else {}
        status = {
            "jobDeploymentStatus": deployment,
            "jobStatus": job,
            "rayClusterName": f"{self.ray_job}-abcde",
            "startTime": now,
            **ended,
        }
        self.inside.patch_status("RayJob", self.ray_job, **status, **more)

    def pods_are(self, phase: str, *, ready: bool = True, deleted: datetime | None = None) -> None:
        """The two workers, as the watch reports them."""
        name = self.ray_job
        conditions = [{"type": "Ready", "status": str(ready)}]
        self.operator.of_pods = [
            Pod.model_validate(
                {
                    "metadata": {
                        "name": f"{name}-worker-{number}",
                        "uid": f"pod-{number}",
                        "labels": {JOB_UID: self.uid, "ray.io/node-type": "worker"},
                        "deletionTimestamp": deleted,
                    },
                    "status": {"phase": phase, "conditions": conditions},
                }
            )
            for number in range(2)
        ]

    def trainer_says(self, step: int, *, attempt: int = 1, failure: Failure | None = None) -> None:
        directory = self.operator.status(self.job).run_directory
        saved = [
            Checkpoint(
                name=f"epoch-{epoch}",
                path=f"{directory}/epoch-{epoch}",
                epoch=epoch + 1,
                step=4 * epoch + 4,
                time=self.operator.now,
            )
            for epoch in range(step // 4)
        ]
        progress = Progress(
            epoch=step / 4,
            epochs=f"{step // 4}/2",
            step=step,
            percent=100 * step // STEPS,
            train_loss=2.5,
            tokens_trained=step * 100,
            last_update_time=self.operator.now,
        )
        record = ProgressRecord(
            attempt=attempt, plan=PLAN, progress=progress, checkpoints=saved, failure=failure
        )
        self.record_is(record.model_dump_json(by_alias=True, exclude_none=True))

    def record_is(self, text: str) -> None:
        self.inside.patch("ConfigMap", self.config_map, data={RECORD_KEY: text})


def versions(inside: Namespace) -> dict[str, str]:
    """Of everything in a namespace that the operator could touch."""
    found = [each for kind in (*CHILDREN, KIND, "RayCluster", "Pod") for each in inside.all(kind)]
    return {
        f"{each['kind']}/{each['metadata']['name']}": each["metadata"]["resourceVersion"] for each in found
    }


def reasons(inside: Namespace) -> Counter[str]:
    """Of the events about FineTuneJobs."""
    found = inside.all("Event")
    return Counter(event["reason"] for event in found if event["involvedObject"]["kind"] == KIND)


def test_a_new_job_gets_everything_it_needs_and_all_of_it_belongs_to_it(
    operator: Operator, inside: Namespace
) -> None:
    job = inside.create_job(labels={"kueue.x-k8s.io/queue-name": "team", "app": "ours"})

    again = operator.reconcile(job)

    metadata = job["metadata"]
    made = inside.children(metadata["uid"])
    name = child_name("job", metadata["uid"])
    assert [(each["kind"], each["metadata"]["name"]) for each in made] == [
        ("ConfigMap", name),
        ("ServiceAccount", name),
        ("Role", name),
        ("RoleBinding", name),
        ("NetworkPolicy", name),
        ("RayJob", f"{name}-1"),
    ]
    for each in made:
        [owner] = each["metadata"]["ownerReferences"]
        assert (owner["apiVersion"], owner["kind"], owner["name"], owner["uid"]) == (
            API_VERSION,
            KIND,
            "job",
            metadata["uid"],
        )
        assert owner["controller"] is True
    status = operator.status(job)
    assert (status.phase, status.ray_job_name, status.attempts) == (Phase.PENDING, f"{name}-1", 1)
    assert status.observed_generation == 1
    assert again is not None
    assert timedelta() < again <= timedelta(seconds=CONFIGURATION.resync_seconds)
    assert made[-1]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert reasons(inside) == {"Accepted": 1, "SpecRemark": 1, "ClusterRequested": 1}


def test_nothing_is_written_on_the_job_but_its_status(operator: Operator, inside: Namespace) -> None:
    job = inside.create_job()
    operator.settle(job)

    stored = inside.get(KIND, "job")

    assert {key: value for key, value in stored.items() if key not in ("metadata", "status")} == {
        key: value for key, value in job.items() if key not in ("metadata", "status")
    }
    changed = {key for key in stored["metadata"] if stored["metadata"][key] != job["metadata"].get(key)}
    assert changed == {"resourceVersion", "managedFields"}
    assert not {"finalizers", "annotations"} & stored["metadata"].keys()


def test_looking_again_writes_nothing_and_is_no_event(operator: Operator, inside: Namespace) -> None:
    job = inside.create_job()
    operator.settle(job)
    before, posted = versions(inside), reasons(inside)

    for _ in range(3):
        operator.later(5)
        operator.reconcile(job)
    operator.restart()
    operator.reconcile(job)

    assert versions(inside) == before
    assert reasons(inside) == posted


@pytest.mark.parametrize("spec", [{}, EVERYTHING], ids=["smallest", "everything"])
def test_everything_that_is_made_has_only_fields_that_the_server_knows(
    operator: Operator, inside: Namespace, monkeypatch: pytest.MonkeyPatch, spec: dict[str, JsonValue]
) -> None:
    made: list[KubernetesObject] = []

    async def noted(manifest: KubernetesObject) -> None:
        made.append(manifest)

    job = inside.create_job(spec=spec)
    monkeypatch.setattr(operator.api, "create", noted)
    operator.reconcile(job)

    kinds = [str(each["kind"]) for each in made]
    assert sorted(kinds) == sorted(kind for kind in CHILDREN if kind != "ServiceAccount" or not spec)
    assert kinds.index("Role") < kinds.index("RoleBinding"), "it could not be bound before"
    assert kinds[-1] == "RayJob"
    for manifest in made:
        resource = inside.dynamic.resources.get(api_version=manifest["apiVersion"], kind=manifest["kind"])
        query = [("fieldValidation", "Strict"), ("dryRun", "All")]
        stored = resource.create(body=manifest, namespace=inside.name, query_params=query).to_dict()
        for part in ("spec", "data", "rules", "roleRef", "subjects"):
            assert contains(stored.get(part), manifest.get(part)), (
                f"{manifest['kind']}.{part} is kept as it was sent"
            )


def contains(stored: object, sent: object) -> bool:
    """Whether all that was sent is there; defaults may have come to it."""
    match sent:
        case None:
            return True
        case dict():
            return isinstance(stored, dict) and all(
                contains(stored.get(key), value) for key, value in sent.items()
            )
        case list():
            return isinstance(stored, list) and len(stored) == len(sent) and all(map(contains, stored, sent))
        case _:
            return stored == sent


def succeed(world: World) -> Iterator[None]:
    """A job's life with one lost node; each step is something that happens to it."""
    yield
    world.kuberay_says("Initializing")
    yield
    world.kuberay_says("Running", "RUNNING")
    world.pods_are("Running")
    yield
    world.trainer_says(5)
    yield
    world.kuberay_says("Failed", "FAILED", reason="AppFailed")
    world.trainer_says(5, failure=Failure(failure_class=FailureClass.NODE_LOST, message="a node went away"))
    world.pods_are("Failed")
    yield
    world.operator.of_pods = []
    world.operator.later(11)
    yield
    world.kuberay_says("Running", "RUNNING")
    world.pods_are("Running")
    world.trainer_says(6, attempt=2)
    yield
    world.trainer_says(8, attempt=2)
    world.kuberay_says("Complete", "SUCCEEDED")
    yield
    world.operator.of_pods = []
    yield


def lived(operator: Operator, job: Object, *, steps: int) -> World:
    """The world of a job after so many steps of `succeed`, each of which the operator has seen."""
    world = World(operator, job)
    for _ in itertools.islice(succeed(world), steps):
        operator.settle(job)
    return world


def test_a_job_goes_through_its_phases(operator: Operator, inside: Namespace) -> None:
    job = inside.create_job()
    shown = [operator.settle(job) for _ in succeed(World(operator, job))]

    assert [status.phase for status in shown] == [
        Phase.PENDING,
        Phase.STARTING,
        Phase.STARTING,
        Phase.RUNNING,
        Phase.RETRYING,
        Phase.PENDING,
        Phase.RUNNING,
        Phase.SUCCEEDED,
        Phase.SUCCEEDED,
    ]
    running, ended = shown[3], shown[-1]
    assert running.progress is not None
    assert (running.progress.step, running.start_time) == (5, operator.now - timedelta(seconds=11))
    assert running.latest_checkpoint is not None
    assert running.latest_checkpoint.name == "epoch-0"
    assert ended.best_checkpoint is not None
    assert ended.model_path == ended.best_checkpoint.path == f"{ended.run_directory}/epoch-1"
    assert ended.attempts == 2
    assert ended.failure is None
    assert ended.completion_time == operator.now
    assert reasons(inside) == {
        "Accepted": 1,
        "SpecRemark": 1,
        "ClusterRequested": 2,
        "Running": 2,
        "CheckpointSaved": 2,
        "Retrying": 1,
        "Succeeded": 1,
    }


def test_a_job_that_has_ended_is_left_alone(operator: Operator, inside: Namespace) -> None:
    job = inside.create_job()
    for _ in succeed(World(operator, job)):
        operator.settle(job)
    before = versions(inside)

    operator.later(10 * 86400)

    assert operator.reconcile(job) is None
    assert versions(inside) == before


REMEMBERED = (
    "phase",
    "attempts",
    "ray_job_name",
    "run_directory",
    "plan",
    "progress",
    "checkpoints",
    "model_path",
    "accelerator_type",
)


@pytest.mark.parametrize("steps", [4, 5, 6, 7, 8, 9])
def test_a_status_that_is_wiped_is_found_again(operator: Operator, inside: Namespace, steps: int) -> None:
    job = inside.create_job()
    lived(operator, job, steps=steps)
    before, made = operator.settle(job), inside.children(job["metadata"]["uid"])
    inside.patch_status(KIND, "job", **dict.fromkeys(inside.get(KIND, "job")["status"]))
    operator.restart()

    after = operator.settle(job)

    for name in REMEMBERED:
        assert getattr(after, name) == getattr(before, name), name
    assert inside.children(job["metadata"]["uid"]) == made


def outcome(operator: Operator, world: World) -> dict[str, object]:
    """What is there at the end, without UIDs and versions."""

    def plain(text: str) -> str:
        return text.replace(world.uid, "UID").replace(world.uid[:8], "UID").replace(world.name, "JOB")

    status = operator.status(world.job).model_dump(mode="json")
    return {
        "status": json.loads(plain(json.dumps(status))),
        "children": sorted(
            f"{each['kind']}/{plain(each['metadata']['name'])}" for each in world.inside.children(world.uid)
        ),
    }


class Interrupting:
    """Fails at the calls that a test chooses, counted from 1 since the last failure."""

    def __init__(self, recording_api: RecordingApi) -> None:
        self._telling = recording_api
        self._count = 0
        self.failures = 0

    def fail(
        self, at: int, error: Exception, *, writes_only: bool = False, again: bool = False
    ) -> Callable[[str, bool], None]:
        """To be called for each call."""

        def interrupt(call: str, done: bool) -> None:
            self._count += not writes_only or (done and not call.startswith(("get ", "list ")))
            if 0 < at == self._count and (again or not self.failures):
                self._count = 0
                self.failures += 1
                raise error

        return interrupt

    def stop(self) -> None:
        self._telling.after = lambda *_: None


@pytest.mark.parametrize(
    ("death", "prepare_first"), [("dies after", False), ("has no answer to", False), ("dies after", True)]
)
def test_an_operator_may_fail_at_any_call_of_a_job_s_beginning(
    inside: Namespace, recording_api: RecordingApi, runner: asyncio.Runner, death: str, prepare_first: bool
) -> None:
    spec: dict[str, JsonValue] = {"run_policy": {"prepare_first": prepare_first}}

    def begin(name: str, fatal: int) -> tuple[dict[str, object], Counter[str], bool]:
        operator = Operator(inside, recording_api, runner, CONFIGURATION)
        operator.now = NOW
        world = World(operator, inside.create_job(name, spec))
        interrupting = Interrupting(recording_api)
        recording_api.after = interrupting.fail(
            fatal, DiedError() if death == "dies after" else ConnectionError("no answer")
        )
        with suppress(DiedError, ConnectionError):
            operator.reconcile(world.job)
        interrupting.stop()
        if death == "dies after":
            operator.restart()
        operator.settle(world.job)
        posted = Counter(
            event["reason"] for event in inside.all("Event") if event["involvedObject"]["uid"] == world.uid
        )
        return outcome(operator, world), posted, bool(interrupting.failures)

    expected, posted, _ = begin("undisturbed", 0)
    for fatal in itertools.count(1):
        found, also_posted, failed = begin(f"job-{fatal}", fatal)
        assert found == expected, f"call {fatal}"
        assert not also_posted - posted, f"call {fatal}: no event is posted twice"
        if not failed:
            break
    assert fatal > 12
    assert also_posted == posted


@pytest.mark.parametrize("error", [DiedError(), ConnectionError("no answer")], ids=["dies", "has no answer"])
@pytest.mark.parametrize("writes", [1, 2, 3])
def test_an_operator_that_fails_after_every_few_writes_brings_a_job_to_the_same_end(
    inside: Namespace, recording_api: RecordingApi, runner: asyncio.Runner, writes: int, error: Exception
) -> None:
    def live(name: str, at: int) -> tuple[dict[str, object], Counter[str], int]:
        operator = Operator(inside, recording_api, runner, CONFIGURATION)
        operator.now = NOW
        world = World(operator, inside.create_job(name))
        interrupting = Interrupting(recording_api)
        for _ in succeed(world):
            recording_api.after = interrupting.fail(at, error, writes_only=True, again=True)
            for _ in range(20):
                try:
                    operator.settle(world.job)
                    break
                except DiedError:
                    operator.restart()
                except ConnectionError:
                    pass
            interrupting.stop()
        posted = Counter(
            event["reason"] for event in inside.all("Event") if event["involvedObject"]["uid"] == world.uid
        )
        return outcome(operator, world), posted, interrupting.failures

    expected, posted, _ = live("undisturbed", 0)
    found, also_posted, failures = live("disturbed", writes)

    assert found == expected
    assert failures > 8 / writes
    assert not also_posted - posted, "no event is posted twice"


@pytest.mark.parametrize("steps", range(1, 9))
def test_an_operator_whose_watches_tell_nothing_any_more_makes_no_second_ray_job_and_ends_nothing_falsely(
    operator: Operator, inside: Namespace, steps: int
) -> None:
    """What it knows is old by one step of the job's life, or by all steps from there on."""
    job = inside.create_job()
    world = World(operator, job)
    life = succeed(world)
    for _ in itertools.islice(life, steps):
        operator.settle(job)
    late = Operator(inside, operator.api, operator._runner, CONFIGURATION)
    late.now, late.of_pods = operator.now, list(operator.of_pods)
    late.watch()
    late.watches_are_late = True

    for _ in itertools.chain([None], life):
        shown, made = operator.settle(job), world.ray_jobs
        late.now = operator.now
        for _ in range(3):
            with suppress(ApiRefusedError):
                late.reconcile(job)
        assert [each["metadata"]["uid"] for each in world.ray_jobs] == [
            each["metadata"]["uid"] for each in made
        ]
        after = operator.settle(job)
        assert (after.phase, after.attempts) == (shown.phase, shown.attempts)
    assert operator.status(job).phase is Phase.SUCCEEDED
    assert reasons(inside)["ClusterRequested"] == 2


def test_a_late_watch_makes_nothing_for_a_job_that_was_suspended_meanwhile(
    operator: Operator, inside: Namespace
) -> None:
    job = inside.create_job()
    operator.settle(job)
    operator.watches_are_late = True
    other = Operator(inside, operator.api, operator._runner, CONFIGURATION)
    inside.patch(KIND, "job", spec={"suspend": True})
    other.settle(job)
    assert inside.all("RayJob") == []

    for kind in ("RayJob", "ConfigMap"):  # only the watch of jobs is late
        for uid in operator.caches.versions(kind, inside.name):
            operator.caches.gone(kind, inside.name, uid)
    operator.reconcile(job)

    assert inside.all("RayJob") == []
    assert operator.status(job).phase is Phase.SUSPENDED


def test_a_late_watch_deletes_nothing_of_a_job_that_goes_on_meanwhile(
    operator: Operator, inside: Namespace
) -> None:
    job = inside.create_job()
    operator.settle(job)
    inside.patch(KIND, "job", spec={"suspend": True})
    operator.settle(job)
    operator.watches_are_late = True
    other = Operator(inside, operator.api, operator._runner, CONFIGURATION)
    inside.patch(KIND, "job", spec={"suspend": False})
    other.settle(job)
    [made] = inside.all("RayJob")

    operator.caches.put("RayJob", made)  # only the watch of jobs is late
    with suppress(ApiRefusedError):
        operator.reconcile(job)
    operator.settle(job)

    assert inside.all("RayJob") == [made]
    assert operator.status(job).phase is Phase.PENDING


def test_a_trainer_whose_word_no_watch_has_told_is_not_taken_for_silent(
    operator: Operator, inside: Namespace
) -> None:
    job = inside.create_job()
    world = lived(operator, job, steps=3)
    operator.watches_are_late = True
    world.trainer_says(5)

    operator.later(86400)
    operator.reconcile(job)

    assert operator.status(job).phase is Phase.RUNNING
    assert len(inside.all("RayJob")) == 1


def test_after_a_conflict_the_job_is_read_again_however_late_its_watch_is(
    operator: Operator, inside: Namespace
) -> None:
    job = inside.create_job()
    operator.watch()
    operator.watches_are_late = True
    inside.patch(KIND, "job", spec={"suspend": True})

    with pytest.raises(ApiRefusedError, match="409"):
        operator.reconcile(job)
    operator.reconcile(job)

    assert operator.status(job).phase is Phase.SUSPENDED
    assert inside.all("RayJob") == []


def test_what_a_job_costs_in_calls(operator: Operator, inside: Namespace) -> None:
    job = inside.create_job(spec={"lora_config": {"r": 8}})
    world = World(operator, job)
    operator.watch()
    operator.watches_are_late = True
    operator.reconcile(job)
    assert Counter(call.split()[0] for call in operator.api.done) == {"list": 4, "create": 8, "update": 1}

    world.kuberay_says("Running", "RUNNING")
    world.pods_are("Running")
    world.trainer_says(5)
    operator.watch()
    operator.api.done.clear()
    operator.reconcile(job)
    operator.reconcile(job)
    assert Counter(operator.api.done) == {"update finetunejobs": 1, "create events": 2}

    world.trainer_says(6)
    operator.watch()
    operator.api.done.clear()
    operator.reconcile(job)
    operator.reconcile(job)
    assert operator.api.done == ["update finetunejobs"]
    operator.later(3600)
    operator.reconcile(job)
    assert operator.api.done == ["update finetunejobs"], "an hour in which nothing happens"


PREPARED_FIRST: dict[str, JsonValue] = {"run_policy": {"prepare_first": True}}


class Preparing:
    """A job that is prepared: Kubernetes' own controller makes the pod of the Job, and a test ends it."""

    def __init__(self, operator: Operator, inside: Namespace) -> None:
        self.operator, self.inside = operator, inside
        self.job = inside.create_job(spec=PREPARED_FIRST)
        self.world = World(operator, self.job)
        self.status = operator.settle(self.job)
        self.name = f"{self.world.config_map}-1-prepare"
        wait_for("the pod", self._pods, seconds=30, seen=lambda: str(inside.get("Job", self.name)))

    def _pods(self) -> list[Object]:
        return self.inside.all("Pod", f"finetune.dev/role=prepare,{JOB_UID}={self.world.uid}")

    def says(self, *, plan: Plan | None = None, failure: Failure | None = None) -> None:
        record = ProgressRecord(preparing=True, plan=plan, failure=failure)
        self.world.record_is(record.model_dump_json(by_alias=True, exclude_none=True))

    def pod_is(self, phase: str) -> None:
        """As the kubelet would say, and the watch report it."""
        [pod] = self._pods()
        changed = self.inside.patch_status("Pod", pod["metadata"]["name"], phase=phase)
        self.operator.of_pods = [Pod.model_validate(changed)]

    def ends(self, condition: str) -> None:
        """Until the Job's controller has seen the end of its pod."""
        wait_for(
            f"the Job to be {condition}",
            lambda: condition in {each["type"] for each in self._job()["status"].get("conditions") or []},
            seconds=30,
            seen=lambda: str(self._job()),
        )

    def _job(self) -> Object:
        return self.inside.get("Job", self.name)


def test_a_job_that_is_prepared_first_has_no_ray_job_before_it_is(
    operator: Operator, inside: Namespace
) -> None:
    preparing = Preparing(operator, inside)
    assert preparing.status.phase is Phase.PREPARING
    kinds = [each["kind"] for each in inside.children(preparing.world.uid)]
    assert kinds == [*CHILDREN[:-1], "Job"]

    preparing.says()
    preparing.pod_is("Running")
    assert operator.settle(preparing.job).message == (
        "data and model are read and checked; no device is held meanwhile"
    )
    preparing.says(plan=PLAN)
    assert "is prepared" in (operator.settle(preparing.job).message or "")
    assert inside.all("RayJob") == [], "its pod may still write"

    preparing.pod_is("Succeeded")
    status = operator.settle(preparing.job)
    assert (status.phase, status.plan, status.attempts) == (Phase.PENDING, PLAN, 1)
    assert len(inside.all("RayJob")) == 1
    preparing.ends("Complete")
    operator.settle(preparing.job)
    assert inside.exists("Job", preparing.name), "its log stays"
    assert reasons(inside) == {
        "Accepted": 1,
        "SpecRemark": 1,
        "Preparing": 1,
        "Prepared": 1,
        "ClusterRequested": 1,
    }


def test_what_is_wrong_with_a_job_ends_it_without_any_ray_job(operator: Operator, inside: Namespace) -> None:
    preparing = Preparing(operator, inside)
    preparing.says(failure=Failure(failure_class=FailureClass.INVALID_DATA, message="train.jsonl:17: no"))
    preparing.pod_is("Failed")
    preparing.ends("Failed")

    status = operator.settle(preparing.job)

    assert (status.phase, status.message) == (Phase.FAILED, "train.jsonl:17: no")
    assert inside.all("RayJob") == []
    assert inside.exists("Job", preparing.name), "its log stays"
    assert operator.reconcile(preparing.job) is None


def test_a_pod_that_is_lost_while_it_prepares_has_a_second_attempt_prepare(
    operator: Operator, inside: Namespace
) -> None:
    preparing = Preparing(operator, inside)
    preparing.says()
    preparing.pod_is("Running")
    operator.settle(preparing.job)
    inside.delete("Pod", str(operator.of_pods[0].name))
    operator.of_pods = []
    preparing.ends("Failed")

    status = operator.settle(preparing.job)
    assert status.phase is Phase.RETRYING
    assert status.failure is not None
    assert status.failure.failure_class is FailureClass.NODE_LOST
    operator.now = datetime.now(UTC) + timedelta(seconds=30)
    status = operator.settle(preparing.job)

    assert (status.phase, status.attempts) == (Phase.PREPARING, 2)
    assert [each["metadata"]["name"] for each in inside.all("Job")] == [
        preparing.name,
        f"{preparing.world.config_map}-2-prepare",
    ]
    assert inside.all("RayJob") == []


def test_a_suspended_job_is_not_prepared_any_more_and_later_from_the_beginning(
    operator: Operator, inside: Namespace
) -> None:
    preparing = Preparing(operator, inside)
    inside.patch(KIND, "job", spec={"suspend": True})
    operator.settle(preparing.job)
    wait_for("the Job to go", lambda: not inside.all("Job"), seconds=30)
    assert operator.settle(preparing.job).message == "suspended; suspend: false begins it"

    inside.patch(KIND, "job", spec={"suspend": False})

    def begins_again() -> bool:
        operator.settle(preparing.job)
        return bool(inside.all("Job"))

    wait_for("the Job, once the pod of the first is gone", begins_again, seconds=30)

    assert operator.status(preparing.job).phase is Phase.PREPARING
    assert operator.status(preparing.job).attempts == 1


def test_a_status_that_is_wiped_while_preparing_is_found_again(operator: Operator, inside: Namespace) -> None:
    preparing = Preparing(operator, inside)
    preparing.says()
    preparing.pod_is("Running")
    before = operator.settle(preparing.job)
    inside.patch_status(KIND, "job", **dict.fromkeys(inside.get(KIND, "job")["status"]))
    operator.restart()

    after = operator.settle(preparing.job)

    for name in REMEMBERED:
        assert getattr(after, name) == getattr(before, name), name
    assert len(inside.all("Job")) == 1


def test_a_job_that_is_deleted_while_preparing_leaves_nothing(operator: Operator, inside: Namespace) -> None:
    preparing = Preparing(operator, inside)
    inside.delete(KIND, "job")

    wait_for(
        "everything to go",
        lambda: not inside.children(preparing.world.uid) and not inside.all("Pod"),
        seconds=90,
        seen=lambda: str(versions(inside)),
    )
    assert operator.reconcile(preparing.job) is None


def test_a_job_of_somebody_else_is_not_taken_for_the_one_that_prepares(
    operator: Operator, inside: Namespace
) -> None:
    job = inside.create_job(spec=PREPARED_FIRST)
    name = f"{child_name('job', job['metadata']['uid'])}-1-prepare"
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}
    inside.create("Job", name, spec={"suspend": True, "template": template})

    with pytest.raises(NotOursError, match=f"Job {name} is there and is not this job's"):
        operator.reconcile(job)


def quota(inside: Namespace, resource: str) -> None:
    """Nothing of a kind may be made in the namespace any more."""
    inside.create("ResourceQuota", "nothing", spec={"hard": {resource: "0"}})
    hard = {"hard": {resource: "0"}, "used": {resource: "0"}}

    def counts() -> bool:
        # Its own controller finds out about new kinds only now and then.
        inside.patch_status("ResourceQuota", "nothing", **hard)
        return bool(inside.get("ResourceQuota", "nothing")["status"].get("hard"))

    wait_for("the quota to count", counts, seconds=30)


@pytest.mark.parametrize(
    ("kind", "resource"), [("ConfigMap", "count/configmaps"), ("RayJob", "count/rayjobs.ray.io")]
)
def test_a_job_that_a_quota_forbids_says_so_and_goes_on_when_it_may(
    operator: Operator, inside: Namespace, kind: str, resource: str
) -> None:
    quota(inside, resource)
    job = inside.create_job()

    status = operator.settle(job)

    assert status.phase is Phase.PENDING
    assert f"the API server refuses {kind} " in (status.message or "")
    assert f"exceeded quota: nothing, requested: {resource}=1" in (status.message or "")
    ready = next(each for each in status.conditions if each.type == "ClusterReady")
    assert (ready.status, ready.reason) == ("False", "PodsRefused")
    assert inside.all(kind, JOB_UID) == []

    inside.delete("ResourceQuota", "nothing")
    # Admission sees the quota go by a watch of its own.
    wait_for("the RayJob", lambda: operator.reconcile(job) and inside.all("RayJob"), seconds=30)

    status = operator.settle(job)
    assert "waiting for KubeRay to take up RayJob" in (status.message or "")
    assert [each["kind"] for each in inside.children(job["metadata"]["uid"])] == list(CHILDREN)
    assert reasons(inside)["ClusterRequested"] == 1


def test_a_refusal_is_told_once_and_asked_again_at_intervals(operator: Operator, inside: Namespace) -> None:
    """Each write wakes whoever watches: a status that went to and fro would be an endless loop."""
    quota(inside, "count/rayjobs.ray.io")
    job = inside.create_job()
    operator.settle(job)
    before, posted = versions(inside), reasons(inside)

    for _ in range(3):
        again = operator.reconcile(job)
        assert again is not None
        assert timedelta() < again <= REFUSED_AGAIN_AFTER
    operator.restart()
    operator.reconcile(job)

    assert versions(inside) == before
    assert reasons(inside) == posted


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"env": [{"value": "nameless"}]}, "name: Required value"),
        ({"env": [{"name": 5}]}, 'name: Invalid value: "integer"'),
        ({"volumes": [{"name": "a", "hostPath": "/"}]}, 'hostPath: Invalid value: "string"'),
        ({"tolerations": [{"key": ["a"]}]}, 'tolerations[0].key: Invalid value: "array"'),
        ({"affinity": {"nodeAffinity": 1}}, 'nodeAffinity: Invalid value: "integer"'),
        ({"affinity": {"podAffinity": 1}}, 'podAffinity: Invalid value: "integer"'),
        (
            {"env": [{"value": "x" * 200, "valueFrom": number} for number in range(256)]},
            "valueFrom: Invalid value",
        ),
    ],
    ids=[
        "env without a name",
        "env with a number",
        "volume",
        "toleration",
        "node affinity",
        "pod affinity",
        "very many",
    ],
)
def test_what_the_server_will_never_take_is_a_wrong_spec_in_its_words(
    operator: Operator, inside: Namespace, cluster: dict[str, JsonValue], words: str
) -> None:
    job = inside.create_job(spec={"cluster": cluster})

    status = operator.settle(job)

    assert status.phase is Phase.FAILED
    assert status.failure is not None
    assert status.failure.failure_class is FailureClass.INVALID_SPEC
    assert "the API server refuses RayJob" in status.failure.message
    assert words in status.failure.message
    assert inside.all("RayJob") == []
    assert reasons(inside)["Failed"] == 1
    before = versions(inside)
    assert operator.reconcile(job) is None
    assert versions(inside) == before


def test_a_wrong_spec_makes_nothing(operator: Operator, inside: Namespace) -> None:
    job = inside.create_job(spec={"worker_resources": {"accelerator_type:NO-SUCH": 1}})

    status = operator.settle(job)

    assert status.phase is Phase.FAILED
    assert status.failure is not None
    assert "NO-SUCH" in status.failure.message
    assert inside.children(job["metadata"]["uid"]) == []


def test_somebody_elses_write_between_reading_and_writing_is_not_lost(
    operator: Operator, inside: Namespace
) -> None:
    job = inside.create_job()

    def patch(call: str) -> None:
        if call == "update finetunejobs":
            operator.api.before = lambda _: None
            inside.patch(KIND, "job", metadata={"labels": {"team": "ours"}}, spec={"suspend": True})

    operator.api.before = patch
    with pytest.raises(ApiRefusedError, match="409"):
        operator.reconcile(job)
    assert inside.children(job["metadata"]["uid"]) == [], "nothing is made that the status does not show"

    assert operator.settle(job).phase is Phase.SUSPENDED
    stored = inside.get(KIND, "job")
    assert stored["metadata"]["labels"] == {"team": "ours"}
    assert stored["spec"]["suspend"] is True
    assert inside.all("RayJob") == []


def test_a_conflict_while_something_is_made_is_tried_again(operator: Operator, inside: Namespace) -> None:
    job = inside.create_job()

    def conflict(call: str) -> None:
        if call == "create roles":
            operator.api.before = lambda _: None
            raise ApiRefusedError(409, "Operation cannot be fulfilled on resourcequotas", "Conflict")

    operator.api.before = conflict
    with pytest.raises(ApiRefusedError, match="resourcequotas"):
        operator.reconcile(job)

    assert operator.settle(job).phase is Phase.PENDING
    assert [each["kind"] for each in inside.children(job["metadata"]["uid"])] == list(CHILDREN)


def test_events_that_cannot_be_posted_are_counted_and_keep_nothing_back(
    operator: Operator, inside: Namespace
) -> None:
    def refuse(call: str) -> None:
        if call == "create events":
            raise ConnectionError("no answer")

    lost = REGISTRY.get_sample_value("finetune_events_lost_total") or 0.0
    operator.api.before = refuse
    job = inside.create_job()

    operator.settle(job)

    assert [each["kind"] for each in inside.children(job["metadata"]["uid"])] == list(CHILDREN)
    assert REGISTRY.get_sample_value("finetune_events_lost_total") == lost + 3


def test_a_suspended_job_gives_its_ray_job_back_and_goes_on_with_another_one(
    operator: Operator, inside: Namespace
) -> None:
    job = inside.create_job()
    operator.settle(job)
    [first] = inside.all("RayJob")

    inside.patch(KIND, "job", spec={"suspend": True})
    suspended = operator.settle(job)
    assert inside.all("RayJob") == []
    inside.patch(KIND, "job", spec={"suspend": False})
    operator.settle(job)

    assert (suspended.phase, suspended.ray_job_name) == (Phase.SUSPENDED, None)
    [second] = inside.all("RayJob")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert operator.status(job).observed_generation == 3


def test_a_ray_job_that_somebody_deleted_is_made_again(operator: Operator, inside: Namespace) -> None:
    job = inside.create_job()
    operator.settle(job)
    [first] = inside.all("RayJob")

    inside.delete("RayJob", first["metadata"]["name"])
    operator.settle(job)

    [second] = inside.all("RayJob")
    assert second["metadata"]["name"] == first["metadata"]["name"]
    assert operator.status(job).attempts == 1


def a_pod(world: World, name: str = "left") -> Object:
    """A worker of an earlier cluster; there is no node that could run it."""
    labels = {JOB_UID: world.uid, "ray.io/node-type": "worker"}
    container = {"name": "worker", "image": "registry.test/trainer:1.0"}
    wait_for("the service account", lambda: world.inside.exists("ServiceAccount", "default"), seconds=30)
    return world.inside.create(
        "Pod", name, metadata={"name": name, "labels": labels}, spec={"containers": [container]}
    )


HEAD_ONLY = {
    "headGroupSpec": {
        "rayStartParams": {},
        "template": {"spec": {"containers": [{"name": "head", "image": "a"}]}},
    }
}


def a_cluster(world: World, name: str = "left") -> Object:
    return world.inside.create(
        "RayCluster", name, metadata={"name": name, "labels": {JOB_UID: world.uid}}, spec=HEAD_ONLY
    )


@pytest.mark.parametrize("make", [a_pod, a_cluster])
def test_two_clusters_never_work_on_one_job_even_when_no_watch_has_told_of_the_first(
    operator: Operator, inside: Namespace, make: Callable[[World], Object]
) -> None:
    job = inside.create_job()
    left = make(World(operator, job))

    assert operator.settle(job).message is not None
    assert "left" in (operator.status(job).message or "")
    assert inside.all("RayJob") == []

    inside.dynamic.resources.get(api_version=left["apiVersion"], kind=left["kind"]).delete(
        name="left", namespace=inside.name, body={"gracePeriodSeconds": 0}
    )
    operator.settle(job)
    assert len(inside.all("RayJob")) == 1


def test_what_only_a_watch_believes_in_is_not_waited_for(operator: Operator, inside: Namespace) -> None:
    """A watch that broke off does not report what was deleted meanwhile."""
    job = inside.create_job()
    labels = {JOB_UID: job["metadata"]["uid"], "ray.io/node-type": "worker"}
    gone = {"metadata": {"name": "gone", "uid": "gone", "labels": labels}}
    operator.of_pods = [Pod.model_validate({**gone, "status": {"phase": "Running"}})]
    operator.of_clusters = [RayCluster.model_validate(gone)]

    operator.settle(job)

    assert len(inside.all("RayJob")) == 1


def test_another_attempt_does_not_wait_for_what_only_a_watch_believes_in(
    operator: Operator, inside: Namespace
) -> None:
    job = inside.create_job()
    world = lived(operator, job, steps=5)
    assert operator.status(job).phase is Phase.RETRYING

    world.pods_are("Running")
    operator.later(60)
    operator.settle(job)

    assert [each["metadata"]["name"] for each in world.ray_jobs] == [
        f"{world.config_map}-1",
        f"{world.config_map}-2",
    ]


def test_a_record_that_is_nonsense_is_shown_as_such_and_ends_nothing(
    operator: Operator, inside: Namespace
) -> None:
    job = inside.create_job()
    world = lived(operator, job, steps=3)

    world.record_is('{"version": 1, "progress": "all of it"}')
    status = operator.settle(job)
    assert status.phase is Phase.STARTING
    assert "the trainer's progress record is not shown" in (status.message or "")

    world.trainer_says(5)
    assert operator.settle(job).phase is Phase.RUNNING


def test_a_trainer_that_goes_to_and_fro_does_not_fill_the_cluster_with_events(
    operator: Operator, inside: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_limit, "BURST", 3)
    lost = REGISTRY.get_sample_value("finetune_events_lost_total") or 0.0
    job = inside.create_job()
    world = lived(operator, job, steps=3)

    for _ in range(5):
        world.trainer_says(3)
        assert operator.settle(job).message == "training: step 3 of 8, epochs 0/2"
        world.record_is("[]")
        assert "is not shown" in (operator.settle(job).message or "")

    assert reasons(inside)["RecordInvalid"] == 3
    assert REGISTRY.get_sample_value("finetune_events_lost_total") == lost + 2
    world.trainer_says(3, failure=Failure(failure_class=FailureClass.INVALID_DATA, message="no"))
    world.kuberay_says("Failed", "FAILED", reason="AppFailed")
    assert operator.settle(job).phase is Phase.FAILED
    assert reasons(inside)["Failed"] == 1, "the end is always posted"


def test_a_trainer_that_hides_its_record_from_the_watch_does_not_make_the_watch_look_silent(
    operator: Operator, inside: Namespace
) -> None:
    """It may patch its config map, and with it the label by which the operator watches."""
    job = inside.create_job()
    world = World(operator, job)
    operator.settle(job)
    hidden = inside.patch("ConfigMap", world.config_map, metadata={"labels": {JOB_UID: None}})
    operator.freshness.forget(hidden["metadata"]["uid"])  # what a watch by label says is that it is gone
    operator.settle(job)
    operator.restart()
    operator.settle(job)

    for kind in (KIND, "RayJob"):
        for each in inside.all(kind):
            operator.freshness.watched(each["metadata"]["uid"], each["metadata"]["resourceVersion"])
    operator.later(STALE_SECONDS + 1)

    assert not operator.freshness.is_stale()


def test_a_watch_that_tells_nothing_is_noticed(operator: Operator, inside: Namespace) -> None:
    operator.settle(inside.create_job())

    operator.later(STALE_SECONDS + 1)

    assert operator.freshness.is_stale()


def test_a_job_of_the_past_is_not_taken_for_the_one_of_its_name(
    operator: Operator, inside: Namespace
) -> None:
    old = inside.create_job()
    operator.settle(old)
    inside.delete(KIND, "job")
    new = inside.create_job()

    assert operator.reconcile(old) is None
    operator.settle(new)

    uids = {each["metadata"]["uid"]: World(operator, each) for each in (old, new)}
    assert child_name("job", old["metadata"]["uid"]) != child_name("job", new["metadata"]["uid"])
    assert len(uids[new["metadata"]["uid"]].ray_jobs) == 1
    assert (
        operator.status(new).run_directory
        == f"pvc://finetune/runs/{inside.name}/job-{new['metadata']['uid']}"
    )


def test_a_job_that_has_ended_is_deleted_when_its_time_is_over(operator: Operator, inside: Namespace) -> None:
    job = inside.create_job(spec={"run_policy": {"ttl_seconds_after_finished": 60}})
    for _ in succeed(World(operator, job)):
        operator.settle(job)
    assert operator.reconcile(job) == timedelta(seconds=60)

    operator.later(59)
    operator.reconcile(job)
    assert inside.exists(KIND, "job")
    operator.later(1)
    operator.reconcile(job)

    assert not inside.exists(KIND, "job")
    assert operator.reconcile(job) is None


def test_everything_of_a_deleted_job_is_collected(operator: Operator, inside: Namespace) -> None:
    job = inside.create_job()
    operator.settle(job)
    uid = job["metadata"]["uid"]
    assert len(inside.children(uid)) == len(CHILDREN)

    inside.delete(KIND, "job")

    wait_for(
        "everything to go", lambda: not inside.children(uid), seconds=90, seen=lambda: str(versions(inside))
    )
    assert operator.reconcile(job) is None


def test_a_deleted_job_holds_no_devices_when_kuberay_does_not_answer(
    operator: Operator, inside: Namespace
) -> None:
    job = inside.create_job()
    world = World(operator, job)
    operator.settle(job)
    name = world.ray_job
    inside.patch("RayJob", name, metadata={"finalizers": ["ray.io/rayjob-finalizer"]})
    cluster = a_cluster(world, "held")
    operator.of_clusters = [RayCluster.model_validate(cluster)]
    inside.delete(KIND, "job")
    inside.delete("RayJob", name)

    again = operator.reconcile(job)
    assert inside.exists("RayCluster", "held"), "KubeRay has its time"
    assert again is not None
    assert again <= RELEASE_AFTER + timedelta(seconds=60)
    operator.now = datetime.now(UTC) + RELEASE_AFTER + timedelta(seconds=1)
    operator.reconcile(job)

    assert not inside.exists("RayCluster", "held")
    operator.of_clusters = []
    assert operator.reconcile(job) is None
    inside.patch("RayJob", name, metadata={"finalizers": None})


@pytest.fixture
def trainer(served: ControlPlane, operator: Operator, inside: Namespace) -> Iterator[tuple[World, Namespace]]:
    """A job, and its namespace with the rights that its head has."""
    world = World(operator, inside.create_job())
    operator.settle(world.job)
    with new_sync_client(str(served.kubeconfig)) as client:
        # The API groups are looked up with the rights of an administrator.
        dynamic = DynamicClient(client)
        client.set_default_header(
            "Impersonate-User", f"system:serviceaccount:{inside.name}:{world.config_map}"
        )
        yield world, Namespace(dynamic, inside.name)


def test_the_trainer_may_read_and_patch_its_record(trainer: tuple[World, Namespace]) -> None:
    world, own = trainer

    def written() -> bool:
        with suppress(ForbiddenError):
            own.patch("ConfigMap", world.config_map, data={RECORD_KEY: "{}"})
            return True
        return False

    wait_for("the role to count", written, seconds=10, every=0.05)

    assert own.get("ConfigMap", world.config_map)["data"][RECORD_KEY] == "{}"


OUT_OF_BOUNDS: dict[str, Callable[[Namespace, World], object]] = {
    "another config map": lambda own, _: own.get("ConfigMap", "kube-root-ca.crt"),
    "another config map's data": lambda own, _: own.patch(
        "ConfigMap", "kube-root-ca.crt", data={"ca.crt": ""}
    ),
    "the config maps": lambda own, _: own.all("ConfigMap"),
    "the job's config maps": lambda own, world: own.all("ConfigMap", f"{JOB_UID}={world.uid}"),
    "a new config map": lambda own, _: own.create("ConfigMap", "more"),
    "its config map's end": lambda own, world: own.delete("ConfigMap", world.config_map),
    "the secrets": lambda own, _: own.all("Secret"),
    "a secret": lambda own, _: own.get("Secret", "hub"),
    "the pods": lambda own, _: own.all("Pod"),
    "a new pod": lambda own, _: own.create("Pod", "more", spec={"containers": [{"name": "a", "image": "a"}]}),
    "its service account": lambda own, world: own.get("ServiceAccount", world.config_map),
    "the job": lambda own, _: own.get(KIND, "job"),
    "the job's spec": lambda own, _: own.patch(KIND, "job", spec={"suspend": True}),
    "the job's status": lambda own, _: own.patch_status(KIND, "job", phase="Succeeded"),
    "the RayJob": lambda own, world: own.get("RayJob", f"{world.config_map}-1"),
    "the RayJob's end": lambda own, world: own.delete("RayJob", f"{world.config_map}-1"),
    "the Ray clusters": lambda own, _: own.all("RayCluster"),
    "its own role": lambda own, world: own.patch("Role", world.config_map, rules=[]),
    "an event": lambda own, _: own.create("Event", "more", involvedObject={"namespace": own.name}),
    "config maps of another namespace": lambda own, _: Namespace(own.dynamic, "default").all("ConfigMap"),
    "a config map of its name elsewhere": (
        lambda own, world: Namespace(own.dynamic, "kube-system").get("ConfigMap", world.config_map)
    ),
}


def test_the_trainer_may_do_nothing_else(trainer: tuple[World, Namespace]) -> None:
    world, own = trainer
    user = f"system:serviceaccount:{own.name}:{world.config_map}"

    def is_forbidden(attempt: Callable[[Namespace, World], object]) -> bool:
        try:
            attempt(own, world)
        except ApiException as error:
            return error.status == 403 and user in str(error.body)
        return False

    assert [what for what, attempt in OUT_OF_BOUNDS.items() if not is_forbidden(attempt)] == []
