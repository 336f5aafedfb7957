"""A worker is interrupted, and the job itself. The end is the same, and so are the losses.

The operator: test_several_jobs.py. The API server, the operator's release, and one device that is suspended:
../test_running_job.py.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.cli.command_line import only_run, process, write_job
from tests.e2e.jobs import (
    OURS,
    change,
    events,
    job,
    mark,
    names_of,
    wait_for_checkpoint,
    wait_for_nothing,
    wait_for_phase,
    wait_for_step,
    wait_until_given_back,
)
from tests.e2e.long_jobs import check_the_end, long_job, losses_of, ray_jobs
from tests.e2e.pod_names import names
from tests.e2e.sightings import Sightings
from tests.trainer.training_jobs import column

from devcluster.faults import kill_pod
from devcluster.installation import Installation
from devcluster.jobs import get
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.programs import Say
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

SIDECAR = "istio-proxy"
EPOCHS, DEVICES = 60, 2
IN_PARTS: dict[str, JsonValue] = {"parallelism": "fsdp", **long_job(EPOCHS, devices=DEVICES)}
"""A job whose workers hold a part of the model each. It takes about a minute."""


def test_a_worker_that_is_lost_and_a_suspension_end_in_resuming_from_what_was_saved(
    operator: Installation,
    kubectl: Kubectl,
    namespace: str,
    tiny_inputs: Volume,
    tiny_model: Path,
    tiny_rows: Path,
    tmp_path: Path,
    sightings: Sightings,
    say: Say,
) -> None:
    """The losses are those of one undisturbed device.

    Beside another job that loses its worker, and is deleted while it is retried. In that one a container that
    is not the job's was killed for want of memory before.
    """
    del operator
    kubectl.apply(job("unwanted", namespace, num_epochs=5000, checkpoint_every_n_epochs=2500))
    _give_its_worker_a_sidecar_that_is_killed_once(kubectl, namespace, "unwanted")
    wait_for_step(kubectl, namespace, "unwanted", 2, seconds=400)
    kubectl.apply(job("job", namespace, **IN_PARTS))
    assert _last_end_of_its_sidecar(kubectl, namespace, "unwanted") == "OOMKilled"
    _lose_its_worker(kubectl, namespace, "unwanted")
    wait_for_phase(kubectl, namespace, "unwanted", "Retrying", seconds=120)
    unwanted, deleted = mark(kubectl, namespace, "unwanted"), time.monotonic()
    kubectl("delete", "finetunejob", "unwanted", "--namespace", namespace, "--timeout=20s", seconds=30)

    wait_for_checkpoint(kubectl, namespace, "job", seconds=300)
    _lose_its_worker(kubectl, namespace, "job")
    retrying = wait_for_phase(kubectl, namespace, "job", "Retrying", seconds=120)
    assert at(retrying, "status", "failure", "class") == "NodeLost"
    before = names_of(at(retrying, "status", "checkpoints"))
    wait_for_nothing(kubectl, namespace, unwanted, seconds=deleted + 60 - time.monotonic())
    say(f"Retrying: nothing left after {time.monotonic() - deleted:.1f} s")
    wait_for_phase(kubectl, namespace, "job", "Running", seconds=300)
    wait_for(
        "another checkpoint",
        lambda: names_of(at(get(kubectl, namespace, "job"), "status", "checkpoints")) - before,
        seconds=120,
        seen=lambda: kubectl.story(namespace),
    )

    change(kubectl, namespace, "finetunejob", "job", suspend=True)
    suspended = wait_until_given_back(kubectl, namespace, "job")
    done = int(str(at(suspended, "status", "progress", "step")))
    assert names_of(at(suspended, "status", "checkpoints")) >= before
    assert len(ray_jobs(sightings, "job")) == 2
    change(kubectl, namespace, "finetunejob", "job", suspend=False)

    ended = wait_for_phase(kubectl, namespace, "job", "Succeeded", seconds=400)
    check_the_end(tiny_inputs, ended, EPOCHS, devices=DEVICES)
    found, expected = (
        losses_of(tiny_inputs, at(ended, "status")),
        _losses_of_one_device(tiny_model, tiny_rows, tmp_path),
    )
    assert found == pytest.approx(expected, abs=1e-5)
    assert done < int(str(at(ended, "status", "plan", "totalSteps")))
    assert at(ended, "status", "attempts") == 2
    assert at(ended, "status", "failure") is None
    assert len(ray_jobs(sightings, "job")) == 3
    assert "Retrying" in [reason for reason, _ in events(kubectl, namespace, "job")]


def _losses_of_one_device(model: Path, rows: Path, directory: Path) -> list[float]:
    """Of the job in parts, trained on this machine with the same rows in a step."""
    small = job("job", "here", **IN_PARTS)["spec"]
    assert isinstance(small, dict)
    fields: dict[str, JsonValue] = {
        **small,
        "model_id": str(model),
        "train_path": str(rows),
        "valid_path": str(rows),
        "num_devices": 1,
        "train_batch_size_per_device": DEVICES,
        "parallelism": "ddp",
        "storage": None,
    }
    ended = process("run", write_job(directory / "job.yaml", fields), "--storage", "runs", cwd=directory)
    assert ended.code == 0, ended.err
    return column(only_run(directory / "runs"), "loss")


def _lose_its_worker(kubectl: Kubectl, namespace: str, name: str) -> None:
    pod, *_ = names(kubectl, namespace, _worker_of(kubectl, namespace, name))
    kill_pod(kubectl, namespace, pod)


def _worker_of(kubectl: Kubectl, namespace: str, name: str) -> str:
    """The selector of a job's workers."""
    return f"ray.io/node-type=worker,{OURS}={at(get(kubectl, namespace, name), 'metadata', 'uid')}"


def _give_its_worker_a_sidecar_that_is_killed_once(kubectl: Kubectl, namespace: str, name: str) -> None:
    """As a mesh would: a worker that goes before Ray is up is made again, by a template that has changed."""
    worker = _worker_of(kubectl, namespace, name)
    [pod] = wait_for("a worker", lambda: kubectl.all("pods", namespace, worker), seconds=60, every=0.2)
    containers = at(pod, "spec", "containers")
    assert isinstance(containers, list)
    [image] = [at(each, "image") for each in containers if isinstance(each, dict)]
    takes_too_much_once = f"mkdir /tmp/{SIDECAR} || exec sleep infinity; exec python -c 'b\"x\" * (1 << 30)'"
    sidecar: JsonValue = {
        "name": SIDECAR,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", takes_too_much_once],
        "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "32Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "finetune-tmp", "mountPath": "/tmp"}],
    }
    add: JsonValue = [
        {"op": "add", "path": "/spec/workerGroupSpecs/0/template/spec/containers/-", "value": sidecar}
    ]
    cluster = str(at(pod, "metadata", "labels", "ray.io/cluster"))
    kubectl(
        "patch", "raycluster", cluster, "--namespace", namespace, "--type=json", "--patch", json.dumps(add)
    )
    kill_pod(kubectl, namespace, str(at(pod, "metadata", "name")))


def _last_end_of_its_sidecar(kubectl: Kubectl, namespace: str, name: str) -> JsonValue:
    [pod] = kubectl.all("pods", namespace, _worker_of(kubectl, namespace, name))
    statuses = at(pod, "status", "containerStatuses")
    assert isinstance(statuses, list)
    [sidecar] = [each for each in statuses if isinstance(each, dict) and each["name"] == SIDECAR]
    return at(sidecar, "lastState", "terminated", "reason")
