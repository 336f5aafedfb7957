"""Jobs beside and after each other, to the end of what is left of them, while the operator comes and goes.

Each is of another task.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import JsonValue
from tests.e2e.jobs import (
    job,
    wait_for_checkpoint,
    wait_for_nothing,
    wait_for_phase,
    wait_for_step,
)
from tests.e2e.long_jobs import (
    CHECKPOINTS,
    MINUTE,
    check_the_end,
    long_job,
    losses_of,
    ray_jobs,
    steps_of,
)
from tests.e2e.sightings import Sightings
from tests.trainer.writable_hub import OWNER, WRITER, Hub, writable_hub

from devcluster.failure import ClusterError
from devcluster.installation import Installation
from devcluster.jobs import CLAIM, get, phase
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.volumes import Volume
from devcluster.waiting import wait_for
from make_stdlib_topics import LABELS, topic_rows

LONG_NAME = "fine.tune.0-" + "x" * 45 + ".model"
REWARDS = ("chosen", "rejected", "margins", "accuracies")
QUESTION = "What does `os.getpid` do?"
PAIRS, TOPICS = "data/pairs.jsonl", "data/topics.jsonl"
PREFERENCES: dict[str, JsonValue] = {
    "train_path": f"pvc://{CLAIM}/{PAIRS}",
    "valid_path": f"pvc://{CLAIM}/{PAIRS}",
    "preference_tuning_config": {"beta": 0.1},
    "context_length": 256,
}
CLASSES: dict[str, JsonValue] = {
    "train_path": f"pvc://{CLAIM}/{TOPICS}",
    "valid_path": f"pvc://{CLAIM}/{TOPICS}",
    "classifier_config": {"label_tokens": [*LABELS]},
}


def put_rows(volume: Volume, pairs: Path, directory: Path) -> None:
    """Copies pairs of answers and rows with labels to the volume."""
    volume.put(pairs, PAIRS)
    topics = directory / "topics.jsonl"
    topics.write_text("".join(f"{json.dumps(row)}\n" for row in topic_rows()[:24]), encoding="utf-8")
    volume.put(topics, TOPICS)


def check_metrics(kubectl: Kubectl, namespace: str, ended: dict[str, JsonValue], *names: str) -> None:
    """The status has the metrics of the job's task, and `kubectl get` shows its losses in columns."""
    evaluation = at(ended, "status", "evaluation")
    assert isinstance(evaluation, dict)
    metrics, loss = evaluation["metrics"], evaluation["loss"]
    assert isinstance(metrics, dict)
    assert isinstance(loss, float)
    assert metrics.keys() == set(names)
    assert "perplexity" not in evaluation
    name = str(at(ended, "metadata", "name"))
    heading, row = kubectl("get", "finetunejob", name, "--namespace", namespace).splitlines()
    columns = dict(zip(heading.split(), row.split(), strict=True))
    assert columns["PHASE"] == "Succeeded"
    assert float(columns["EVAL-LOSS"]) == pytest.approx(loss)


def _address_for_pods(kubectl: Kubectl) -> str:
    """This machine's towards the cluster: its API server, or a node where that is a port of this machine."""
    server = kubectl("config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}")
    host = str(urlsplit(server).hostname)
    if ipaddress.ip_address(host).is_loopback:
        addresses = "{.items[0].status.addresses[?(@.type=='InternalIP')].address}"
        host = kubectl("get", "nodes", f"--output=jsonpath={addresses}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((host, 9))  # nothing is sent
        return str(way.getsockname()[0])


@contextmanager
def hub_of(kubectl: Kubectl, namespace: str) -> Iterator[tuple[Hub, str]]:
    """A hub on this machine, and the name of a secret by which pods can write there."""
    with writable_hub(_address_for_pods(kubectl)) as hub:
        variables: dict[str, JsonValue] = {
            "HF_ENDPOINT": hub.address,
            "HF_TOKEN": WRITER,
            "HF_HUB_DISABLE_XET": "1",
        }
        secret: dict[str, JsonValue] = {"apiVersion": "v1", "kind": "Secret", "stringData": variables}
        kubectl.apply({**secret, "metadata": {"name": "hub", "namespace": namespace}})
        yield hub, "hub"
        kubectl("delete", "secret", "hub", "--namespace", namespace)


def check_that_it_goes_on(
    kubectl: Kubectl, namespace: str, volume: Volume, ended: dict[str, JsonValue]
) -> None:
    """A job that names the run of a `long_job` trains what is left and answers what it is asked.

    Its model is pushed to a hub, merged.
    """
    fields = {**long_job(MINUTE), "num_epochs": MINUTE + MINUTE // CHECKPOINTS}
    before = at(ended, "status", "runDirectory")
    fields |= {"sample_prompts": [QUESTION], "sample_max_tokens": 8, "resume_from": before}
    fields["output"] = {"push_to_hub": f"{OWNER}/tuned", "merge": True}
    with hub_of(kubectl, namespace) as (hub, secret):
        fields["cluster"] = {"env_from": [{"secretRef": {"name": secret}}]}
        kubectl.apply(job("more", namespace, **fields))
        status = at(wait_for_phase(kubectl, namespace, "more", "Succeeded", seconds=300), "status")
        shown = kubectl(
            "get", "finetunejobs,configmaps,events,pods", "--namespace", namespace, "--output=json"
        )
    assert isinstance(status, dict)
    assert not status.get("warnings")
    assert status["pushed"] == {
        "repository": f"{OWNER}/tuned",
        "revision": "commit-main-1",
        "url": f"{hub.address}/{OWNER}/tuned/tree/commit-main-1",
        "merged": True,
    }
    pushed = hub.repositories[f"{OWNER}/tuned"].files()
    assert pushed.keys() >= {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert WRITER not in shown
    assert status["runDirectory"] != before
    steps = steps_of(volume, status)
    assert steps == list(range(1, int(str(at(status, "plan", "totalSteps"))) + 1))
    trained = losses_of(volume, at(ended, "status"))
    assert len(steps) == len(trained) * (CHECKPOINTS + 1) // CHECKPOINTS
    assert losses_of(volume, status)[: len(trained)] == trained
    assert isinstance(status["samples"], list)
    [sample] = status["samples"]
    assert isinstance(sample, dict)
    assert sample["prompt"] == QUESTION
    assert sample["answer"]


def test_two_jobs_at_once_end_as_they_should_though_the_operator_is_killed_in_every_phase(
    operator: Installation,
    kubectl: Kubectl,
    namespace: str,
    tiny_inputs: Volume,
    sightings: Sightings,
    stdlib_pairs: Path,
    tmp_path: Path,
) -> None:
    """Each trains into a directory of its own, and a third of one's name resumes neither.

    That one is prepared before a cluster is asked for. Between them, a job goes on where one has ended.
    """
    put_rows(tiny_inputs, stdlib_pairs, tmp_path)
    assert len(LONG_NAME) == 63
    both = ("twin", LONG_NAME)
    kubectl.apply(job("twin", namespace, **long_job(MINUTE)))
    kubectl.apply(job(LONG_NAME, namespace, **PREFERENCES))
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
    check_metrics(kubectl, namespace, other, *(f"rewards/{each}" for each in REWARDS))
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

    check_that_it_goes_on(kubectl, namespace, tiny_inputs, first)
    kubectl("delete", "finetunejob", "--all", "--namespace", namespace, "--timeout=60s", seconds=70)
    wait_for_nothing(kubectl, namespace, seconds=60)
    kubectl.apply(job("twin", namespace, run_policy={"prepare_first": True}, **CLASSES))
    second = wait_for_phase(kubectl, namespace, "twin", "Succeeded", seconds=300)
    check_metrics(kubectl, namespace, second, "accuracy", "f1", "prauc")
    again = str(at(second, "status", "runDirectory")).removeprefix("pvc://finetune/")
    assert again not in directories
    assert tiny_inputs.text(f"{again}/metrics.jsonl").splitlines()[0].startswith('{"step":1,')
    assert tiny_inputs.complete_checkpoints(directories[0]), "the data of a job that was deleted stays"
    with pytest.raises(ClusterError, match="No such file"):
        tiny_inputs.text(f"{again}/prepared/complete.json")
