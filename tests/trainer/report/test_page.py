"""The page of a run, from its directory alone."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.trainer.training.test_samples import ASKED, asking
from tests.trainer.training_jobs import LORA, TRAINING_ROWS, column, job_of, train_here

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import read_manifest
from finetune_api.status import Failure
from finetune_trainer.report.chart import MOST_POINTS, Line, chart, ticks
from finetune_trainer.report.page import page_of
from finetune_trainer.report.versions import versions
from finetune_trainer.storage.run_directory import AttemptNote, RunDirectory

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tiny}
spec:
  model_id: organisation/<i>model</i>
  train_path: s3://AKIAKEY:s3cr3t@bucket/rows.jsonl
  lora_config: {r: 4}
  sample_prompts: ["And <b>who</b> are you?"]
  cluster:
    env:
      - {name: PASSWORD, value: hunter2}
"""


class Read(HTMLParser):
    """The text of a page, the tags in it, and what it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with answers, of a job that has secrets."""
    directory = tmp_path_factory.mktemp("page")
    run = RunDirectory.open(str(directory / "run"))
    (directory / "job.yaml").write_text(JOB)
    run.claim(read_manifest(directory / "job.yaml").to_yaml(), "default/tiny-0123456789")
    (directory / "run/job.yaml").rename(directory / "kept.yaml")
    fields = {**LORA, **ASKED, "learning_rate": 0.02}
    job = asking(
        job_of(tiny_model, directory / "run", fields, validation=TRAINING_ROWS, num_checkpoints_to_keep=1)
    )
    run.note_attempt(note_of(directory / "run", tiny_model, warnings=["<script>alert(1)</script> is odd"]))
    train_here(job)
    (directory / "kept.yaml").replace(directory / "run/job.yaml")
    return run


def note_of(run: Path, model: Path, **fields: object) -> AttemptNote:
    plan = job_of(model, run / "other", LORA).prepared.plan
    given = {"devices": 1, "versions": versions(), "warnings": [], "began": "2026-01-02T12:00:00Z"}
    return AttemptNote.model_validate({"plan": plan, **given, **fields})


def test_it_is_one_file_that_fetches_nothing_and_runs_nothing(finished: RunDirectory) -> None:
    page = page_of(finished)
    read = Read(page)

    assert read.fetched == []
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert not re.search(r"@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_it_is_the_same_each_time(finished: RunDirectory) -> None:
    assert page_of(finished) == page_of(finished)


def test_what_users_wrote_is_text(finished: RunDirectory) -> None:
    read = Read(page_of(finished))

    assert "And <b>who</b> are you?\nSay it." in read.text
    assert "organisation/<i>model</i>" in read.text
    assert "<script>alert(1)</script> is odd" in read.text
    assert "i" not in read.tags


def test_it_has_no_secrets(finished: RunDirectory) -> None:
    page = page_of(finished)

    assert "s3://bucket/rows.jsonl" in page
    for secret in ("hunter2", "PASSWORD", "AKIAKEY", "s3cr3t"):
        assert secret not in page


def test_it_shows_losses_answers_checkpoints_plan_and_versions(finished: RunDirectory) -> None:
    page = page_of(finished)
    read = Read(page)
    evaluations = column(finished.path, "evalLoss")
    losses = column(finished.path, "loss")

    assert "finished" in read.text
    assert f"{min(evaluations):.3f}" in read.text
    assert f"{evaluations[0]:.3f} before training" in read.text
    assert all(f"{loss:.4f}" in read.text for loss in evaluations)
    assert "not kept" in read.text
    assert "kept, best, newest" in read.text
    assert "lora_config.r" in read.text
    assert versions()["torch"] in read.text
    (loss_chart, _rate, _speed) = [ET.fromstring(svg) for svg in re.findall(r"(?s)<svg.*?</svg>", page)]
    training, validation = loss_chart.findall("polyline")
    assert len(training.attrib["points"].split()) == len(losses)
    assert len(validation.attrib["points"].split()) == len(evaluations)
    lowest = max(validation.attrib["points"].split(), key=lambda point: float(point.split(",")[1]))
    (ring,) = [each for each in loss_chart.findall("circle") if each.attrib["class"] == "ring valid"]
    assert f"{ring.attrib['cx']},{ring.attrib['cy']}" == lowest, (
        "the ring is around the lowest validation loss"
    )
    for line in finished.metrics().splitlines():
        if '"samples"' in line:
            assert "answer" in line
    assert "base" in read.text
    assert "tuned" in read.text


@pytest.mark.parametrize(
    ("note", "state", "said"),
    [
        ({}, "unfinished", "it goes on, or its process has ended without a word"),
        ({"ended": "2026-01-02T13:00:00Z"}, "stopped", "after step 2 of 18; run again to resume"),
        (
            {
                "ended": "2026-01-02T13:00:00Z",
                "failure": Failure(failure_class=FailureClass.DIVERGED, message="the loss is nan"),
            },
            "failed",
            "after step 2 of 18: the loss is nan",
        ),
    ],
)
def test_a_run_that_has_not_finished_says_how_it_ended(
    tiny_model: Path, tmp_path: Path, note: dict[str, object], state: str, said: str
) -> None:
    train_here(job_of(tiny_model, tmp_path / "run", LORA), stop_after=2)
    run = RunDirectory.open(str(tmp_path / "run"))
    run.note_attempt(note_of(tmp_path, tiny_model, **note))
    read = Read(page_of(run))

    assert f" {state}" in read.text
    assert said in read.text


def test_a_run_of_an_earlier_version_has_a_page_too(tiny_model: Path, tmp_path: Path) -> None:
    train_here(job_of(tiny_model, tmp_path, LORA, num_epochs=1))

    assert "finished" in Read(page_of(RunDirectory.open(str(tmp_path)))).text


def test_where_there_is_no_run_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(FineTuneError, match="holds no run; give a run directory"):
        page_of(RunDirectory.open(str(tmp_path)))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (2.36, 4.13, [2.0, 2.5, 3.0, 3.5, 4.0, 4.5]),
        (0, 0.0003, None),
        (7, 7, None),
    ],
)
def test_ticks_are_round_and_go_around_what_is_drawn(
    low: float, high: float, expected: list[float] | None
) -> None:
    found = ticks(low, high)

    assert found[0] <= low
    assert found[-1] >= high
    assert 3 <= len(found) <= 8
    assert expected is None or found == expected


def test_a_long_line_is_drawn_by_means_and_what_is_not_finite_is_left_out() -> None:
    points = [(float(step), math.nan if step == 3 else 1.0) for step in range(100_001)]
    svg = ET.fromstring(chart([Line("loss", "train", points)], "loss"))
    (line,) = svg.findall("polyline")

    assert MOST_POINTS / 2 < len(line.attrib["points"].split()) <= MOST_POINTS
    assert len({point.split(",")[1] for point in line.attrib["points"].split()}) == 1
    assert chart([Line("loss", "train", [])], "loss") == ""
