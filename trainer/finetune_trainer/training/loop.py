"""The training loop of one worker: steps, and validation and a checkpoint after epochs.

Every worker calls `train` with the same job and its own rank. Workers exchange gradients, losses and
requests to stop. What a step is divided by needs no exchange, since every worker has all rows. All ranks
collect what is saved, and write it where each holds a part; only rank 0 reports.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from enum import IntEnum
from functools import partial

import torch

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.numbers import Numbers
from finetune_api.status import Evaluation, ProgressRecord
from finetune_trainer.checkpoint.capture import captured, copy_bytes, fits, frozen_weights
from finetune_trainer.checkpoint.card import model_card
from finetune_trainer.checkpoint.save import write_checkpoint, write_description
from finetune_trainer.checkpoint.state import Collected
from finetune_trainer.data.batches import Indices, row_order, step_rows
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.limits import free_memory
from finetune_trainer.parallel.parallel import Parallel, parallel_of
from finetune_trainer.plan.prepare import Prepared
from finetune_trainer.report.reporter import HelpingReporter, RankZeroReporter, Reporter, ToSave
from finetune_trainer.report.trackers.tracker import open_tracker
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.tasks.objective import Judge, Loss, Mean
from finetune_trainer.tasks.task import task_of
from finetune_trainer.training.evaluate import evaluate, perplexity
from finetune_trainer.training.forward import Forward
from finetune_trainer.training.job import Outcome, TrainingJob, Worker
from finetune_trainer.training.optimizer import set_learning_rate
from finetune_trainer.training.reference import compared, reference_of
from finetune_trainer.training.samples import Sampler, sampler_of
from finetune_trainer.training.setup import Loaded, load, set_up
from finetune_trainer.training.step import backward

SNAPSHOT_SECONDS = 30 * 60
"""The time after which a snapshot is saved when there was no checkpoint or snapshot meanwhile."""


class StepRequest(IntEnum):
    """What a worker requests in a step. The largest request of all workers is carried out."""

    NOTHING = 0
    SNAPSHOT = 1
    STOP = 2


def train(job: TrainingJob, worker: Worker, loaded: Loaded | None = None) -> Outcome:
    """Trains to the end, or to the checkpoint or the requested stop that comes before it.

    `loaded` is the result of `load`, which is called here by default. Raises FineTuneError: Diverged when a
    loss or gradient is not finite, StorageError when a checkpoint cannot be written, InvalidData when the run
    began with other rows.
    """
    spec, numbers = job.prepared.spec, job.prepared.numbers
    loaded = loaded or load(job.start, worker.device)
    parallel = parallel_of(worker.rank, worker.num_devices, worker.device, job.start.sharding)
    forward, optimizer, position, reference = set_up(job, loaded, parallel)
    if task_of(spec).compares and reference is None:
        reference = reference_of(
            forward,
            job.prepared,
            lambda part: _doing(job, worker, f"computing reference log-probabilities: {part:.0%}"),
        )
    train_rows, validation_rows = compared(job.prepared, reference)
    model, dtype, inference = loaded.model, loaded.dtype, loaded.inference
    describe = partial(write_description, model=model, dtype=dtype, inference=inference)
    write = partial(write_checkpoint, model=model, dtype=dtype, inference=inference, reference=reference)
    frozen = frozen_weights(model)
    step, evaluation = position.step, position.evaluation
    early = position.stops_early(spec.early_stopping_patience)
    judge = task_of(spec).judge(inference.tokenizer)
    sampler = sampler_of(job, loaded, forward)
    saved_at = time.monotonic()

    with _reporter(job, worker, parallel, step) as reporter:
        reporter.try_saving(describe)
        if step == 0:
            doing = partial(_doing, job, worker)
            if spec.eval_first and validation_rows is not None:
                doing("validating the model before training")
                evaluation = _validate(forward, job.prepared, validation_rows, step, judge)
                reporter.evaluated(step, evaluation, checkpoint=None)
            _ask_first(sampler, reporter, doing)
        reporter.progress(step, evaluation)

        end = step if early else numbers.total_steps
        for rows in itertools.islice(_steps(job.prepared), step, end):
            set_learning_rate(optimizer, numbers.learning_rate_at(step))
            part = backward(forward, train_rows, rows, numbers.train_batch_size_per_device)
            norm = parallel.clip(spec.max_grad_norm)
            loss, grad_norm, request = _exchange(parallel, part, norm, _request(worker, saved_at))
            if not (math.isfinite(loss.loss) and math.isfinite(grad_norm)):
                what = f"the loss of step {step + 1} is {loss.loss} and its gradient norm {grad_norm}"
                raise _diverged(what, numbers)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            reporter.step_done(step, loss=loss, grad_norm=grad_norm, tokens=_tokens(job.prepared, rows))

            checkpoint = numbers.checkpoint_after(step)
            if validation_rows is not None and numbers.validates_after(step):
                evaluation = _validate(forward, job.prepared, validation_rows, step, judge)
                reporter.evaluated(step, evaluation, checkpoint)
                if checkpoint:
                    position = position.after_checkpoint(evaluation.loss)
                    early = position.stops_early(spec.early_stopping_patience)
            if checkpoint and request is not StepRequest.STOP:
                reporter.answered(step, sampler.ask(), checkpoint)
            over = early or step == numbers.total_steps
            if checkpoint or request:
                position = position.model_copy(update={"step": step, "evaluation": evaluation})
                reporter.ready_to_save(step, evaluation)
                # Nothing is trained meanwhile, after the last step and where a stop is asked for.
                goes_on = not over and request is not StepRequest.STOP
                collected, at_once = _to_write(parallel.collect(optimizer), frozen, worker, goes_on=goes_on)
                measured = evaluation if checkpoint and validation_rows is not None else None
                card = model_card(spec, job.prepared.plan, numbers, step, measured)
                to_save = ToSave(
                    checkpoint,
                    step,
                    evaluation if validation_rows is not None else None,
                    partial(write, position=position, collected=collected, card=card),
                )
                reporter.save(to_save, at_once=at_once)
                saved_at = time.monotonic()
            reporter.progress(step, evaluation)
            if over:
                break
            if request is StepRequest.STOP:
                return Outcome.STOPPED
        reporter.finish(step, evaluation, stopped_early=early and step < numbers.total_steps)
    return Outcome.FINISHED


def _ask_first(sampler: Sampler, reporter: Reporter, doing: Callable[[str], None]) -> None:
    """Asks the model before training, where there is something to ask."""
    if sampler.questions:
        doing("asking the model before training")
        reporter.answered(0, sampler.ask(), checkpoint=None)


def _doing(job: TrainingJob, worker: Worker, what: str) -> None:
    """Reports what is done before the first step, where there is no progress yet."""
    if worker.rank == 0:
        worker.report(ProgressRecord(plan=job.prepared.plan, doing=what))


@contextmanager
def _reporter(job: TrainingJob, worker: Worker, parallel: Parallel, step: int) -> Iterator[Reporter]:
    """The reporter of this rank: rank 0's writes and reports, the others' write parts, if they have any.

    On rank 0, lines of metrics.jsonl that this run will write again are removed first.
    """
    run = RunDirectory.open(job.start.run_directory)
    if worker.rank > 0:
        yield HelpingReporter(run, parallel.gather) if parallel.in_parts else Reporter()
        return
    prepared = job.prepared
    run.truncate_metrics(step if job.start.resume_from else -1)
    trained = sum(_tokens(prepared, rows) for rows in itertools.islice(_steps(prepared), step))
    tracking = ExitStack()
    reporter = RankZeroReporter(
        prepared.plan,
        prepared.numbers,
        run,
        to_keep=prepared.spec.num_checkpoints_to_keep,
        tokens_trained=trained,
        tracker=tracking.enter_context(open_tracker(prepared.spec, job.name, run)),
        report=worker.report,
        gather=parallel.gather if parallel.in_parts else None,
    )
    at_once = False
    try:
        with tracking:
            yield reporter
    except KeyboardInterrupt:
        at_once = True
        raise
    finally:
        reporter.closed(at_once=at_once)


def _steps(prepared: Prepared) -> Iterator[Indices]:
    """The rows of each optimizer step of all epochs, in order; the run may end in the middle of the last."""
    numbers = prepared.numbers
    for epoch in range(numbers.total_epochs):
        order = row_order(prepared.spec.seed, epoch, len(prepared.train))
        for step_in_epoch in range(numbers.steps_per_epoch):
            yield step_rows(order, step_in_epoch, numbers.effective_batch_size)


def _tokens(prepared: Prepared, rows: Indices) -> int:
    return int(prepared.train.lengths[rows].sum())


def _request(worker: Worker, saved_at: float) -> StepRequest:
    if worker.stop_requested():
        return StepRequest.STOP
    due = worker.rank == 0 and time.monotonic() - saved_at > SNAPSHOT_SECONDS
    return StepRequest.SNAPSHOT if due else StepRequest.NOTHING


def _to_write(
    collected: Collected, frozen: AbstractSet[str], worker: Worker, *, goes_on: bool
) -> tuple[Collected, bool]:
    """What to write, and whether at once: a copy while training goes on.

    Without one where parts are written, or memory is short.
    """
    if worker.rank > 0 or not goes_on or collected.in_parts:
        return collected, True
    if not fits(copy_bytes(collected, frozen), free_memory()):
        return collected, True
    return captured(collected, frozen), False


def _exchange(
    parallel: Parallel, part: Loss, norm: torch.Tensor, request: StepRequest
) -> tuple[Mean, float, StepRequest]:
    """Sums the loss over all devices, and finds the largest request of all workers.

    Returns both, and between them the gradient's norm. The devices are waited for here, and nowhere else in a
    step.
    """
    snapshot, stop = request is StepRequest.SNAPSHOT, request is StepRequest.STOP
    loss, snapshots, stops, *metrics, grad_norm = parallel.sum(
        [part.total, snapshot, stop, *part.metrics.values()], [norm]
    )
    mean = Mean(loss, dict(zip(part.metrics, metrics, strict=True)))
    if stops:
        return mean, grad_norm, StepRequest.STOP
    return mean, grad_norm, StepRequest.SNAPSHOT if snapshots else StepRequest.NOTHING


def _validate(
    forward: Forward, prepared: Prepared, rows: TokenizedRows, step: int, judge: Judge | None
) -> Evaluation:
    """Validates after `step` steps. Raises FineTuneError (Diverged) when the loss is not finite."""
    numbers = prepared.numbers
    mean = evaluate(forward, rows, numbers.eval_batch_size_per_device, judge)
    if not math.isfinite(mean.loss):
        raise _diverged(f"the validation loss after step {step} is {mean.loss}", numbers)
    return Evaluation(
        epoch=round(step / numbers.steps_per_epoch, 4),
        loss=mean.loss,
        perplexity=perplexity(mean.loss) if task_of(prepared.spec).has_perplexity else None,
        metrics=mean.metrics,
    )


def _diverged(what: str, numbers: Numbers) -> FineTuneError:
    rate, warmup = numbers.learning_rate, numbers.num_warmup_steps
    advice = f"lower spec.learning_rate (it is {rate:g}) or raise spec.num_warmup_steps (it is {warmup})"
    return FineTuneError(FailureClass.DIVERGED, f"{what}; {advice}")
