"""A job on one device to its end: interrupted by Ctrl-C, by SIGTERM, finished, and run again."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.cli.command_line import Command, Ended, json_of, only_run, process, small_job, terminated
from tests.cli.interrupting import check_that_ctrl_c_before_the_first_step_ends_at_once
from tests.cli.terminal import CONTROL_SEQUENCE, CTRL_C, Terminal, screen

from finetune_api.failure import FailureClass
from finetune_api.manifest import read_manifest
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_trainer.local import local_run_directory

STEPS = 120


@dataclass(frozen=True)
class Story:
    """What three commands showed."""

    directory: Path
    interrupted: Ended
    """On a terminal, with its control sequences."""
    terminated: Ended
    finished: Ended


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Story:
    directory = tmp_path_factory.mktemp("story")
    small_job(
        directory, tiny_model, num_epochs=STEPS // 3, checkpoint_every_n_epochs=STEPS // 6, eval_first=True
    )
    arguments = ["run", "job.yaml", "--storage", "runs"]
    return Story(
        directory,
        interrupted=interrupted(directory, *arguments),
        terminated=terminated(directory, *arguments),
        finished=process(*arguments, "-o", "json", cwd=directory),
    )


def interrupted(directory: Path, *arguments: str) -> Ended:
    """Ctrl-C on a terminal, once the bar shows a loss."""
    with Terminal(*arguments, cwd=directory, columns=72) as terminal:
        terminal.read_until(r"epoch \d+/\d+ .*loss")
        terminal.press(CTRL_C)
        return Ended(terminal.exit_code(), terminal.seen, "")


def run_directory(story: Story) -> Path:
    """The only one in the storage."""
    return only_run(story.directory / "runs")


@pytest.fixture
def run_again(story: Story, finetune: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command of the story once more, with other options."""
    monkeypatch.chdir(story.directory)
    return partial(finetune, "run", "job.yaml", "--storage", "runs")


def status_of(ended: Ended) -> FineTuneJobStatus:
    return FineTuneJobStatus.model_validate(json_of(ended)["status"])


def test_on_a_terminal_a_bar_shows_epoch_steps_loss_and_time_left(story: Story) -> None:
    assert re.search(
        rf"epoch \d+/40 .*━.* \d+/{STEPS}  loss \d\.\d+  \d+:\d\d left",
        CONTROL_SEQUENCE.sub("", story.interrupted.out),
    )


def test_the_bar_is_drawn_over_itself_and_the_terminal_gets_its_cursor_back(story: Story) -> None:
    shown = story.interrupted.out

    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert [line for line in screen(shown) if "━" in line] == [], "no line that stays holds a bar"
    assert [line for line in screen(shown) if line.startswith(("starting", "⠋"))] == []


def test_ctrl_c_leaves_a_snapshot_says_how_to_go_on_and_is_exit_code_130(story: Story) -> None:
    shown = screen(story.interrupted.out)

    assert story.interrupted.code == 130
    assert any(
        re.fullmatch(r"Suspended: stopped after step \d+ of 120; run again to resume", line) for line in shown
    )
    assert not any("Traceback" in line for line in shown)


def test_without_a_terminal_there_are_plain_lines(story: Story) -> None:
    assert "\x1b" not in story.terminated.out
    assert "━" not in story.terminated.out
    assert re.search(
        rf"^epoch \d+/40  step \d+/{STEPS}$|^epoch \d+/40  step \d+/{STEPS}  loss ",
        story.terminated.out,
        re.MULTILINE,
    )


def test_sigterm_leaves_a_snapshot_too(story: Story) -> None:
    assert (story.terminated.code, story.terminated.err) == (130, "")
    assert re.search(r"^resuming from .*/snapshot-\d+$", story.terminated.out, re.MULTILINE)
    assert re.search(
        r"^Suspended: stopped after step \d+ of 120; run again to resume$",
        story.terminated.out,
        re.MULTILINE,
    )


def test_run_again_it_goes_on_to_the_end(story: Story) -> None:
    status = status_of(story.finished)

    assert story.finished.code == 0
    assert re.search(r"^resuming from .*/snapshot-\d+$", story.finished.err, re.MULTILINE)
    assert status.phase is Phase.SUCCEEDED
    assert status.progress is not None
    assert (status.progress.step, status.progress.epochs) == (STEPS, "40/40")
    lines = [json.loads(line) for line in (run_directory(story) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1)), "every step once"
    assert lines[0]["evalLoss"] > lines[-1]["evalLoss"]


def test_the_status_names_the_checkpoints_that_are_there(story: Story) -> None:
    status = status_of(story.finished)

    assert [checkpoint.name for checkpoint in status.checkpoints] == ["epoch-19", "epoch-39"]
    assert all(
        (Path(checkpoint.path) / "adapter_model.safetensors").is_file() for checkpoint in status.checkpoints
    )
    assert status.best_checkpoint is not None
    assert status.model_path == status.best_checkpoint.path


def test_the_result_is_the_finetunejob_with_its_status(story: Story) -> None:
    document = json_of(story.finished)
    job = yaml.safe_load((story.directory / "job.yaml").read_text())

    assert list(document) == ["apiVersion", "kind", "metadata", "spec", "status"]
    assert {name: document[name] for name in job} == job


def test_json_is_alone_on_standard_output_and_standard_error_holds_nothing_but_the_run(story: Story) -> None:
    said = [
        r"training on (CPU \(\d+ cores\)|\d+ .+)",
        r"resuming from .+",
        r"12 rows with [\d,]+ tokens, 40 x 3 steps, 8.2k of 213.3k parameters",
        r"validating the model before training",
        (
            r"(before training|after epoch [\d.]+): validation loss [\d.]+, perplexity [\d.]+"
            r"(, saved as epoch-\d+)?"
        ),
        r"epoch \d+/40  step +\d+/120(  loss [\d.]+)?(  [\d:]+ left)?(  [\d,]+ tokens/s)?",
    ]
    assert json_of(story.finished)
    assert [
        line
        for line in story.finished.err.splitlines()
        if not any(re.fullmatch(pattern, line) for pattern in said)
    ] == []


def test_a_run_that_has_finished_is_shown_again_and_not_trained(story: Story, run_again: Command) -> None:
    again, as_yaml = run_again(), run_again("-o", "yaml")
    before, after = json_of(story.finished), yaml.safe_load(as_yaml.out)

    assert (again.code, again.err) == (0, "")
    assert "this run has already finished; --restart deletes it and trains again" in again.out
    assert as_yaml.code == 0
    assert (
        FineTuneJobStatus.model_validate(after["status"]).checkpoints == status_of(story.finished).checkpoints
    )
    assert {name: after[name] for name in ("metadata", "spec")} == {
        name: before[name] for name in ("metadata", "spec")
    }


def test_people_get_a_summary_and_what_to_do_next(story: Story, run_again: Command) -> None:
    shown = run_again().out
    summary = shown[shown.index("Succeeded: ") :]
    lines = [" ".join(line.split()) for line in summary.splitlines()]

    assert "epochs completed 40/40" in lines
    assert f"run directory {run_directory(story)}" in lines
    assert f"report {run_directory(story)}/report.html" in lines
    assert lines[-3:] == [
        "next:",
        f"finetune chat {run_directory(story)}",
        f"finetune merge {status_of(story.finished).model_path} merged",
    ]
    assert "apiVersion" not in shown
    assert "checkpoint after epoch step validation loss perplexity" in lines
    for checkpoint in status_of(story.finished).checkpoints:
        marks = ", ".join(
            mark for mark, holds in {"best": checkpoint.best, "latest": checkpoint.latest}.items() if holds
        )
        numbers = (
            f"{checkpoint.epoch} {checkpoint.step} {checkpoint.eval_loss:.3f} {checkpoint.perplexity:.4g}"
        )
        assert f"{checkpoint.name} {numbers} {marks}".rstrip() in lines


def test_the_report_is_made_anew_from_the_run_directory(
    story: Story, finetune: Command, tmp_path: Path
) -> None:
    run = run_directory(story)
    before = (run / "report.html").read_text()
    elsewhere = finetune("report", run, "--out", "page.html")
    (run / "report.html").unlink()
    there = finetune("report", run)

    assert (elsewhere.code, elsewhere.out) == (0, "report: page.html\n")
    assert (there.code, there.out) == (0, f"report: {run}/report.html\n")
    assert (tmp_path / "page.html").read_text() == (run / "report.html").read_text() == before
    assert 'class="state finished"' in before
    nothing = finetune("report", tmp_path)
    assert (nothing.code, nothing.err) == (1, f"error: {tmp_path}: holds no run; give a run directory\n")


def test_ctrl_c_before_the_first_step_ends_at_once_and_says_so(tmp_path: Path, tiny_model: Path) -> None:
    check_that_ctrl_c_before_the_first_step_ends_at_once(tmp_path, tiny_model)


def test_answers_are_shown_as_they_come_and_before_and_after(
    finetune: Command, tmp_path: Path, tiny_model: Path
) -> None:
    job = small_job(tmp_path, tiny_model, sample_prompts=1, sample_max_tokens=4, checkpoint_every_n_epochs=2)
    manifest = read_manifest(job)
    run = Path(local_run_directory(manifest, str(tmp_path / "runs"), None).path)
    (run / "report.html").mkdir(parents=True)
    ended = finetune("run", job, "--storage", "runs")
    lines = ended.out.splitlines()
    question = json.loads((tmp_path / "valid.jsonl").read_text().splitlines()[0])["messages"][-2]["content"]

    assert ended.code == 0, "a report that cannot be written is no failure"
    assert any(line.startswith("warning: the report of the run is not written: ") for line in lines)
    asked = [index for index, line in enumerate(lines) if line.startswith("  asked ")]
    assert len(asked) == 3, "before training, with the checkpoint, and at the end"
    assert lines[asked[0]].split(maxsplit=1)[1][:40] == " ".join(question.split())[:40]
    assert all(lines[index + 1].startswith("  answered  ") for index in asked[:2])
    assert [line[:9] for line in lines[asked[2] + 1 : asked[2] + 3]] == ["  base   ", "  tuned  "]


def test_a_loss_that_is_not_finite_fails_and_says_what_to_change(
    finetune: Command, tmp_path: Path, tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(tmp_path / "broken/model.safetensors")
    weights["lm_head.weight"] = torch.full_like(weights["lm_head.weight"], torch.inf)
    save_file(weights, tmp_path / "broken/model.safetensors", metadata={"format": "pt"})

    ended = finetune("run", small_job(tmp_path, tmp_path / "broken", learning_rate=0.01), "-o", "json")
    status = status_of(ended)

    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("error: the loss of step 1 is nan")
    assert "lower spec.learning_rate (it is 0.01)" in ended.err
    assert (status.phase, status.failure and status.failure.failure_class) == (
        Phase.FAILED,
        FailureClass.DIVERGED,
    )
    assert status.checkpoints == []
    page = (only_run(tmp_path / "finetune-runs") / "report.html").read_text()
    assert 'class="state failed"' in page
    assert "the loss of step 1 is nan" in page
