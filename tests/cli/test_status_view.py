from __future__ import annotations

import io
import json
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tests.cli.test_progress_words import NOW, PLAN, progress

from finetune_api.failure import FailureClass
from finetune_api.manifest import Manifest, read_manifest
from finetune_api.status import (
    Checkpoint,
    Evaluation,
    Failure,
    FineTuneJobStatus,
    Phase,
    PushedModel,
    Sample,
)
from finetune_cli.run import exit_code
from finetune_cli.status_view import as_json, as_yaml, show_next, show_summary

SAVED = Checkpoint(
    name="epoch-2",
    path="/runs/epoch-2",
    epoch=3,
    step=225,
    eval_loss=2.0,
    perplexity=7.389,
    time=NOW,
    best=True,
    latest=True,
)
ENDED = FineTuneJobStatus(
    phase=Phase.SUCCEEDED,
    message="trained 225 steps",
    plan=PLAN,
    progress=progress(3, trainLoss=1.95),
    evaluation=Evaluation(epoch=3, loss=2.0, perplexity=7.389),
    checkpoints=[SAVED],
    best_checkpoint=SAVED,
    start_time=NOW,
    completion_time=NOW + timedelta(seconds=150),
)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "job.yaml").write_text(
        "model_id: m\ntrain_path: daten-für-alle.jsonl\nlearning_rate: 1e-4\nlora_config: {}\n"
    )
    return read_manifest(tmp_path / "job.yaml")


def summary(status: FineTuneJobStatus) -> list[str]:
    shown = io.StringIO()
    show_summary(Console(file=shown, width=80), status, "/runs")
    return [" ".join(line.split()) for line in shown.getvalue().splitlines()]


def test_the_document_is_a_finetunejob_in_kubernetes_spelling(manifest: Manifest) -> None:
    document = yaml.safe_load(as_yaml(manifest, ENDED))

    assert (document["apiVersion"], document["kind"], document["metadata"]) == (
        "finetune.dev/v1alpha1",
        "FineTuneJob",
        {"name": "job"},
    )
    assert document["spec"] == {
        "model_id": "m",
        "train_path": "daten-für-alle.jsonl",
        "learning_rate": 0.0001,
        "lora_config": {},
    }
    assert document["status"]["bestCheckpoint"]["evalLoss"] == 2.0
    assert document["status"]["startTime"] == "2026-01-02T12:00:00Z"
    assert "conditions" not in document["status"], "what nobody has set is not shown"
    assert "failure" not in document["status"]


def test_yaml_and_json_say_the_same(manifest: Manifest) -> None:
    assert json.loads(as_json(manifest, ENDED)) == yaml.safe_load(as_yaml(manifest, ENDED))
    assert "daten-für-alle" in as_json(manifest, ENDED)
    assert "daten-für-alle" in as_yaml(manifest, ENDED)


def test_the_summary_of_a_job_that_succeeded() -> None:
    assert summary(ENDED) == [
        "Succeeded: trained 225 steps",
        "epochs completed 3/3",
        "training loss 1.950 in the last step",
        "last validation loss 2.000, perplexity 7.389",
        "time 2:30",
        "run directory /runs",
        "best checkpoint /runs/epoch-2",
        "",
        "checkpoint after epoch step validation loss perplexity",
        "epoch-2 3 225 2.000 7.389 best, latest",
    ]


def test_the_summary_says_where_on_a_hub_the_model_is() -> None:
    pushed = PushedModel(repository="a/b", revision="c1", url="https://hub/a/b/tree/c1", merged=True)

    assert "pushed to https://hub/a/b/tree/c1, merged" in summary(ENDED.model_copy(update={"pushed": pushed}))


def test_the_summary_has_the_report_and_answers_before_and_after() -> None:
    samples = [
        Sample(prompt="What?\nWhy?", base_answer="[b]No[/b].", answer="", expected="As\nso."),
        Sample(prompt="w" * 200, answer="Yes\x1b[31m."),
    ]
    shown = io.StringIO()
    console = Console(file=shown, width=60, markup=False)
    show_summary(console, ENDED.model_copy(update={"samples": samples}), "/runs", report="/runs/report.html")
    lines = shown.getvalue().splitlines()

    assert "  report           /runs/report.html" in lines
    assert lines[-8:] == [
        "",
        "  asked  What? Why?",
        "  base   [b]No[/b].",
        "  tuned  (nothing)",
        "  row    As so.",
        "",
        f"  asked  {'w' * 50}…",
        "  tuned  Yes\\x1b[31m.",
    ]


@pytest.mark.parametrize(
    ("adapter", "commands"),
    [
        (True, ["finetune chat '/my runs'", "finetune merge /runs/epoch-2 merged"]),
        (False, ["finetune chat '/my runs'"]),
    ],
)
def test_after_a_run_comes_what_to_do_next(adapter: bool, commands: list[str]) -> None:
    shown = io.StringIO()
    show_next(Console(file=shown, width=80), ENDED, "/my runs", adapter=adapter)

    assert [line.strip() for line in shown.getvalue().splitlines()] == ["", "next:", *commands]


def test_after_a_run_that_failed_there_is_nothing_to_do_next() -> None:
    shown = io.StringIO()
    show_next(Console(file=shown), FineTuneJobStatus(phase=Phase.FAILED), "/runs", adapter=True)

    assert shown.getvalue() == ""


def test_the_summary_of_a_job_that_failed_leaves_the_reason_to_standard_error() -> None:
    failure = Failure(failure_class=FailureClass.DIVERGED, message="the loss is nan")
    failed = FineTuneJobStatus(phase=Phase.FAILED, message="the loss is nan", plan=PLAN, failure=failure)

    assert summary(failed) == ["Failed", "run directory /runs"]


def test_a_checkpoint_without_validation_has_no_loss() -> None:
    unvalidated = SAVED.model_copy(update={"eval_loss": None, "perplexity": None})

    assert (
        summary(ENDED.model_copy(update={"checkpoints": [unvalidated]}))[-1] == "epoch-2 3 225 best, latest"
    )


def test_where_losses_have_no_perplexity_there_is_no_column_for_it() -> None:
    compared = SAVED.model_copy(update={"perplexity": None})
    evaluation = Evaluation(epoch=3, loss=2.0, metrics={"rewards/accuracies": 0.75})
    shown = summary(ENDED.model_copy(update={"checkpoints": [compared], "evaluation": evaluation}))

    assert "last validation loss 2.000, rewards/accuracies 0.75" in shown
    assert shown[-2:] == ["checkpoint after epoch step validation loss", "epoch-2 3 225 2.000 best, latest"]


@pytest.mark.parametrize(("phase", "code"), [(Phase.SUCCEEDED, 0), (Phase.FAILED, 1), (Phase.SUSPENDED, 130)])
def test_the_phase_decides_the_exit_code(phase: Phase, code: int) -> None:
    assert exit_code(FineTuneJobStatus(phase=phase)) == code
