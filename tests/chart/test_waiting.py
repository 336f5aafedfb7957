"""Waiting for jobs as docs/gitops.md says, and applying them again, with kubectl on a real API server."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from tests.chart.rendering import at
from tests.operator.cases import FOLDER, Json, read_case

from devcluster.control_plane import ControlPlane
from devcluster.failure import ClusterError
from devcluster.kubectl import Kubectl
from finetune_api.crd import UNSEEN, crd
from finetune_api.manifest import API_VERSION, KIND

ROOT = Path(__file__).parents[2]
SHORT = "1s"
"""Until a wait is in vain."""


class Jobs:
    """FineTuneJobs of one namespace, and what is on their page to wait for them."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self.kubectl = kubectl
        self.namespace = namespace

    def create(self, status_of: str | None = None) -> str:
        """The name of a job with the status that follows from a case; without a case nobody has seen it."""
        name = f"job-{uuid4().hex[:8]}"
        manifest: Json = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"model_id": "m", "train_path": "s3://data/train.jsonl", "lora_config": {}},
        }
        self.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
        if status_of is not None:
            status = read_case(FOLDER / f"{status_of}.yaml").decide().status
            shown = status.model_dump(mode="json", by_alias=True, exclude_none=True)
            # Of the generation that the job has here.
            shown["observedGeneration"] = 1
            for condition in shown["conditions"]:
                condition["observedGeneration"] = 1
            patch = json.dumps({"status": shown})
            self._here("patch", "finetunejob", name, "--subresource=status", "--type=merge", "-p", patch)
        return name

    def read(self, name: str) -> Json:
        return cast("Json", self.kubectl.get("finetunejob", name, self.namespace))

    def waits(self, name: str, command: str) -> bool:
        """Whether a line of the page, `kubectl wait ...`, comes to an end."""
        once = "--timeout=0" in command
        command = re.sub(r"--timeout=\S+", "", command).replace("finetunejob/my-model", f"finetunejob/{name}")
        _, *words = shlex.split(command)
        try:
            self._here(*words, "--timeout=0" if once else f"--timeout={SHORT}")
        except ClusterError as error:
            if not re.search("timed out waiting|condition not met", str(error)):
                raise
            return False
        return True

    def _here(self, *arguments: str) -> str:
        return self.kubectl(*arguments, "--namespace", self.namespace)


@pytest.fixture(scope="module")
def kubectl(api_server: ControlPlane, kubectl_program: Path) -> Kubectl:
    chosen = Kubectl(kubectl_program, api_server.kubeconfig)
    chosen.apply(crd())
    chosen("wait", "--for=condition=Established", f"crd/{at(crd(), 'metadata.name')}")
    return chosen


@pytest.fixture
def jobs(kubectl: Kubectl, namespace: str) -> Jobs:
    return Jobs(kubectl, namespace)


def lines() -> list[str]:
    """What docs/gitops.md has people call, each command by itself."""
    found = re.findall(r"^ +(kubectl wait .*)$", (ROOT / "docs/gitops.md").read_text(), re.MULTILINE)
    return [line.removesuffix("&&").strip() for line in found]


def the_end_alone() -> str:
    page = (ROOT / "docs/gitops.md").read_text()
    [condition] = re.findall(r"`(--for=jsonpath=\S+)`", page)
    return f"kubectl wait {condition} finetunejob/my-model"


@pytest.mark.parametrize(
    ("case", "returns", "succeeded", "ended"),
    [
        (None, False, False, False),
        ("queued-by-kueue", False, False, False),
        ("training", False, False, False),
        ("suspended-while-training", False, False, False),
        ("suspended-and-all-is-given-back", True, False, False),
        ("success", True, True, True),
        ("failure-that-is-the-users-is-final", True, False, True),
        ("every-error-of-a-spec-in-one-message", True, False, True),
    ],
)
def test_wait_of_the_page(jobs: Jobs, case: str | None, returns: bool, succeeded: bool, ended: bool) -> None:
    name = jobs.create(case)
    until_it_rests, whether_it_has_succeeded = lines()

    assert jobs.waits(name, until_it_rests) is returns
    assert jobs.waits(name, whether_it_has_succeeded) is succeeded
    assert jobs.waits(name, the_end_alone()) is ended


def test_job_that_nobody_has_seen_is_on_its_way_for_kstatus(jobs: Jobs, gitops_health_program: Path) -> None:
    job = jobs.read(jobs.create())

    assert job["status"] == UNSEEN
    assert kstatus(gitops_health_program, job) == "InProgress"


def test_what_a_person_changes_of_a_job_that_rests_is_on_its_way(
    jobs: Jobs, gitops_health_program: Path
) -> None:
    name = jobs.create("suspended-and-all-is-given-back")
    assert kstatus(gitops_health_program, jobs.read(name)) == "Current"

    jobs.kubectl(
        *("patch", "finetunejob", name, "--namespace", jobs.namespace, "--type=merge"),
        *("-p", json.dumps({"spec": {"run_policy": {"backoff_limit": 1}}})),
    )

    assert kstatus(gitops_health_program, jobs.read(name)) == "InProgress"
    assert not jobs.waits(name, lines()[0])


def kstatus(program: Path, job: Json) -> str:
    ended = subprocess.run(
        [program, "kstatus"], input=json.dumps([job]), capture_output=True, text=True, timeout=30, check=True
    )
    return str(json.loads(ended.stdout)[0]["status"])


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_a_job_that_is_applied_again_is_the_same(jobs: Jobs, file: Path) -> None:
    arguments = ("--server-side", "--namespace", jobs.namespace, "-f", file)
    jobs.kubectl("apply", *arguments)
    assert jobs.kubectl("diff", *arguments) == ""

    jobs.kubectl("apply", *arguments)

    [job] = jobs.kubectl.all("finetunejobs", jobs.namespace)
    assert at(job, "metadata.generation") == 1
    assert job["status"] == UNSEEN
