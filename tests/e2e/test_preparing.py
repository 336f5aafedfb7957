"""What is wrong with data or model is known before a cluster is asked for; and so is no node for that pod.

That a job which is prepared first trains on what was prepared is shown by the one of `test_running_job.py`.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import JsonValue
from tests.e2e.jobs import change, events, job, left, mark, wait_for_nothing, wait_for_phase
from tests.e2e.sightings import Sightings

from devcluster.installation import Installation
from devcluster.jobs import get
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.programs import Say
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

FIRST: JsonValue = {"prepare_first": True}
BAD_LINE = 17
WRONG_ROW = '{"messages": [{"role": "human", "content": "Ping?"}]}'
KUBERNETES_JOB = "jobs.batch"


def test_what_is_wrong_ends_a_job_before_any_rayjob_is_made(
    operator: Installation,
    kubectl: Kubectl,
    namespace: str,
    tiny_inputs: Volume,
    tiny_rows: Path,
    sightings: Sightings,
    tmp_path: Path,
    say: Say,
) -> None:
    del operator
    rows = tiny_rows.read_text().splitlines()
    rows[BAD_LINE - 1] = WRONG_ROW
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(rows))
    tiny_inputs.put(bad, "data/bad.jsonl")
    no_layer: JsonValue = {"r": 4, "target_modules": ["no_such_layer"]}
    too_many: dict[str, JsonValue] = {
        "worker_resources": {"accelerator_type:L4": 1},
        "train_batch_size_per_device": 64,
        "padding": "max_length",
    }
    wrong: dict[str, tuple[dict[str, JsonValue], str, str]] = {
        "row": ({"train_path": "pvc://finetune/data/bad.jsonl"}, "InvalidData", f"bad.jsonl:{BAD_LINE}: "),
        "adapter": ({"lora_config": no_layer}, "InvalidSpec", "spec.lora_config.target_modules"),
        "size": (
            too_many,
            "InvalidSpec",
            "GiB a device, an L4 has 1.0: with train_batch_size_per_device ",
        ),
    }
    for name, (fields, _, _) in wrong.items():
        kubectl.apply(job(name, namespace, run_policy=FIRST, **fields))

    for name, (_, failure_class, words) in wrong.items():
        failed = wait_for_phase(kubectl, namespace, name, "Failed", seconds=120)
        message = str(at(failed, "status", "message"))
        say(f"{name}: Failed from Prepare {_seconds(failed):.0f} s after it was applied: {message}")
        assert at(failed, "status", "failure", "class") == failure_class
        assert words in message
        assert at(failed, "status", "attempts") == 1
        assert sightings.phases(name) == ["Preparing", "Failed"]
        told = [reason for reason, _ in events(kubectl, namespace, name)]
        assert [each for each in told if each != "SpecRemark"] == ["Accepted", "Preparing", "Failed"]
        prepare = f"job/{_prepare_job(kubectl, namespace, name)}"
        assert words in kubectl("logs", prepare, "--namespace", namespace), "its log is there afterwards"
    assert sightings.of("RayJob") == []


def test_a_job_that_cannot_be_prepared_yet_says_why_and_is_suspended_and_deleted(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume, sightings: Sightings
) -> None:
    del operator, tiny_inputs
    nowhere: JsonValue = {"prepare": {"node_selector": {"there-is": "no-such-node"}}}
    kubectl.apply(job("held", namespace, run_policy=FIRST, cluster=nowhere))

    def says() -> bool:
        return "no node takes pod" in str(at(get(kubectl, namespace, "held"), "status", "message"))

    wait_for("why it waits", says, seconds=30, seen=lambda: kubectl.story(namespace))
    waiting = get(kubectl, namespace, "held")
    assert at(waiting, "status", "phase") == "Preparing"
    assert "spec.cluster.prepare.resources" in str(at(waiting, "status", "message"))
    of = mark(kubectl, namespace, "held")

    change(kubectl, namespace, "finetunejob", "held", suspend=True)
    wait_for_phase(kubectl, namespace, "held", "Suspended", seconds=20)
    wait_for("its Job to go", lambda: not _prepare_jobs(kubectl, namespace, "held"), seconds=30)

    change(kubectl, namespace, "finetunejob", "held", suspend=False)
    wait_for(
        "another one, once the first has gone",
        lambda: _prepare_jobs(kubectl, namespace, "held"),
        seconds=60,
        seen=lambda: "\n".join(left(kubectl, namespace, of)),
    )
    kubectl("delete", "finetunejob", "held", "--namespace", namespace, "--timeout=30s", seconds=40)
    wait_for_nothing(kubectl, namespace, of, seconds=60)
    assert sightings.of("RayJob") == []


def _prepare_jobs(kubectl: Kubectl, namespace: str, name: str) -> list[str]:
    """The names of the Jobs that prepare a FineTuneJob, or have."""
    uid = at(get(kubectl, namespace, name), "metadata", "uid")
    found = kubectl.all(KUBERNETES_JOB, namespace, f"finetune.dev/job-uid={uid}")
    return [str(at(each, "metadata", "name")) for each in found]


def _prepare_job(kubectl: Kubectl, namespace: str, name: str) -> str:
    [found] = _prepare_jobs(kubectl, namespace, name)
    return found


def _seconds(ended: dict[str, JsonValue]) -> float:
    """From a job's being applied to its end."""
    created, completed = (
        datetime.fromisoformat(str(at(ended, *path)))
        for path in (("metadata", "creationTimestamp"), ("status", "completionTime"))
    )
    return (completed - created).total_seconds()
