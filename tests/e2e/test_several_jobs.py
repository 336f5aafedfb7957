"""Jobs beside and after each other, up to the end of what is left of them."""

from __future__ import annotations

import time

from tests.e2e.jobs import change, job, wait_for_nothing, wait_for_phase

from devcluster.installation import Installation
from devcluster.jobs import get
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.programs import Say
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

LONG_NAME = "fine.tune.0-" + "x" * 45 + ".model"


def test_two_jobs_at_once_train_into_directories_of_their_own_and_a_third_of_a_name_resumes_neither(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume, say: Say
) -> None:
    del operator
    assert len(LONG_NAME) == 63
    for name in ("twin", LONG_NAME):
        kubectl.apply(job(name, namespace))
    first, other = (
        wait_for_phase(kubectl, namespace, name, "Succeeded", seconds=420) for name in ("twin", LONG_NAME)
    )

    directories = [
        str(at(each, "status", "runDirectory")).removeprefix("pvc://finetune/") for each in (first, other)
    ]
    assert len(set(directories)) == 2
    for each, directory in zip((first, other), directories, strict=True):
        assert at(each, "status", "progress", "step") == at(each, "status", "plan", "totalSteps")
        assert tiny_inputs.complete_checkpoints(directory) == {
            str(at(each, "status", "bestCheckpoint", "name"))
        }

    kubectl("delete", "finetunejob", "--all", "--namespace", namespace, "--timeout=60s", seconds=70)
    wait_for_nothing(kubectl, namespace, seconds=60)
    kubectl.apply(job("twin", namespace))
    second = wait_for_phase(kubectl, namespace, "twin", "Succeeded", seconds=300)
    again = str(at(second, "status", "runDirectory")).removeprefix("pvc://finetune/")
    assert again not in directories
    assert tiny_inputs.text(f"{again}/metrics.jsonl").splitlines()[0].startswith('{"step":1,')
    assert tiny_inputs.complete_checkpoints(directories[0]), "the data of a job that was deleted stays"

    began = time.monotonic()
    change(kubectl, namespace, "finetunejob", "twin", run_policy={"ttl_seconds_after_finished": 1})
    wait_for("the job to go by its time to live", lambda: get(kubectl, namespace, "twin") is None, seconds=20)
    wait_for_nothing(kubectl, namespace, seconds=60)
    say(f"Succeeded, by its time to live: nothing left after {time.monotonic() - began:.1f} s")
