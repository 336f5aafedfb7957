"""Jobs beside and after each other, to the end of what is left of them, while the operator comes and goes."""

from __future__ import annotations

import time

import pytest
from pydantic import JsonValue
from tests.e2e.jobs import (
    change,
    events,
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
from devcluster.programs import Say
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

LONG_NAME = "fine.tune.0-" + "x" * 45 + ".model"


def test_two_jobs_at_once_end_as_they_should_though_the_operator_is_killed_in_every_phase(
    operator: Installation,
    kubectl: Kubectl,
    namespace: str,
    tiny_inputs: Volume,
    sightings: Sightings,
    say: Say,
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
    _check_that_it_trained_on_what_was_prepared(kubectl, namespace, second, sightings, tiny_inputs, say)

    began = time.monotonic()
    change(kubectl, namespace, "finetunejob", "twin", run_policy={"ttl_seconds_after_finished": 1})
    wait_for("the job to go by its time to live", lambda: get(kubectl, namespace, "twin") is None, seconds=20)
    wait_for_nothing(kubectl, namespace, seconds=60)
    say(f"Succeeded, by its time to live: nothing left after {time.monotonic() - began:.1f} s")


def _check_that_it_trained_on_what_was_prepared(
    kubectl: Kubectl,
    namespace: str,
    ended: dict[str, JsonValue],
    sightings: Sightings,
    volume: Volume,
    say: Say,
) -> None:
    """The job has Succeeded."""
    name, uid = (str(at(ended, "metadata", key)) for key in ("name", "uid"))
    seen = [each for each in sightings.of("FineTuneJob", name) if at(each.body, "metadata", "uid") == uid]
    prepared = next(each for each in seen if at(each.body, "status", "plan"))
    ray_job = str(at(ended, "status", "rayJobName"))
    say(f"prepared {prepared.time - seen[0].time:.1f} s after it was applied")
    assert at(prepared.body, "status", "phase") in ("Preparing", "Pending")
    assert prepared.time <= sightings.of("RayJob", ray_job)[0].time
    told = [reason for reason, _ in events(kubectl, namespace, name)]
    last = told[len(told) - told[::-1].index("Accepted") :]
    assert [each for each in last if each != "SpecRemark"][:3] == [
        "Preparing",
        "Prepared",
        "ClusterRequested",
    ]
    directory = str(at(ended, "status", "runDirectory"))
    log = kubectl("logs", f"job/{ray_job}", "--namespace", namespace)
    assert f"the tokens of the rows are those in {directory}/prepared" in log
    with pytest.raises(ClusterError, match="No such file"):
        volume.text(f"{directory.removeprefix('pvc://finetune/')}/prepared/complete.json")
