"""The operator and Kubeflow Trainer's controller on one API server of this machine: how fast each writes.

    python -m bench.beside_kubeflow [--jobs 300] [--rounds 1] [--json FILE]

Run it from the project's folder, in the environment of the tests, on a machine that does nothing else. Jobs
are applied at once, FineTuneJobs for the one and TrainJobs for the other, which take turns on the same
control plane, each in a namespace of its own, until each job has its RayJob or its JobSet. Neither KubeRay
nor the JobSet controller runs. Writes are counted in the API server's audit log: of a FineTuneJob they are
its status, its events and six objects, of a TrainJob its status and a JobSet.

Kubeflow Trainer is built of its Go module, and runs as it is configured by default, at most 50 calls a second
and 100 at once, but for certificates, a leader and its ports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import aiohttp
import psutil
import yaml
from bench.many_jobs import (
    Audit,
    Bench,
    Object,
    connected,
    control_plane_with_kuberays_kinds,
    memory,
    processor_seconds,
    until,
)

from devcluster.cache import alone_in, cache_directory
from devcluster.certificates import Authority
from devcluster.control_plane import free_address
from devcluster.programs import Say, go, module_directory

MODULE = "github.com/kubeflow/trainer/v2"
JOBSET = "sigs.k8s.io/jobset"
PROGRAM = "trainer-controller-manager"
SOURCES = Path(__file__).with_name("kubeflow")
BUILD_SECONDS = 15 * 60
_go = partial(go, directory=SOURCES, seconds=BUILD_SECONDS)
TRAINER = "apis/trainer.kubeflow.org/v1alpha1"
JOB_SETS = "apis/jobset.x-k8s.io/v1alpha2/namespaces/{}/jobsets"
RUNTIME = "torch-distributed"
WRITES = ("create", "update", "patch", "delete")


@dataclass(frozen=True)
class Figures:
    """What one of them did with the jobs of a round."""

    seconds: float
    """Until each job had its RayJob or JobSet."""
    writes: int
    """API calls that change something."""
    processor_seconds: float
    megabytes: float
    """Of memory, at most."""


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description="Measures the operator beside Kubeflow Trainer.")
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="30 jobs, to try it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    arguments = parser.parse_args()
    jobs = 30 if arguments.small else arguments.jobs
    found = asyncio.run(measure(jobs, arguments.rounds))
    print(table(jobs, found))
    if arguments.json:
        document = {name: [asdict(each) for each in figures] for name, figures in found.items()}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


async def measure(jobs: int, rounds: int) -> dict[str, list[Figures]]:
    """The figures of each round, by `operator` and `kubeflow`."""
    program = built(partial(print, file=sys.stderr))
    found: dict[str, list[Figures]] = {"operator": [], "kubeflow": []}
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        directory = Path(scratch)
        async with (
            control_plane_with_kuberays_kinds(directory / "control-plane", definitions()) as control_plane,
            connected(control_plane) as client,
            aiohttp.ClientSession() as local,
        ):
            bench = Bench(directory, control_plane, client, local)
            await client.call("POST", f"{TRAINER}/clustertrainingruntimes", training_runtime())
            for round_ in range(1, rounds + 1):
                ours = await with_operator(bench, f"ours-{round_}", jobs)
                theirs = await with_kubeflow(bench, program, f"theirs-{round_}", jobs)
                found["operator"].append(ours)
                found["kubeflow"].append(theirs)
                print(f"round {round_}: operator {ours}, kubeflow {theirs}", file=sys.stderr, flush=True)
    return found


async def with_operator(bench: Bench, name: str, jobs: int) -> Figures:
    """FineTuneJobs that are applied at once, in a new namespace."""
    namespace = await bench.namespace(name)
    async with bench.operator(namespace) as operator:
        await bench.ready(operator)
        audit = Audit(bench.control_plane.audit_log)
        began, busy = time.monotonic(), processor_seconds(operator.process)
        await bench.apply(namespace, [f"job-{number}" for number in range(jobs)])
        await bench.ray_jobs(namespace, jobs)
        return _figures(began, busy, operator.process, audit)


async def with_kubeflow(bench: Bench, program: Path, name: str, jobs: int) -> Figures:
    """TrainJobs that are applied at once, in a new namespace."""
    namespace, client = await bench.namespace(name), bench.client
    path = f"{TRAINER}/namespaces/{namespace}/trainjobs"
    async with controller(bench, program) as process:
        audit = Audit(bench.control_plane.audit_log, (PROGRAM,))
        began, busy = time.monotonic(), processor_seconds(process)
        await asyncio.gather(*(client.call("POST", path, train_job(f"job-{each}")) for each in range(jobs)))

        async def all_there() -> bool:
            return await client.count(JOB_SETS.format(namespace)) >= jobs

        await until(all_there)
        return _figures(began, busy, process, audit)


@asynccontextmanager
async def controller(bench: Bench, program: Path) -> AsyncIterator[psutil.Process]:
    """Kubeflow Trainer's controller as a process that is ready."""
    health, webhook = free_address().port, free_address().port
    configuration = {
        "apiVersion": "config.trainer.kubeflow.org/v1alpha1",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0", "secureServing": False},
        "webhook": {"host": "127.0.0.1", "port": webhook},
        "leaderElection": {"leaderElect": False},
        "certManagement": {"enable": False},
    }
    home = bench.directory / "kubeflow"
    # Where controller-runtime looks for them.
    certificates = home / "k8s-webhook-server" / "serving-certs"
    certificates.mkdir(parents=True, exist_ok=True)
    pair = Authority(home / "authority").issue("webhook", common_name="webhook", hosts=["localhost"])
    pair.certificate.rename(certificates / "tls.crt")
    pair.key.rename(certificates / "tls.key")
    file, log = home / "configuration.yaml", home / "controller.log"
    file.write_text(yaml.safe_dump(configuration))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(home),
        "KUBECONFIG": str(bench.control_plane.kubeconfig),
    }
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [program, "--config", file], env=environment, cwd=home, stdout=output, stderr=output
        )

    async def ready() -> bool:
        if popen.poll() is not None:
            raise SystemExit(f"Kubeflow Trainer has ended:\n{log.read_text()[-3000:]}")
        try:
            async with bench.local.get(f"http://127.0.0.1:{health}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    try:
        await until(ready, seconds=120)
        yield psutil.Process(popen.pid)
    finally:
        popen.terminate()
        popen.wait(30)


def training_runtime() -> Object:
    """What TrainJobs refer to: a container on each node, without anything that is particular to torch."""
    container = {"name": "node", "image": "registry.test/trainer:1.0"}
    node = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"spec": {"containers": [container]}}},
        },
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": RUNTIME},
        "spec": {
            "mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": "auto"}},
            "template": {"spec": {"replicatedJobs": [node]}},
        },
    }


def train_job(name: str) -> Object:
    """A TrainJob of two nodes, as the FineTuneJob has two devices."""
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {"runtimeRef": {"name": RUNTIME}, "trainer": {"numNodes": 2}},
    }


def built(say: Say) -> Path:
    """The controller's program, which is built when it is not in the cache."""
    version = _go(say, "list", "-m", "-f", "{{.Version}}", MODULE).strip()
    with alone_in(cache_directory() / "kubeflow" / version) as directory:
        program = directory / PROGRAM
        if not program.exists():
            say(f"building {PROGRAM} {version}; kept in {directory}")
            partial_file = directory / f".{PROGRAM}"
            _go(say, "build", "-trimpath", "-o", str(partial_file), f"{MODULE}/cmd/{PROGRAM}")
            partial_file.replace(program)
        return program


def definitions() -> list[Object]:
    """The definitions of Kubeflow Trainer's kinds, and of JobSets."""
    say = partial(print, file=sys.stderr)
    files: list[Path] = []
    for module, where in ((MODULE, "manifests/base/crds"), (JOBSET, "config/components/crd/bases")):
        directory = module_directory(module, say, sources=SOURCES) / where
        files += sorted(each for each in directory.glob("*.yaml") if each.name != "kustomization.yaml")
    return [yaml.safe_load(each.read_text()) for each in files]


def _figures(began: float, busy: float, process: psutil.Process, audit: Audit) -> Figures:
    """What was done since `began`, when the process had taken `busy` seconds of the processor."""
    seconds = time.monotonic() - began
    writes = sum(count for call, count in audit.calls().items() if call.split()[0] in WRITES)
    return Figures(seconds, writes, processor_seconds(process) - busy, memory(process, "VmHWM"))


def table(jobs: int, found: dict[str, list[Figures]]) -> str:
    """The medians as a Markdown table."""

    def median(name: str, figure: str) -> float:
        values: Sequence[float] = sorted(getattr(each, figure) for each in found[name])
        return values[len(values) // 2]

    rows: list[tuple[str, ...]] = [
        (f"{jobs} jobs at once", "operator", "Kubeflow Trainer"),
        ("---", "---", "---"),
    ]
    for what, figure, unit in (
        ("until each has its RayJob, or JobSet", "seconds", " s"),
        ("API writes", "writes", ""),
        ("processor time", "processor_seconds", " s"),
        ("memory at most", "megabytes", " MB"),
    ):
        rows.append((what, *(f"{median(name, figure):.1f}{unit}" for name in ("operator", "kubeflow"))))
    rates = [f"{median(name, 'writes') / median(name, 'seconds'):.0f}" for name in ("operator", "kubeflow")]
    rows.insert(4, ("API writes a second", *rates))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
