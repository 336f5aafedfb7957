"""Writes metrics and checkpoints, and reports progress. Rank 0 does this besides training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from finetune_api.failure import FineTuneError
from finetune_api.numbers import Numbers
from finetune_api.retention import flagged, kept
from finetune_api.status import (
    LONGEST_TEXT,
    Checkpoint,
    Evaluation,
    Plan,
    Progress,
    ProgressRecord,
    shortened,
)
from finetune_trainer.report.background import Background, LineWriter
from finetune_trainer.report.comparison import Comparison
from finetune_trainer.report.metrics import (
    Answers,
    EvaluationLine,
    Line,
    SampleLine,
    StepLine,
    sample_lines_in,
)
from finetune_trainer.report.pace import Pace
from finetune_trainer.report.trackers.tracker import Tracker
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.tasks.objective import Mean

SAVING = "checkpoint"
"""The name of the thread that saves or deletes checkpoints."""

Gather = Callable[[dict[str, int]], list[dict[str, int]]]
"""Exchanges the sizes of files between all ranks, which must all call it."""


@dataclass(frozen=True)
class ToSave:
    """A checkpoint or a snapshot that is to be saved."""

    checkpoint: str | None
    """The checkpoint's name; None for a snapshot."""
    step: int
    evaluation: Evaluation | None
    write: Callable[[Path], None]
    """Is called with an empty directory, and writes the files into it."""


class Reporter:
    """Takes note of what happens in training. Every rank has one, so that the loop is the same on all.

    This one does nothing, as that of ranks other than 0.
    """

    def try_saving(self, write: Callable[[Path], None]) -> None:
        """Before the first step: tries whether checkpoints can be saved, so that none is lost to a writer.

        `write` is called with an empty directory, and writes the small files of a checkpoint into it.
        """

    def step_done(self, step: int, *, loss: Mean, grad_norm: float, tokens: int) -> None:
        """Optimizer step `step`, counted from 1, is done. It had `tokens` tokens, without padding."""

    def evaluated(self, step: int, evaluation: Evaluation, checkpoint: str | None) -> None:
        """The model was validated after `step` steps. `checkpoint` is the one about to be saved, if any."""

    def answered(self, step: int, answers: Answers | None, checkpoint: str | None) -> None:
        """The model was asked after `step` steps, unless there is nothing to ask. As for `evaluated`."""

    def ready_to_save(self, step: int, evaluation: Evaluation | None) -> None:
        """Waits for what is being saved: of copies in memory there is one at most."""

    def save(self, what: ToSave, *, at_once: bool) -> None:
        """Saves a checkpoint or a snapshot.

        That is done before this returns if it is to be done `at_once`, else in the background. An error there
        is raised by the next call that has to do with checkpoints, after the next step at the latest.
        """

    def progress(self, step: int, evaluation: Evaluation | None) -> None:
        """Reports progress after `step` steps. The time since the last step was done counts as a pause."""

    def finish(self, step: int, evaluation: Evaluation | None, *, stopped_early: bool) -> None:
        """Training has finished, perhaps before its last step.

        Writes the result, and deletes checkpoints that are not to be kept.
        """


class HelpingReporter(Reporter):
    """The reporter of ranks other than 0 where each holds a part of the model: they write their parts."""

    def __init__(self, run: RunDirectory, gather: Gather) -> None:
        self._run = run
        self._gather = gather

    def save(self, what: ToSave, *, at_once: bool) -> None:
        """Writes this rank's files, and tells rank 0 of them, which makes the checkpoint complete."""
        del at_once  # parts are written by all ranks together
        name = what.checkpoint or self._run.snapshot_name(what.step)
        with self._run.helping(name) as staging:
            what.write(staging)
            self._gather(self._run.hand_in(name, staging))


class RankZeroReporter(Reporter):
    """The reporter of rank 0.

    `to_keep` is how many checkpoints are kept, `tokens_trained` how many tokens the run had trained on
    before, and `report` takes progress records. `gather` is given where other ranks write files too.
    """

    def __init__(
        self,
        plan: Plan,
        numbers: Numbers,
        run: RunDirectory,
        *,
        to_keep: int,
        tokens_trained: int,
        tracker: Tracker,
        report: Callable[[ProgressRecord], None],
        gather: Gather | None = None,
    ) -> None:
        self._gather = gather
        self._plan = plan
        self._numbers = numbers
        self._run = run
        self._to_keep = to_keep
        self._tokens_trained = tokens_trained
        self._tracker = tracker
        self._report = report
        self._checkpoints = run.checkpoints()
        self._last_step: StepLine | None = None
        self._last: ProgressRecord | None = None
        self._finished = self._stopped_early = False
        self._samples = Comparison()
        for line in sample_lines_in(run.metrics()):
            self._samples.add(line)
        self._unanswered: str | None = None
        self._lines = LineWriter(run.append_metrics)
        self._saving: Background[list[Checkpoint]] | None = None
        self._deleting: Background[None] | None = None
        self._now: tuple[int, Evaluation | None] = (0, None)
        self._pace = Pace(numbers.total_steps)

    def try_saving(self, write: Callable[[Path], None]) -> None:
        """Writes the files, and a file into storage, and deletes them again."""
        self._run.try_writing(write)

    def step_done(self, step: int, *, loss: Mean, grad_norm: float, tokens: int) -> None:
        """Writes a line to metrics.jsonl and to the tracker."""
        self._pace.add(tokens)
        self._tokens_trained += tokens
        self._last_step = StepLine(
            step=step,
            epoch=round(step / self._numbers.steps_per_epoch, 4),
            loss=loss.loss,
            learning_rate=self._numbers.learning_rate_at(step - 1),
            grad_norm=grad_norm,
            tokens=tokens,
            tokens_per_second=self._pace.tokens_per_second,
            time=datetime.now(UTC),
            metrics=loss.metrics,
        )
        self._write(self._last_step)

    def evaluated(self, step: int, evaluation: Evaluation, checkpoint: str | None) -> None:
        """Writes a line to metrics.jsonl and to the tracker."""
        self._write(
            EvaluationLine(
                step=step,
                epoch=evaluation.epoch,
                eval_loss=evaluation.loss,
                perplexity=evaluation.perplexity,
                checkpoint=checkpoint,
                time=datetime.now(UTC),
                metrics=evaluation.metrics,
            )
        )

    def answered(self, step: int, answers: Answers | None, checkpoint: str | None) -> None:
        """Writes a line to metrics.jsonl and to the tracker, and takes note of what was not answered."""
        if answers is None:
            return
        line = SampleLine(
            step=step,
            epoch=round(step / self._numbers.steps_per_epoch, 4),
            samples=answers.answers,
            left_out=answers.left_out,
            seconds=round(answers.seconds, 3),
            checkpoint=checkpoint,
            time=datetime.now(UTC),
        )
        self._write(line)
        self._samples.add(line)
        self._unanswered = _unanswered(line, answers.problem)

    def ready_to_save(self, step: int, evaluation: Evaluation | None) -> None:
        """Waits for what is being saved or deleted. Raises FineTuneError when that has failed."""
        self._settle(step, evaluation, wait=True)

    def save(self, what: ToSave, *, at_once: bool) -> None:
        """Saves a checkpoint or a snapshot, and then deletes checkpoints that are no longer to be kept.

        They are deleted only when the new one is complete, and when a progress record without
        them was reported.
        """
        self.ready_to_save(what.step, what.evaluation)
        if at_once:
            self._take(self._saved(what), what.step, what.evaluation)
            self.ready_to_save(what.step, what.evaluation)
        else:
            self._saving = Background(partial(self._saved, what), SAVING)

    def progress(self, step: int, evaluation: Evaluation | None) -> None:
        """Reports a progress record."""
        self._now = step, evaluation
        self._settle(step, evaluation, wait=False)
        self._told(self._progress_record(step, evaluation))
        self._pace.resume()

    def finish(self, step: int, evaluation: Evaluation | None, *, stopped_early: bool) -> None:
        """Writes the result and reports it, and then deletes checkpoints that are not to be kept.

        The result comes first, so that a process that dies here leaves a run that needs no
        checkpoint to resume.
        """
        self.ready_to_save(step, evaluation)
        self._stopped_early = stopped_early
        self._lines.wait()
        keep = kept(self._checkpoints, self._to_keep, finished=True)
        self._checkpoints = [checkpoint for checkpoint in self._checkpoints if checkpoint.name in keep]
        self._run.finish(self._progress_record(step, evaluation))
        self._finished = True
        self.progress(step, evaluation)
        self._run.prune(keep)

    def closed(self, *, at_once: bool = False) -> None:
        """Training is over, or has failed, and the tracker is closed: stores the last lines of metrics.jsonl.

        Waits for what is being saved, unless it is to end `at_once`. Reports what has turned out meanwhile to
        be missing there, or at the tracker.
        """
        if not at_once:
            # What goes wrong here is not why training has failed.
            with suppress(Exception):
                before, (step, evaluation) = self._checkpoints, self._now
                self._settle(step, evaluation, wait=True)
                if self._checkpoints != before:
                    self._told(self._progress_record(step, evaluation))
        self._lines.close()
        with suppress(FineTuneError):  # which is what `late_metrics` says then
            self._run.flush_metrics()
        if self._last is None or self._last.warnings == self._warnings():
            return
        self._told(self._last.model_copy(update={"warnings": self._warnings()}))
        if self._finished:
            self._run.finish(self._last)

    def _saved(self, what: ToSave) -> list[Checkpoint]:
        """Writes a checkpoint or snapshot, and makes it complete; returns all that are."""
        checkpoint, step = what.checkpoint, what.step
        with self._run.staging(checkpoint or self._run.snapshot_name(step)) as staging:
            what.write(staging)
            others = self._gather({})[1:] if self._gather is not None else []
            handed_in = {name: size for files in others for name, size in files.items()}
            self._lines.wait()  # a run that resumes from here has the lines up to here
            if checkpoint:
                record = self._record(checkpoint, step, what.evaluation)
                self._run.commit(checkpoint, staging, record, handed_in)
            else:
                self._run.commit_snapshot(step, staging, handed_in)
        return self._run.checkpoints()

    def _settle(self, step: int, evaluation: Evaluation | None, *, wait: bool) -> None:
        """Takes what was done in the background, or what of it is done already. Raises what it met."""
        if self._saving is not None and (wait or self._saving.done):
            saving, self._saving = self._saving, None
            self._take(saving.result(), step, evaluation)
        if self._deleting is not None and (wait or self._deleting.done):
            deleting, self._deleting = self._deleting, None
            deleting.result()

    def _take(self, complete: list[Checkpoint], step: int, evaluation: Evaluation | None) -> None:
        """Takes note of the complete checkpoints, and begins to delete those that are not to be kept."""
        keep = kept(complete, self._to_keep, finished=False)
        self._checkpoints = [checkpoint for checkpoint in complete if checkpoint.name in keep]
        if len(keep) < len(complete):
            self._told(self._progress_record(step, evaluation))
            self._deleting = Background(partial(self._run.prune, keep), SAVING)

    def _told(self, record: ProgressRecord) -> None:
        self._last = record
        self._report(record)

    def _warnings(self) -> list[str]:
        late = (self._tracker.lost, self._run.late_metrics, self._unanswered)
        return [each for each in late if each is not None]

    def _record(self, name: str, step: int, evaluation: Evaluation | None) -> Checkpoint:
        return Checkpoint(
            name=name,
            path=self._run.checkpoint_path(name),
            epoch=step // self._numbers.steps_per_epoch,
            step=step,
            eval_loss=evaluation.loss if evaluation else None,
            perplexity=evaluation.perplexity if evaluation else None,
            time=datetime.now(UTC),
        )

    def _progress_record(self, step: int, evaluation: Evaluation | None) -> ProgressRecord:
        last = self._last_step
        progress = Progress(
            epoch=round(step / self._numbers.steps_per_epoch, 2),
            epochs=f"{step // self._numbers.steps_per_epoch}/{self._numbers.total_epochs}",
            step=step,
            percent=100 * step // self._numbers.total_steps,
            train_loss=last.loss if last else None,
            learning_rate=last.learning_rate if last else None,
            grad_norm=last.grad_norm if last else None,
            tokens_per_second=self._pace.tokens_per_second,
            tokens_trained=self._tokens_trained,
            estimated_completion_time=None if self._stopped_early else self._pace.estimated_completion(step),
            last_update_time=datetime.now(UTC),
        )
        return ProgressRecord(
            plan=self._plan,
            progress=progress,
            evaluation=evaluation,
            samples=self._samples.shown(),
            checkpoints=flagged(self._checkpoints),
            warnings=self._warnings(),
            stopped_early=self._stopped_early,
        )

    def _write(self, line: Line) -> None:
        self._lines.put(line)
        self._tracker.log(line)


def _unanswered(line: SampleLine, problem: str | None) -> str | None:
    """For people, that questions got no answer, and why; None where all did."""
    if not line.left_out:
        return None
    asked = line.left_out + len(line.samples)
    why = problem or "answers may take a tenth of the time of training"
    text = f"sample_prompts: {line.left_out} of {asked} were not answered after step {line.step}: {why}"
    return shortened(text, LONGEST_TEXT)
