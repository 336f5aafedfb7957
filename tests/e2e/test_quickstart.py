"""`kubectl apply -f examples/finetunejob.yaml`: the real trainer, a real model, two worker pods."""

from __future__ import annotations

import math
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from pydantic import JsonValue
from tests.e2e.jobs import events, left, names_of, wait_for_phase
from tests.e2e.sightings import Sightings
from transformers import AutoModelForCausalLM, AutoTokenizer

from devcluster.installation import CONFIGURATION, Installation
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.programs import Say
from devcluster.volumes import Volume
from devcluster.waiting import wait_for
from finetune_api.assignment import RECORD_KEY
from finetune_api.yaml_text import parse

SETTLED_SECONDS = 5
"""The status follows storage by a record's way through the config map."""
EXAMPLE = Path(__file__).parents[2] / "examples/finetunejob.yaml"


@pytest.mark.timeout(1500)
def test_the_example_trains_and_shows_how(
    operator: Installation,
    kubectl: Kubectl,
    namespace: str,
    volume: Volume,
    sightings: Sightings,
    smollm2: Path,
    stdlib_train: Path,
    stdlib_validation: Path,
    tmp_path: Path,
    say: Say,
) -> None:
    volume.put(smollm2, "models/smollm2-135m-instruct")
    volume.put(stdlib_train, "data/stdlib-train.jsonl")
    volume.put(stdlib_validation, "data/stdlib-validation.jsonl")
    began = time.time()

    kubectl("apply", "--namespace", namespace, "-f", EXAMPLE)
    applied = time.time()
    observed = _Retained(kubectl, volume, namespace)
    observed.start()
    kubectl(
        "wait",
        "--namespace",
        namespace,
        "--for=condition=Succeeded",
        "finetunejob/quickstart",
        "--timeout=900s",
        seconds=920,
    )
    job = wait_for_phase(kubectl, namespace, "quickstart", "Succeeded", seconds=5)
    observed.stop()
    say(
        f"trained in {time.time() - began:.0f} s, as kubectl shows"
        f" it:\n{kubectl('get', 'ftj', '--namespace', namespace, '--output=wide')}"
    )

    _check_phases(sightings)
    _check_speed(sightings, began, applied, say)
    _check_status(job)
    assert operator.get("livez") == "ok"
    metrics = operator.get("metrics") or ""
    assert 'finetune_device_seconds_total{accelerator="A10G"}' in metrics
    assert "finetune_progress_lag_seconds_bucket" in metrics
    assert observed.looks >= 3
    assert observed.differences == []
    told = [reason for reason, _ in events(kubectl, namespace, "quickstart")]
    assert told[:2] == ["Accepted", "ClusterRequested"]
    assert {"Running", "CheckpointSaved", "Succeeded"} <= set(told)
    assert told.count("CheckpointSaved") == 3

    best = at(job, "status", "bestCheckpoint")
    assert isinstance(best, dict)
    directory = str(best["path"]).removeprefix("pvc://finetune/")
    adapter = volume.get(directory, tmp_path / "adapter")
    assert math.isclose(
        _validation_loss(smollm2, adapter, stdlib_validation), float(str(best["evalLoss"])), abs_tol=1e-5
    )
    wait_for(
        "the cluster to go",
        lambda: not _cluster(kubectl, namespace),
        seconds=60,
        seen=lambda: "\n".join(left(kubectl, namespace)),
    )


def _cluster(kubectl: Kubectl, namespace: str) -> list[str]:
    """What is there of a Ray cluster: itself, its pods and its token."""
    known = [each for each in left(kubectl, namespace) if each.startswith(("raycluster", "secret"))]
    return [
        *known,
        *(str(at(pod, "metadata", "name")) for pod in kubectl.all("pods", namespace, "ray.io/cluster")),
    ]


class _Retained(threading.Thread):
    """Compares the checkpoints of the status with those in storage, again and again.

    A difference that lasts longer than `SETTLED_SECONDS` is kept in `differences`.
    """

    def __init__(self, kubectl: Kubectl, volume: Volume, namespace: str) -> None:
        super().__init__(daemon=True)
        self._kubectl, self._volume, self._namespace = kubectl, volume, namespace
        self._over = threading.Event()
        self.looks = 0
        self.differences: list[str] = []

    def run(self) -> None:
        while not self._over.wait(2):
            self._look()

    def stop(self) -> None:
        self._over.set()
        self.join(60)
        self._look()

    def _look(self) -> None:
        deadline = time.monotonic() + SETTLED_SECONDS
        shown, stored = self._both()
        while shown != stored and time.monotonic() < deadline:
            time.sleep(0.5)
            shown, stored = self._both()
        self.looks += bool(stored)
        if shown != stored:
            self.differences.append(f"status {sorted(shown)}, storage {sorted(stored)}")

    def _both(self) -> tuple[set[str], set[str]]:
        status = at(self._kubectl.get("finetunejob", "quickstart", self._namespace), "status")
        if not isinstance(status, dict) or "runDirectory" not in status:
            return set(), set()
        stored = self._volume.complete_checkpoints(
            str(status["runDirectory"]).removeprefix("pvc://finetune/")
        )
        return names_of(status.get("checkpoints", [])), stored


def _check_phases(sightings: Sightings) -> None:
    phases = sightings.phases("quickstart")
    assert phases == ["Pending", "Starting", "Running", "Succeeded"]
    running = [
        each.body
        for each in sightings.of("FineTuneJob", "quickstart")
        if at(each.body, "status", "phase") == "Running"
    ]
    epochs = [str(at(body, "status", "progress", "epochs")) for body in running]
    losses = {at(body, "status", "progress", "trainLoss") for body in running}
    assert {"0/3", "1/3", "2/3"} <= set(epochs)
    assert len(losses) >= 4, "losses appear while it trains"


def _check_speed(sightings: Sightings, began: float, applied: float, say: Say) -> None:
    made = sightings.of("RayJob")[0]
    ray_ended = sightings.first("RayJob", made.name, "Complete", "status", "jobDeploymentStatus")
    succeeded = sightings.first("FineTuneJob", "quickstart", "Succeeded", "status", "phase")
    assert ray_ended is not None
    assert succeeded is not None
    to_ray_job, to_end = made.time - applied, succeeded.time - ray_ended.time
    lags = _record_lags(sightings)
    figures = (
        f"apply to RayJob {to_ray_job:.2f} s, RayJob's end to Succeeded {to_end:.2f} s, record to status"
        f" {max(lags):.2f} s at most"
    )
    say(
        f"{figures} ({len(lags)} records); the operator's part of the whole run:"
        f" {max(0, to_ray_job) + to_end:.2f} s"
    )
    # How quick it is depends on the machine; that it acts on what it sees, and does not wait for the next
    # look at everything, does not.
    resync = float(str(CONFIGURATION["resync_seconds"])) / 2
    assert made.time - began < resync
    assert to_ray_job < resync
    assert to_end < resync
    assert max(lags) < resync


def _record_lags(sightings: Sightings) -> list[float]:
    """Seconds from a record's being seen in the config map to its being seen in the status."""
    written: dict[str, float] = {}
    for each in sightings.of("ConfigMap"):
        text = at(each.body, "data", RECORD_KEY)
        record = parse(text, "record")[0] if isinstance(text, str) else None
        if record is not None and at(record, "progress") is not None:
            written.setdefault(
                str(at(record, "progress", "lastUpdateTime")) + str(at(record, "progress", "step")), each.time
            )
    shown: dict[str, float] = {}
    for each in sightings.of("FineTuneJob", "quickstart"):
        progress = at(each.body, "status", "progress")
        if isinstance(progress, dict):
            shown.setdefault(f"{progress['lastUpdateTime']}{progress['step']}", each.time)
    return [shown[key] - time_written for key, time_written in written.items() if key in shown]


def _check_status(job: dict[str, JsonValue]) -> None:
    status = at(job, "status")
    assert isinstance(status, dict)
    listed = status["conditions"]
    assert isinstance(listed, list)
    conditions = {str(each["type"]): each["status"] for each in listed if isinstance(each, dict)}
    assert conditions == {
        "Accepted": "True",
        "ClusterReady": "False",
        "Training": "False",
        "Succeeded": "True",
        "Reconciling": "False",
        "Stalled": "False",
    }
    assert at(status, "progress", "epochs") == "3/3"
    assert at(status, "progress", "percent") == 100
    assert at(status, "plan", "totalSteps") == at(status, "progress", "step") == 60
    assert at(status, "acceleratorType") == "A10G"
    assert at(status, "attempts") == 1
    assert len(names_of(status["checkpoints"])) == 2
    assert status["modelPath"] == at(status, "bestCheckpoint", "path")
    assert float(str(status["deviceSeconds"])) > 0
    ended, started = (datetime.fromisoformat(str(status[key])) for key in ("completionTime", "startTime"))
    assert ended > started


def _validation_loss(base: Path, adapter: Path, rows: Path) -> float:
    """The mean over all trained tokens, computed with transformers and peft alone, a row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)
    ).eval()
    total, count = 0.0, 0
    for line in rows.read_text(encoding="utf-8").splitlines():
        messages = yaml.safe_load(line)["messages"]
        asked, said = (
            str(
                tokenizer.apply_chat_template(
                    part, tokenize=False, add_generation_prompt=part is not messages
                )
            )
            for part in (messages[:-1], messages)
        )
        prompt, whole = (list(tokenizer(text, add_special_tokens=False).input_ids) for text in (asked, said))
        end = max(index for index, token in enumerate(whole) if token == tokenizer.eos_token_id) + 1
        ids = torch.tensor([whole])
        with torch.inference_mode():
            log_probabilities = model(input_ids=ids).logits[0].log_softmax(-1)
        for position in range(len(prompt), end):
            total -= float(log_probabilities[position - 1, whole[position]])
            count += 1
    return total / count
