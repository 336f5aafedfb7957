"""A job that is made to try an installation, on a real API server; the test does what an operator would."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from tests.operator.conftest import SPEC, Namespace

from devcluster.control_plane import ControlPlane
from devcluster.waiting import wait_for
from finetune_api.manifest import API_VERSION, KIND
from finetune_operator import helm_test
from finetune_operator.cluster.kubernetes_api import KubernetesApi
from finetune_operator.observed import KubernetesObject

Act = Callable[[], None]


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helm_test, "POLL_SECONDS", 0.1)


def manifest(namespace: str) -> KubernetesObject:
    return cast(
        "KubernetesObject",
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "trial", "namespace": namespace},
            "spec": SPEC,
        },
    )


def tried(
    api: KubernetesApi, runner: asyncio.Runner, inside: Namespace, act: Act, seconds: float = 20
) -> tuple[bool, list[str]]:
    """Whether it succeeded, and what was said; `act` happens once the job is there."""
    said: list[str] = []

    async def both() -> bool:
        async def when_made() -> None:
            while not await asyncio.to_thread(inside.exists, KIND, "trial"):
                await asyncio.sleep(0.05)
            await asyncio.to_thread(act)

        acting = asyncio.create_task(when_made())
        succeeded = await helm_test.try_job(api, manifest(inside.name), seconds, said.append)
        await acting
        return succeeded

    return runner.run(both()), said


def test_a_job_that_succeeds_is_a_success_and_is_taken_away(
    api: KubernetesApi, runner: asyncio.Runner, inside: Namespace
) -> None:
    def act() -> None:
        inside.patch_status(KIND, "trial", phase="Succeeded", message="all is well")

    succeeded, said = tried(api, runner, inside, act)

    assert succeeded
    assert (said[0], said[-1]) == (f"made FineTuneJob {inside.name}/trial", "Succeeded: all is well")
    assert not inside.exists(KIND, "trial")


def test_a_job_that_fails_is_none_and_its_message_is_said(
    api: KubernetesApi, runner: asyncio.Runner, inside: Namespace
) -> None:
    def act() -> None:
        inside.patch_status(KIND, "trial", phase="Failed", message="no node has the accelerator")

    succeeded, said = tried(api, runner, inside, act)

    assert not succeeded
    assert said[-1] == "Failed: no node has the accelerator"
    assert not inside.exists(KIND, "trial")


def test_without_an_operator_it_ends_in_time_and_says_that_nobody_came(
    api: KubernetesApi, runner: asyncio.Runner, inside: Namespace
) -> None:
    succeeded, said = tried(api, runner, inside, lambda: None, seconds=1)

    assert not succeeded
    assert said[1:] == ["no operator has seen it yet", "it has taken too long"]
    assert not inside.exists(KIND, "trial")


def test_a_job_that_somebody_deletes_is_no_success(
    api: KubernetesApi, runner: asyncio.Runner, inside: Namespace
) -> None:
    succeeded, said = tried(api, runner, inside, lambda: inside.delete(KIND, "trial"))

    assert not succeeded
    assert said[-1] == "it is gone: somebody has deleted it"


def test_what_an_earlier_trial_has_left_is_taken_away_first(
    api: KubernetesApi, runner: asyncio.Runner, inside: Namespace
) -> None:
    before = inside.create_job("trial")
    inside.patch_status(KIND, "trial", phase="Succeeded")

    def is_new() -> bool:
        return [each["metadata"]["uid"] for each in inside.all(KIND)] not in ([], [before["metadata"]["uid"]])

    def act() -> None:
        wait_for("the new one", is_new, seconds=10, every=0.05)
        inside.patch_status(KIND, "trial", phase="Failed", message="not this one")

    succeeded, said = tried(api, runner, inside, act)

    assert not succeeded
    assert said[-1] == "Failed: not this one"


def test_as_a_program_it_says_what_is_refused(served: ControlPlane, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps({**manifest("default"), "spec": {"model_id": "a"}}))

    ended = subprocess.run(
        [sys.executable, "-m", "finetune_operator.helm_test", file, "5"],
        env={"KUBECONFIG": str(served.kubeconfig), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    assert "spec.train_path" in ended.stderr
    assert "Traceback" not in ended.stderr
