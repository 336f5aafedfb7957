"""Jobs beside and after each other, to the end of what is left of them, while the operator comes and goes."""

from __future__ import annotations

import time

import pytest
from tests.e2e.jobs import (
    job,
    wait_for_checkpoint,
    wait_for_nothing,
    wait_for_phase,
    wait_for_step,
)
from tests.e2e.long_jobs import MINUTE, check_the_end, long_job, ray_jobs
from tests.e2e.sightings import Sightings

from devcluster.failure import ClusterError
from devcluster.installation import Installation
from devcluster.jobs import get, phase
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

LONG_NAME = "fine.tune.0-" + "x" * 45 + ".model"


def test_two_jobs_at_once_end_as_they_should_though_the_operator_is_killed_in_every_phase(
    operator: Installation,
    kubectl: Kubectl,
    namespace: str,
    tiny_inputs: Volume,
    sightings: Sightings,
) -> None:
    """Each trains into a directory of its own, and a third of one's name resumes neither.

    That one is prepared before a cluster is asked for.
    """
    assert len(LONG_NAME) == 63
    both = ("twin", LONG_NAME)
    kubectl.apply(job("twin", namespace, **long_job(MINUTE)))
    kubectl.apply(job(LONG_NAME, namespace))
    wait_for("the RayJobs", lambda: all(ray_jobs(sightings, name) for name in both), seconds=10)
    operator.restart()
    wait_for_phase(kubectl, namespace, "twin", "Starting", seconds=30)
    operator.restart()
    wait_for_step(kubectl, namespace, "twin", 2, seconds=300)
    operator.kill()
    time.sleep(5)
    operator.start()
    wait_for_checkpoint(kubectl, namespace, "twin", seconds=300)
    operator.kill()
    [ray_job] = [each for each in {seen.name for seen in sightings.of("RayJob")} if "twin" in each]
    wait_for(
        "the RayJob to end",
        lambda: sightings.first("RayJob", ray_job, "Complete", "status", "jobDeploymentStatus"),
        seconds=400,
    )
    assert phase(kubectl, namespace, "twin") == "Running"
    operator.start()

    first = wait_for_phase(kubectl, namespace, "twin", "Succeeded", seconds=10)
    operator.restart()
    other = wait_for_phase(kubectl, namespace, LONG_NAME, "Succeeded", seconds=120)
    check_the_end(tiny_inputs, first, MINUTE)
    assert [len(ray_jobs(sightings, name)) for name in both] == [1, 1]
    assert at(get(kubectl, namespace, "twin"), "status") == at(first, "status")

    directories = [
        str(at(each, "status", "runDirectory")).removeprefix("pvc://finetune/") for each in (first, other)
    ]
    assert len(set(directories)) == 2
    assert at(other, "status", "progress", "step") == at(other, "status", "plan", "totalSteps")
    assert tiny_inputs.complete_checkpoints(directories[1]) == {
        str(at(other, "status", "bestCheckpoint", "name"))
    }

    kubectl("delete", "finetunejob", "--all", "--namespace", namespace, "--timeout=60s", seconds=70)
    wait_for_nothing(kubectl, namespace, seconds=60)
    kubectl.apply(job("twin", namespace, run_policy={"prepare_first": True}))
    second = wait_for_phase(kubectl, namespace, "twin", "Succeeded", seconds=300)
    again = str(at(second, "status", "runDirectory")).removeprefix("pvc://finetune/")
    assert again not in directories
    assert tiny_inputs.text(f"{again}/metrics.jsonl").splitlines()[0].startswith('{"step":1,')
    assert tiny_inputs.complete_checkpoints(directories[0]), "the data of a job that was deleted stays"
    with pytest.raises(ClusterError, match="No such file"):
        tiny_inputs.text(f"{again}/prepared/complete.json")
