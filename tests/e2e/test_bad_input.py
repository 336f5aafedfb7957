"""Jobs that cannot work end, or wait, with words that a person can act on."""

from __future__ import annotations

import json
from functools import partial

from pydantic import JsonValue
from tests.e2e.jobs import events, job, wait_for_phase, wait_for_step
from tests.e2e.sightings import Sightings

from devcluster.installation import Installation
from devcluster.jobs import get
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.programs import Say
from devcluster.volumes import Volume
from devcluster.waiting import wait_for

SOON: JsonValue = {"starting_deadline_seconds": 15}


def test_what_the_operator_can_tell_before_anything_is_made(
    operator: Installation, kubectl: Kubectl, namespace: str
) -> None:
    del operator
    kubectl.apply(job("job", namespace, worker_resources={"accelerator_type:H1000": 0.001}))

    failed = wait_for_phase(kubectl, namespace, "job", "Failed", seconds=10)
    message = str(at(failed, "status", "message"))
    assert "H1000" in message
    assert "A10G" in message
    assert at(failed, "status", "failure", "class") == "InvalidSpec"
    assert kubectl.all("rayjobs", namespace) == []


def test_an_image_that_does_not_exist_and_a_node_that_does_not(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume
) -> None:
    del operator, tiny_inputs
    kubectl.apply(job("image", namespace, cluster={"image": "localhost/absent:1"}, run_policy=SOON))
    kubectl.apply(
        job(
            "node",
            namespace,
            cluster={"worker": {"resources": {"requests": {"cpu": "1000"}}}},
            run_policy=SOON,
        )
    )

    def says(name: str, words: str) -> None:
        wait_for(
            words, lambda: words in str(at(get(kubectl, namespace, name), "status", "message")), seconds=30
        )

    says("image", "cannot get the image localhost/absent:1")
    says("node", "Insufficient cpu")
    for name, expected in (("image", "ImagePull"), ("node", "Unschedulable")):
        failed = wait_for_phase(kubectl, namespace, name, "Failed", seconds=60)
        assert at(failed, "status", "failure", "class") == expected
        assert "starting_deadline_seconds" in str(at(failed, "status", "message"))
        assert at(failed, "status", "attempts") == 1


def test_data_that_is_not_there_and_a_model_that_is_none(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume, say: Say
) -> None:
    del operator, tiny_inputs
    kubectl.apply(job("data", namespace, train_path="pvc://finetune/data/absent.jsonl"))
    kubectl.apply(job("model", namespace, model_id="pvc://finetune/models/absent"))

    for name, expected, words in (
        ("data", "InvalidData", "data/absent.jsonl"),
        ("model", "ModelNotFound", "models/absent"),
    ):
        failed = wait_for_phase(kubectl, namespace, name, "Failed", seconds=240)
        say(f"{name}: {at(failed, 'status', 'message')}")
        assert at(failed, "status", "failure", "class") == expected
        assert words in str(at(failed, "status", "message"))
        assert at(failed, "status", "attempts") == 1


def test_a_hostile_progress_record_is_not_shown_and_does_no_harm(
    operator: Installation, kubectl: Kubectl, namespace: str, tiny_inputs: Volume, sightings: Sightings
) -> None:
    del operator, tiny_inputs
    kubectl.apply(job("job", namespace, num_epochs=1000, checkpoint_every_n_epochs=500))
    wait_for_step(kubectl, namespace, "job", 1, seconds=300)
    config_map = str(at(sightings.of("RayJob")[0].body, "metadata", "name")).removesuffix("-1")
    theirs = {
        "name": "epoch-0",
        "path": "pvc://finetune/runs/other/job/epoch-0",
        "epoch": 1,
        "step": 1,
        "time": "2026-01-01T00:00:00Z",
    }
    for record, words in (
        ('"' + "x" * 950_000 + '"', "it has 950002 bytes"),
        ('{"progress": 1}', "progress: Input should be"),
        ("[" * 100_000, "it: Invalid JSON"),
        (json.dumps({"checkpoints": [theirs]}), "checkpoints.0.path is not that of epoch-0"),
    ):
        told = partial(_told_of, kubectl, namespace, config_map, record, f"is not shown: {words}", sightings)
        shown = wait_for(f"the operator's word: {words}", told, seconds=30)
        assert at(shown, "status", "phase") == "Running"
        assert at(shown, "status", "checkpoints") == []
        assert "xxxx" not in json.dumps(shown)
        wait_for(
            "the trainer's next word",
            lambda: "training" in str(at(get(kubectl, namespace, "job"), "status", "message")),
            seconds=30,
        )
    assert "RecordInvalid" in [reason for reason, _ in events(kubectl, namespace, "job")]


def _told_of(
    kubectl: Kubectl, namespace: str, config_map: str, record: str, words: str, sightings: Sightings
) -> dict[str, JsonValue] | None:
    """Writes the record, over and over while this is called: the trainer's next one may take its place before the operator looks.

    Returns the first FineTuneJob whose message has the words.
    """
    patch = json.dumps({"data": {"record.json": record}})
    kubectl(
        "patch",
        "configmap",
        config_map,
        "--namespace",
        namespace,
        "--type=merge",
        "--patch-file=/dev/stdin",
        stdin=patch,
    )
    return next(
        (
            each.body
            for each in sightings.of("FineTuneJob")
            if words in str(at(each.body, "status", "message"))
        ),
        None,
    )
