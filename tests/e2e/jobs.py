"""FineTuneJobs for the end-to-end tests, and waiting for what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue
from tests.e2e.pod_names import names

from devcluster.jobs import CLAIM, get
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

TINY_MODEL = f"pvc://{CLAIM}/models/tiny"
TINY_ROWS = f"pvc://{CLAIM}/data/tiny.jsonl"
UNKNOWN_ACCELERATOR: dict[str, JsonValue] = {"worker_resources": {"accelerator_type:Z9": 1}}
"""What an operator says no to as soon as it sees it."""
OURS = "finetune.dev/job-uid"
CHILDREN = (
    "rayjobs",
    "rayclusters",
    "pods",
    "configmaps",
    "serviceaccounts",
    "roles",
    "rolebindings",
    "networkpolicies",
    "services",
    "secrets",
    "jobs",
)


def put_tiny_inputs(volume: Volume, model: Path, rows: Path) -> None:
    """Copies what `job` trains, and on what, to the volume."""
    volume.put(model, "models/tiny")
    volume.put(rows, "data/tiny.jsonl")


def job(name: str, namespace: str, **spec: JsonValue) -> dict[str, JsonValue]:
    """A small model on a small data set, one CPU worker that presents as an A10G; `spec` is laid over it."""
    small: dict[str, JsonValue] = {
        "model_id": TINY_MODEL,
        "train_path": TINY_ROWS,
        "valid_path": TINY_ROWS,
        "storage": {"path": f"pvc://{CLAIM}/runs"},
        "worker_resources": {"accelerator_type:A10G": 0.001},
        "lora_config": {},
        "num_epochs": 3,
        "num_warmup_steps": 1,
        "context_length": 128,
        "train_batch_size_per_device": 4,
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {key: value for key, value in {**small, **spec}.items() if value is not None},
    }


def wait_for_phase(
    kubectl: Kubectl, namespace: str, name: str, *phases: str, seconds: float
) -> dict[str, JsonValue]:
    """The FineTuneJob when it is in one of the phases; a job that failed meanwhile ends the wait."""

    def reached() -> dict[str, JsonValue] | None:
        found = get(kubectl, namespace, name)
        now = at(found, "status", "phase")
        assert now != "Failed" or "Failed" in phases, at(found, "status")
        return found if now in phases else None

    def seen() -> str:
        return f"{at(get(kubectl, namespace, name), 'status')}\n{kubectl.story(namespace)}"

    return wait_for(f"{name} to be {' or '.join(phases)}", reached, seconds=seconds, seen=seen, every=0.5)


def wait_for_step(kubectl: Kubectl, namespace: str, name: str, step: int, *, seconds: float) -> None:
    """Until the status shows so many optimizer steps of a job that trains."""

    def reached() -> bool:
        found = get(kubectl, namespace, name)
        now, done = at(found, "status", "phase"), at(found, "status", "progress", "step")
        assert now not in ("Failed", "Succeeded"), at(found, "status")
        return now == "Running" and isinstance(done, int) and done >= step

    wait_for(
        f"step {step} of {name}", reached, seconds=seconds, seen=lambda: kubectl.story(namespace), every=0.5
    )


def wait_for_checkpoint(kubectl: Kubectl, namespace: str, name: str, *, seconds: float) -> None:
    """Until the status shows a checkpoint."""

    def saved() -> bool:
        found = get(kubectl, namespace, name)
        assert at(found, "status", "phase") != "Failed", at(found, "status")
        return bool(at(found, "status", "checkpoints"))

    wait_for(
        f"a checkpoint of {name}", saved, seconds=seconds, seen=lambda: kubectl.story(namespace), every=0.5
    )


def wait_until_given_back(kubectl: Kubectl, namespace: str, name: str) -> dict[str, JsonValue]:
    """The FineTuneJob when it is Suspended, has no pods of a cluster, and says what it will go on from."""
    wait_for_phase(kubectl, namespace, name, "Suspended", seconds=20)
    wait_for(
        "the cluster to go", lambda: not names(kubectl, namespace, "ray.io/cluster"), seconds=60, every=0.5
    )

    def given_back() -> dict[str, JsonValue] | None:
        found = get(kubectl, namespace, name)
        return found if "goes on from" in str(at(found, "status", "message")) else None

    def seen() -> str:
        return f"{at(get(kubectl, namespace, name), 'status')}\n{kubectl.story(namespace)}"

    return wait_for("its word", given_back, seconds=60, seen=seen)


def change(kubectl: Kubectl, namespace: str, kind: str, name: str, **spec: JsonValue) -> None:
    """Patches fields of an object's spec."""
    kubectl(
        "patch", kind, name, "--namespace", namespace, "--type=merge", "--patch", json.dumps({"spec": spec})
    )


def left(kubectl: Kubectl, namespace: str, of: str = "") -> list[str]:
    """`kind/name` of all objects but those that every namespace has, or that the tests made.

    `of` is in the names of those that are meant, such as `mark` of a job.
    """
    found = kubectl(
        "get", ",".join(("finetunejobs", *CHILDREN)), "--namespace", namespace, "--output=name"
    ).splitlines()
    always = ("configmap/kube-root-ca.crt", "serviceaccount/default", "pod/files")
    return sorted(each for each in found if each not in always and of in each)


def mark(kubectl: Kubectl, namespace: str, name: str) -> str:
    """What the names of everything that is made for a FineTuneJob have in them."""
    return str(at(get(kubectl, namespace, name), "metadata", "uid"))[:8]


def wait_for_nothing(kubectl: Kubectl, namespace: str, of: str = "", *, seconds: float) -> None:
    """Until nothing of FineTuneJobs is left in a namespace, or nothing of one."""
    wait_for(
        "everything to go",
        lambda: not left(kubectl, namespace, of),
        seconds=seconds,
        seen=lambda: "\n".join(left(kubectl, namespace, of)),
        every=1,
    )


def events(kubectl: Kubectl, namespace: str, name: str) -> list[tuple[str, str]]:
    """Reason and message of the events about a FineTuneJob, in their order."""
    found = [each for each in kubectl.all("events", namespace) if at(each, "involvedObject", "name") == name]
    mine = [each for each in found if at(each, "involvedObject", "kind") == "FineTuneJob"]
    ordered = sorted(
        mine,
        key=lambda each: (str(at(each, "metadata", "creationTimestamp")), str(at(each, "metadata", "name"))),
    )
    return [(str(each.get("reason")), str(each.get("message"))) for each in ordered]


def names_of(checkpoints: JsonValue) -> set[str]:
    """The names in a status's list of checkpoints."""
    assert isinstance(checkpoints, Sequence)
    return {str(each["name"]) for each in checkpoints if isinstance(each, Mapping)}
