"""What the operator does with a thousand jobs, on an API server of this machine: how fast, and at what cost.

    python -m bench.many_jobs [--parts burst running-500 running-1000 finished] [--small] [--json FILE]

Run it from the project's folder, in the environment of the tests, on a machine that does nothing else. It
starts etcd, the API server and the controller manager as the tests do, and the operator as a process beside
them: all of them, and the benchmark, share the machine. KubeRay and trainers do not run: the benchmark
writes what they would, and looks from outside at what comes of it.

    burst      jobs are applied at once, until all have a RayJob; and beside it a plain client, which makes
               the same FineTuneJobs and, after each, what the operator made for it; and one that also writes
               the status of each, and its events
    running    jobs train, each reports every 10 s; now and then one saves a checkpoint, and others begin;
               with 1,000 jobs, after that none of them reports any more
    finished   the operator starts among jobs that have ended

API calls are counted in the API server's audit log, processor time and memory are the operating system's.
Each line of the table has what is wanted, and for ratios both sides; the benchmark fails for no figure.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import aiohttp
import psutil
import yaml

from devcluster.control_plane import ControlPlane, free_address
from devcluster.processes import Processes
from devcluster.programs import find, kuberay_manifests
from finetune_api.assignment import RECORD_KEY
from finetune_api.crd import PLURAL, crd
from finetune_api.manifest import API_VERSION, KIND
from finetune_api.status import Checkpoint, Plan, Progress, ProgressRecord
from finetune_operator.names import JOB_UID, child_name, ray_job_name

Object = dict[str, Any]
"""A Kubernetes object."""

REPORT_SECONDS = 10.0
"""Between two records of a job."""
BEFORE_SECONDS = 2 * REPORT_SECONDS
"""For how long jobs report before anything is measured: what is shown of them by then is not from when they
were begun, all at once."""
AT_ONCE = 16
"""Requests that the plain client, and whoever applies the jobs, has under way at a time."""
SPEC: Object = {
    "model_id": "pvc://finetune/models/m",
    "train_path": "pvc://finetune/data/train.jsonl",
    "storage": {"path": "pvc://finetune/runs"},
    "lora_config": {"r": 8},
    "num_devices": 2,
    "worker_resources": {"accelerator_type:A10G": 0.001},
    "run_policy": {"prepare_first": False},
}
STEPS = 100_000
PLAN = Plan(
    rows=800_000,
    validation_rows=1000,
    tokens=10**9,
    truncated_rows=0,
    context_length=4096,
    effective_batch_size=8,
    steps_per_epoch=1000,
    total_epochs=100,
    total_steps=STEPS,
    checkpoint_epochs=list(range(100)),
    trainable_parameters=10**7,
    total_parameters=10**9,
)
PATHS = {
    KIND: f"apis/{API_VERSION}/namespaces/{{}}/{PLURAL}",
    "RayJob": "apis/ray.io/v1/namespaces/{}/rayjobs",
    "ConfigMap": "api/v1/namespaces/{}/configmaps",
    "Event": "api/v1/namespaces/{}/events",
    "ServiceAccount": "api/v1/namespaces/{}/serviceaccounts",
    "Role": "apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "NetworkPolicy": "apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
}
CHILDREN = ("ConfigMap", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "RayJob")
RAY = ("rayjobs", "rayclusters")
PARTS = ("burst", "running-500", "running-1000", "finished")
MERGE = "application/merge-patch+json"

RUNNING: Object = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "rayClusterName": "cluster"}
COMPLETE: Object = {**RUNNING, "jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    what: str
    measured: str
    wanted: str = ""


class Client:
    """A plain client of the API server, as an administrator."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def call(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> Object:
        """The answer to one request. Raises SystemExit when it is refused."""
        data = None if body is None else json.dumps(body)
        async with (
            self._slots,
            self._session.request(
                method, f"{self._server}/{path}", data=data, headers={"Content-Type": content_type}
            ) as answer,
        ):
            text = await answer.read()
        if answer.status >= 400:
            raise SystemExit(f"{method} {path}: {answer.status} {text.decode()[:500]}")
        return cast("Object", json.loads(text))

    async def create(self, kind: str, namespace: str, manifest: Object) -> Object:
        """Creates an object."""
        return await self.call("POST", PATHS[kind].format(namespace), manifest)

    async def patch(self, kind: str, namespace: str, name: str, change: Object) -> Object:
        """Changes an object, or its status when that is all that is changed."""
        status = "/status" if change.keys() == {"status"} else ""
        return await self.call("PATCH", f"{PATHS[kind].format(namespace)}/{name}{status}", change, MERGE)

    async def all(self, kind: str, namespace: str, selector: str = JOB_UID) -> list[Object]:
        """All objects of a kind that have a label, in pages."""
        found: list[Object] = []
        more: str | None = ""
        while more is not None:
            page = await self.call(
                "GET", f"{PATHS[kind].format(namespace)}?limit=500&labelSelector={selector}&continue={more}"
            )
            found += page["items"]
            more = page["metadata"].get("continue") or None
        return found

    async def count(self, path: str) -> int:
        """How many objects there are at a path."""
        page = await self.call("GET", f"{path}?limit=1")
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)

    async def watch(self, kind: str, namespace: str) -> AsyncIterator[Object]:
        """Changes of objects of a kind, from now on and for ever.

        An API server ends watches now and then, and they go on from there. Raises SystemExit when one cannot.
        """
        path = PATHS[kind].format(namespace)
        version = (await self.call("GET", f"{path}?limit=1"))["metadata"]["resourceVersion"]
        while True:
            url = f"{self._server}/{path}?watch=true&resourceVersion={version}"
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as answer:
                async for line in answer.content:
                    event = json.loads(line)
                    if event.get("type") not in ("ADDED", "MODIFIED", "DELETED"):
                        raise SystemExit(f"the watch of {path} cannot go on: {line.decode()[:500]}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    yield event["object"]


@asynccontextmanager
async def connected(control_plane: ControlPlane) -> AsyncIterator[Client]:
    """A client of a control plane."""
    content = yaml.safe_load(control_plane.kubeconfig.read_text())
    user, cluster = content["users"][0]["user"], content["clusters"][0]["cluster"]
    context = ssl.create_default_context(cadata=_decoded(cluster["certificate-authority-data"]))
    with tempfile.NamedTemporaryFile("w") as pair:
        pair.write(_decoded(user["client-certificate-data"]) + _decoded(user["client-key-data"]))
        pair.flush()
        context.load_cert_chain(pair.name)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, limit=0),
        read_bufsize=2**22,
        headers={"User-Agent": "bench"},
    ) as session:
        yield Client(session, cluster["server"])


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


class Audit:
    """Counts a controller's calls in the API server's audit log."""

    def __init__(self, log: Path, user_agents: Sequence[str] = ("finetune-operator", "kopf")) -> None:
        self._log = log
        self._marks = [f'"userAgent":"{each}'.encode() for each in user_agents]
        self._read = log.stat().st_size if log.exists() else 0

    def calls(self) -> Counter[str]:
        """The calls since the last time, by verb and resource."""
        found: Counter[str] = Counter()
        with self._log.open("rb") as log:
            log.seek(self._read)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                if not any(mark in line for mark in self._marks):
                    continue
                event = json.loads(line)
                if event["stage"] == "ResponseComplete" or event["verb"] != "watch":
                    where = event.get("objectRef") or {}
                    name = "/".join(filter(None, (where.get("resource"), where.get("subresource"))))
                    found[f"{event['verb']} {name}"] += 1
        return found


def processor_seconds(process: psutil.Process) -> float:
    """The processor time that a process has taken so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def memory(process: psutil.Process, what: str = "VmRSS") -> float:
    """The memory of a process in MB: now, or at most (`VmHWM`)."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{what}:"))


class Operator:
    """The operator as a process that watches one namespace."""

    def __init__(self, directory: Path, kubeconfig: Path, namespace: str) -> None:
        self.port = free_address().port
        self._log = directory / f"operator-{self.port}.log"
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(directory),
            "KUBECONFIG": str(kubeconfig),
            "FINETUNE_OPERATOR_TRAINER_IMAGE": "registry.test/trainer:1.0",
            "FINETUNE_OPERATOR_LISTEN_PORT": str(self.port),
            "FINETUNE_OPERATOR_WATCH_NAMESPACES": namespace,
        }
        self.started = time.monotonic()
        with self._log.open("wb") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator"],
                env=environment,
                cwd=directory,
                stdout=log,
                stderr=log,
            )
        self.process = psutil.Process(popen.pid)
        self._popen = popen

    async def metrics(self, session: aiohttp.ClientSession) -> str:
        """What it tells Prometheus; nothing before it is ready."""
        if self._popen.poll() is not None:
            raise SystemExit(await self.says(session))
        with suppress(aiohttp.ClientError):
            async with session.get(f"http://127.0.0.1:{self.port}/readyz") as answer:
                if answer.status == 200:
                    async with session.get(f"http://127.0.0.1:{self.port}/metrics") as metrics:
                        return await metrics.text()
        return ""

    async def says(self, session: aiohttp.ClientSession) -> str:
        """Whether it is alive, as it says itself, and the end of its log."""
        ended = self._popen.poll()
        state = f"has ended with {ended}"
        if ended is None:
            async with session.get(f"http://127.0.0.1:{self.port}/livez") as answer:
                state = f"says of its life: {answer.status} {await answer.text()}"
        return f"the operator {state}; its log ends:\n{self._log.read_text()[-3000:]}"

    def problems(self) -> Counter[str]:
        """Its warnings and errors, without what is different each time."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        return Counter(
            f"{line['level']}: {line['message'][:90]}" for line in lines if line["level"] != "INFO"
        )

    def stop(self) -> None:
        """Ends it."""
        self._popen.terminate()
        self._popen.wait(20)


@dataclass
class Bench:
    """The control plane, and what parts do with it."""

    directory: Path
    control_plane: ControlPlane
    client: Client
    local: aiohttp.ClientSession
    """For the operator's own metrics."""

    async def namespace(self, name: str) -> str:
        """Makes a namespace."""
        await self.client.call("POST", "api/v1/namespaces", {"metadata": {"name": name}})
        return name

    @asynccontextmanager
    async def operator(self, namespace: str) -> AsyncIterator[Operator]:
        """An operator for a namespace; it may not be ready yet."""
        operator = Operator(self.directory, self.control_plane.kubeconfig, namespace)
        try:
            yield operator
        finally:
            operator.stop()
            for problem, times in operator.problems().most_common(5):
                print(f"  the operator said {times} times: {problem}", file=sys.stderr)

    async def ready(self, operator: Operator) -> None:
        """Waits until an operator is."""
        await until(lambda: operator.metrics(self.local))

    async def apply(self, namespace: str, names: Iterable[str]) -> list[Object]:
        """Makes FineTuneJobs, as fast as the API server takes them."""
        return await asyncio.gather(*(self.client.create(KIND, namespace, a_job(name)) for name in names))

    async def ray_jobs(self, namespace: str, count: int) -> None:
        """Waits until there are so many RayJobs."""

        async def there() -> bool:
            return await self.client.count(PATHS["RayJob"].format(namespace)) >= count

        await until(there)

    async def all_events(self, namespace: str) -> None:
        """Waits until no more events come."""
        before = -1

        async def no_more() -> bool:
            nonlocal before
            last, before = before, await self.client.count(PATHS["Event"].format(namespace))
            return before == last

        await until(no_more, every=2)


def a_job(name: str) -> Object:
    """A FineTuneJob that has nothing to remark on, and is not prepared first."""
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": SPEC}


async def until(
    happened: Callable[[], Awaitable[object]],
    seconds: float = 900,
    every: float = 0.1,
    instead: Callable[[], Awaitable[str]] | None = None,
) -> None:
    """Waits for something. Raises SystemExit when it takes too long, with what has happened `instead`."""
    ends = time.monotonic() + seconds
    while not await happened():
        if time.monotonic() > ends:
            what = str(happened) if instead is None else await instead()
            raise SystemExit(f"it did not happen in {seconds:.0f} s: {what}")
        await asyncio.sleep(every)


async def burst(bench: Bench, jobs: int) -> list[Line]:
    """Jobs that are applied at once, beside a plain client that makes the same objects."""
    mine = await bench.namespace("burst")
    names = [f"job-{number}" for number in range(jobs)]
    async with bench.operator(mine) as operator:
        await bench.ready(operator)
        audit, began, busy = (
            Audit(bench.control_plane.audit_log),
            time.monotonic(),
            processor_seconds(operator.process),
        )
        await bench.apply(mine, names)
        await bench.ray_jobs(mine, jobs)
        seconds, busy = time.monotonic() - began, processor_seconds(operator.process) - busy
        await bench.all_events(mine)
        calls, most = audit.calls(), memory(operator.process, "VmHWM")
    made: dict[str, list[tuple[str, Object]]] = {}
    for kind in CHILDREN:
        for each in await bench.client.all(kind, mine):
            made.setdefault(each["metadata"]["labels"][JOB_UID], []).append((kind, each))
    shown = await bench.client.all(KIND, mine, selector="")
    statuses = {each["metadata"]["uid"]: each["status"] for each in shown}
    events: dict[str, list[Object]] = {uid: [] for uid in made}
    for each in await bench.client.all("Event", mine, selector=""):
        events[each["involvedObject"]["uid"]].append(each)

    async def make(namespace: str, name: str, uid: str, *, told: bool) -> None:
        job = await bench.client.create(KIND, namespace, a_job(name))
        if told:
            await bench.client.patch(KIND, namespace, name, {"status": statuses[uid]})
        for kind, each in made[uid]:
            await bench.client.create(kind, namespace, copied(kind, each, job))
        for each in events[uid] if told else ():
            about = {**each["involvedObject"], "namespace": namespace, "uid": job["metadata"]["uid"]}
            named = {"name": each["metadata"]["name"], "namespace": namespace}
            await bench.client.create(
                "Event", namespace, {**each, "metadata": named, "involvedObject": about}
            )

    async def beside(name: str, *, told: bool) -> float:
        namespace, began = await bench.namespace(name), time.monotonic()
        await asyncio.gather(
            *(make(namespace, each, uid, told=told) for each, uid in zip(names, made, strict=True))
        )
        return time.monotonic() - began

    plain, telling = await beside("plain", told=False), await beside("telling", told=True)
    each_call = ", ".join(f"{verb} {count / jobs:.2f}" for verb, count in calls.most_common(12))
    print(f"  calls a job: {each_call}", file=sys.stderr)
    return [
        Line(f"{jobs} jobs at once, until all have a RayJob", f"{seconds:.1f} s"),
        Line("a plain client that makes the same objects", f"{plain:.1f} s"),
        Line("the operator's speed by the client's", f"{plain / seconds:.2f}", "0.8 or more"),
        Line("a client that writes statuses and events too", f"{telling:.1f} s"),
        Line("the operator's speed by that client's", f"{telling / seconds:.2f}"),
        Line("API calls a job", f"{calls.total() / jobs:.1f}", "11 at most"),
        Line("processor time a job", f"{busy / jobs * 1000:.1f} ms"),
        Line("memory at most", f"{most:.0f} MB"),
    ]


def copied(kind: str, made: Object, job: Object) -> Object:
    """An object that the operator has made, to be made for another job in another namespace."""
    metadata, namespace = made["metadata"], job["metadata"]["namespace"]
    owner = {**metadata["ownerReferences"][0], "uid": job["metadata"]["uid"]}
    copy = {key: value for key, value in made.items() if key not in ("metadata", "status")}
    if kind == "RoleBinding":
        copy["subjects"] = [{**each, "namespace": namespace} for each in made["subjects"]]
    api = PATHS[kind].partition("/namespaces")[0].removeprefix("apis/").removeprefix("api/")
    kept = {key: metadata[key] for key in ("name", "labels", "annotations") if key in metadata}
    metadata = {**kept, "ownerReferences": [owner]}
    return {**copy, "apiVersion": api, "kind": kind, "metadata": metadata}


@dataclass
class Trainer:
    """What a job's trainer has reported, and when that was seen in the status."""

    namespace: str
    job: str
    uid: str
    step: int = 0
    saved: list[Checkpoint] = field(default_factory=list)
    written: dict[int, float] = field(default_factory=dict)
    """When each step was reported that is not shown yet."""
    checkpoints: dict[int, float] = field(default_factory=dict)
    """When each checkpoint was reported that is not shown yet."""
    started: float | None = None
    """When it began to train, while that is not shown yet."""
    shown: float | None = None
    """When what is shown now was reported."""

    def record(self, *, finished: bool = False) -> str:
        """Its progress record."""
        now = datetime.now(UTC)
        step = STEPS if finished else self.step
        progress = Progress(
            epoch=step / PLAN.steps_per_epoch,
            epochs=f"{step // PLAN.steps_per_epoch}/{PLAN.total_epochs}",
            step=step,
            percent=100 * step // STEPS,
            train_loss=2.0,
            tokens_trained=step * 1000,
            last_update_time=now,
        )
        record = ProgressRecord(
            attempt=1, plan=PLAN, progress=progress, checkpoints=self.saved, finished=finished
        )
        return record.model_dump_json(by_alias=True, exclude_none=True)

    def save(self) -> None:
        """Adds a checkpoint to what it reports."""
        number, run = len(self.saved), f"pvc://finetune/runs/{self.namespace}/{self.job}-{self.uid}"
        self.saved.append(
            Checkpoint(
                name=f"epoch-{number}",
                path=f"{run}/epoch-{number}",
                epoch=number + 1,
                step=number + 1,
                eval_loss=2.0,
                time=datetime.now(UTC),
            )
        )

    async def report(self, client: Client, *, saves: bool = False) -> None:
        """Writes a record of one step more, and perhaps of one checkpoint more."""
        self.step += 1
        now = time.monotonic()
        self.written[self.step] = now
        if saves:
            self.save()
            self.checkpoints[len(self.saved)] = now
        change = {"data": {RECORD_KEY: self.record()}}
        await client.patch("ConfigMap", self.namespace, child_name(self.job, self.uid), change)

    async def start(self, client: Client) -> None:
        """Begins to train: KubeRay says that its cluster runs, and the trainer that it trains."""
        status = {"status": {**RUNNING, "startTime": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}}
        await client.patch("RayJob", self.namespace, ray_job_name(self.job, self.uid, 1), status)
        self.started = time.monotonic()
        await self.report(client)


@dataclass
class Seen:
    """How late what happened was shown, in seconds."""

    numbers: list[float] = field(default_factory=list)
    checkpoints: list[float] = field(default_factory=list)
    phases: list[float] = field(default_factory=list)
    oldest: float = 0.0
    """The greatest age of what was shown of a job that trains, just before something newer was: at least the
    time between two records, and twice that where one of them was not shown."""

    def note(self, trainer: Trainer, status: Object) -> None:
        """Notes what a status shows."""
        now = time.monotonic()
        if status.get("phase") == "Running" and trainer.started is not None:
            self.phases.append(now - trainer.started)
            trainer.started = None
        step = (status.get("progress") or {}).get("step", 0)
        for each in [each for each in trainer.written if each <= step]:
            written = trainer.written.pop(each)
            self.numbers.append(now - written)
            if trainer.shown is not None:
                self.oldest = max(self.oldest, now - trainer.shown)
            trainer.shown = written
        for saved in [each for each in trainer.checkpoints if each <= len(status.get("checkpoints") or ())]:
            self.checkpoints.append(now - trainer.checkpoints.pop(saved))

    def end(self, trainers: Iterable[Trainer]) -> None:
        """Counts what is not shown yet at the age that it has."""
        now = time.monotonic()
        for trainer in trainers:
            self.numbers += [now - each for each in trainer.written.values()]
            self.checkpoints += [now - each for each in trainer.checkpoints.values()]
            if trainer.started is not None:
                self.phases.append(now - trainer.started)
            if trainer.shown is not None and trainer.written:
                self.oldest = max(self.oldest, now - trainer.shown)


async def running(bench: Bench, jobs: int, seconds: float, idle: float) -> list[Line]:
    """Jobs that train and report, some of which begin meanwhile; then, for `idle` s, none of them reports."""
    namespace = await bench.namespace(f"running-{jobs}")
    begin = max(1, min(jobs // 10, int(seconds)))
    lines: list[Line] = []
    async with bench.operator(namespace) as operator, asyncio.TaskGroup() as tasks:
        await bench.ready(operator)
        made = await bench.apply(namespace, (f"job-{number}" for number in range(jobs)))
        await bench.ray_jobs(namespace, jobs)
        trainers = {
            each["metadata"]["uid"]: Trainer(namespace, each["metadata"]["name"], each["metadata"]["uid"])
            for each in made
        }
        seen = Seen()

        async def look() -> None:
            async for event in bench.client.watch(KIND, namespace):
                trainer = trainers.get(event["metadata"]["uid"])
                if trainer is not None:
                    seen.note(trainer, event.get("status") or {})

        looking = tasks.create_task(look())
        late, early = list(trainers.values())[:begin], list(trainers.values())[begin:]
        await asyncio.sleep(1)
        await asyncio.gather(*(each.start(bench.client) for each in early))

        async def all_shown() -> bool:
            return not any(each.written for each in early)

        async def what_is_shown() -> str:
            left = [each for each in early if each.written]
            first = await bench.client.call("GET", f"{PATHS[KIND].format(namespace)}/{left[0].job}")
            return f"{len(left)} jobs are not shown, the first is {first}; {await operator.says(bench.local)}"

        await until(all_shown, instead=what_is_shown)
        begins = time.monotonic() + BEFORE_SECONDS
        ends = begins + seconds

        async def train(trainer: Trainer, first: float) -> None:
            at = begins - BEFORE_SECONDS + first
            while at < ends:
                await asyncio.sleep(at - time.monotonic())
                await trainer.report(bench.client, saves=random.random() < 0.05)
                at += REPORT_SECONDS

        async def appear(trainer: Trainer, after: float) -> None:
            await asyncio.sleep(begins + after - time.monotonic())
            await trainer.start(bench.client)

        training = asyncio.gather(
            *(train(each, REPORT_SECONDS * number / len(early)) for number, each in enumerate(early)),
            *(appear(each, seconds * number / begin) for number, each in enumerate(late)),
        )
        await asyncio.sleep(begins - time.monotonic())
        seen, busy, audit = Seen(), processor_seconds(operator.process), Audit(bench.control_plane.audit_log)
        await training
        busy = (processor_seconds(operator.process) - busy) / (time.monotonic() - begins)
        calls = audit.calls().total() / (time.monotonic() - begins)
        await asyncio.sleep(3)
        seen.end(trainers.values())
        at_most = "2 s" if jobs <= 500 else ""
        lines += [
            Line(f"{jobs} jobs, a record each 10 s: lag, median", f"{quantile(seen.numbers, 0.5):.2f} s"),
            Line("lag, p99", f"{quantile(seen.numbers, 0.99):.2f} s", at_most),
            Line("checkpoints, p99", f"{quantile(seen.checkpoints, 0.99):.2f} s", "2 s"),
            Line("phases, p99", f"{quantile(seen.phases, 0.99):.2f} s", "2 s"),
            Line("oldest number that was shown", f"{seen.oldest:.1f} s", "20 s"),
            Line("API calls, processor", f"{calls:.0f} a second, {100 * busy:.0f} % of a core"),
            Line("memory at most", f"{memory(operator.process, 'VmHWM'):.0f} MB"),
        ]
        if idle:
            await asyncio.sleep(20)
            audit, busy = Audit(bench.control_plane.audit_log), processor_seconds(operator.process)
            await asyncio.sleep(idle)
            busy, calls = (processor_seconds(operator.process) - busy) / idle, audit.calls().total() / idle
            lines += [
                Line(f"{jobs} jobs run and report nothing: API calls", f"{calls:.2f} a second", "2 a second"),
                Line("processor", f"{100 * busy:.1f} % of a core", "2 %"),
                Line("memory", f"{memory(operator.process):.0f} MB"),
            ]
        looking.cancel()
    return lines


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of values does not exceed; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def finished(bench: Bench, jobs: int) -> list[Line]:
    """An operator that starts among jobs that have ended, with a RayJob and a record each."""
    namespace = await bench.namespace("finished")
    async with bench.operator(namespace) as operator:
        await bench.ready(operator)
        [job] = await bench.apply(namespace, ["first"])
        await bench.ray_jobs(namespace, 1)
        trainer = Trainer(namespace, "first", job["metadata"]["uid"])
        await trainer.start(bench.client)
        name, ray_job = child_name("first", trainer.uid), ray_job_name("first", trainer.uid, 1)
        trainer.save()
        change = {"data": {RECORD_KEY: trainer.record(finished=True)}}
        await bench.client.patch("ConfigMap", namespace, name, change)
        await bench.client.patch("RayJob", namespace, ray_job, {"status": COMPLETE})

        async def has_ended() -> bool:
            nonlocal job
            job = await bench.client.call("GET", f"{PATHS[KIND].format(namespace)}/first")
            return bool(job["status"].get("phase") == "Succeeded")

        await until(has_ended)
        # Of one that has ended nothing changes any more, and the others become like it.
        [made] = await bench.client.all("RayJob", namespace)
        [config_map] = await bench.client.all("ConfigMap", namespace)

    async def make(other: str) -> None:
        created = await bench.client.create(KIND, namespace, a_job(other))
        uid = created["metadata"]["uid"]

        def theirs(one: Object) -> Object:
            text = json.dumps(one).replace(trainer.uid, uid).replace(trainer.uid[:8], uid[:8])
            return cast(
                "Object", json.loads(text.replace('"first', f'"{other}').replace("/first-", f"/{other}-"))
            )

        own_ray_job = copied("RayJob", theirs(made), created)
        await bench.client.create("ConfigMap", namespace, copied("ConfigMap", theirs(config_map), created))
        await bench.client.create("RayJob", namespace, own_ray_job)
        await bench.client.patch(
            "RayJob", namespace, own_ray_job["metadata"]["name"], {"status": theirs(made["status"])}
        )
        await bench.client.patch(KIND, namespace, other, {"status": theirs(job["status"])})

    await asyncio.gather(*(make(f"job-{number}") for number in range(1, jobs)))
    audit = Audit(bench.control_plane.audit_log)
    async with bench.operator(namespace) as operator:
        await bench.ready(operator)
        ready = time.monotonic() - operator.started
        await bench.apply(namespace, ["new"])
        await bench.ray_jobs(namespace, jobs + 1)
        served = time.monotonic() - operator.started
        quiet_since = [time.monotonic(), processor_seconds(operator.process)]

        async def is_quiet() -> bool:
            await asyncio.sleep(3)
            busy = processor_seconds(operator.process) - quiet_since[1]
            share = busy / (time.monotonic() - quiet_since[0])
            if share > 0.1:
                quiet_since[:] = [time.monotonic(), processor_seconds(operator.process)]
            return share <= 0.1

        await until(is_quiet)
        steady = quiet_since[0] - operator.started
        metrics = await operator.metrics(bench.local)
        if f'finetune_jobs{{phase="Succeeded"}} {jobs}.0' not in metrics:
            raise SystemExit("the operator does not know all jobs that have succeeded")
        calls = audit.calls()
        return [
            Line(f"{jobs} jobs have ended, the operator starts: ready", f"{ready:.1f} s"),
            Line("a new job has its RayJob", f"{served:.1f} s"),
            Line("steady: under a tenth of a core", f"{steady:.1f} s", "60 s"),
            Line("API calls until then", f"{calls.total()}"),
            Line("memory at most", f"{memory(operator.process, 'VmHWM'):.0f} MB", "300 MB"),
            Line("memory then", f"{memory(operator.process):.0f} MB"),
        ]


@asynccontextmanager
async def control_plane_with_kuberays_kinds(
    directory: Path, more: Sequence[Object] = ()
) -> AsyncIterator[ControlPlane]:
    """A control plane that knows FineTuneJobs, what KubeRay defines, and `more` definitions."""
    say = partial(print, file=sys.stderr)
    control_plane = ControlPlane(
        directory, partial(find, say=say), Processes(directory / "processes"), free_address()
    )
    control_plane.start()
    try:
        kuberay = kuberay_manifests(say) / "crd/bases"
        definitions = [
            crd(),
            *(yaml.safe_load((kuberay / f"ray.io_{each}.yaml").read_text()) for each in RAY),
            *more,
        ]
        async with connected(control_plane) as client:
            for definition in definitions:
                await client.call(
                    "POST", "apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition
                )

            async def served() -> bool:
                paths = [_served_at(definition) for definition in definitions]
                with suppress(SystemExit):
                    for path in paths:
                        await client.call("GET", f"{path}?limit=1")
                    return True
                return False

            await until(served)
        yield control_plane
    finally:
        control_plane.remove()


def _served_at(definition: Object) -> str:
    """The path of all objects of a kind, of its newest version that is served."""
    spec = definition["spec"]
    version = next(each["name"] for each in spec["versions"] if each["served"])
    return f"apis/{spec['group']}/{version}/{spec['names']['plural']}"


async def measure(parts: Sequence[str], *, small: bool) -> dict[str, list[Line]]:
    """Runs parts of the benchmark, one after the other, each on a control plane of its own."""
    by = 20 if small else 1
    seconds, idle = (20.0, 20.0) if small else (120.0, 120.0)
    todo: dict[str, Callable[[Bench], Awaitable[list[Line]]]] = {
        "burst": lambda bench: burst(bench, 1000 // by),
        "running-500": lambda bench: running(bench, 500 // by, seconds, 0),
        "running-1000": lambda bench: running(bench, 1000 // by, seconds, idle),
        "finished": lambda bench: finished(bench, 10_000 // by),
    }
    found: dict[str, list[Line]] = {}
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
            print(f"{part} ...", file=sys.stderr)
            async with (
                control_plane_with_kuberays_kinds(Path(scratch) / "control-plane") as control_plane,
                connected(control_plane) as client,
                aiohttp.ClientSession() as local,
            ):
                found[part] = await todo[part](Bench(Path(scratch), control_plane, client, local))
        print(table(found[part]), flush=True)
    return found


def table(lines: Sequence[Line]) -> str:
    """A part's lines as a Markdown table."""
    rows = [
        ("", "measured", "wanted"),
        ("---", "---", "---"),
        *((each.what, each.measured, each.wanted) for each in lines),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description="Measures the operator with many jobs.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--small", action="store_true", help="a twentieth of the jobs, to try it in minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there as well")
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.parts, small=arguments.small))
    if arguments.json:
        document = {part: [asdict(line) for line in lines] for part, lines in found.items()}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
