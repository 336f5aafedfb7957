"""The training loop of one worker: model and optimizer, steps, validation and checkpoint after epochs.

Every worker runs `train` with the same job and its own rank. All of them know all rows, so what a step is
normalised by needs no exchange; gradients, the loss and the wish to stop are what they exchange. Rank 0 alone
writes and reports.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.numbers import Numbers, ResolvedPrecision, checkpoint_name
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Evaluation, Plan, ProgressRecord
from finetune_trainer.checkpoint.state import (
    Position,
    RandomState,
    gather_random_state,
    restore_state,
    save_state,
)
from finetune_trainer.data.batches import Indices, row_order, step_rows
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.model.load import load_model, load_tokenizer, pad_token_id, save_weights
from finetune_trainer.report.reporter import Follower, Lead, Scribe
from finetune_trainer.report.trackers.tracking import open_tracker
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.evaluate import Share, mean_loss, perplexity
from finetune_trainer.training.optimizer import adamw, backward, clip, set_learning_rate

SNAPSHOT_SECONDS = 30 * 60
"""Between checkpoints, how often a snapshot is kept to resume from."""


class Outcome(StrEnum):
    """How `train` returned."""

    FINISHED = "finished"
    STOPPED = "stopped"


class Wish(IntEnum):
    """What a worker wants to happen after a step; the largest of all workers' wishes does."""

    NOTHING = 0
    SNAPSHOT = 1
    STOP = 2


@dataclass(frozen=True)
class TrainingJob:
    """What all workers are given."""

    name: str
    spec: FineTuneJobSpec
    numbers: Numbers
    plan: Plan
    train: TokenizedRows
    validation: TokenizedRows | None
    fingerprint: str
    """Names the training rows; see `Prepared.fingerprint`."""
    run_directory: str
    resume_from: str | None
    """The checkpoint or snapshot in the run directory to go on from."""
    dtype: ResolvedPrecision

    @property
    def padded_length(self) -> int | None:
        """What every batch is padded to, in tokens; None pads to the longest row."""
        return self.numbers.context_length if self.spec.padding == "max_length" else None


@dataclass(frozen=True)
class Worker:
    """One of the processes that train."""

    rank: int
    num_devices: int
    device: torch.device
    report: Callable[[ProgressRecord], None]
    """Called on rank 0 only; must not block."""
    stop_requested: Callable[[], bool]
    """Asked on every rank after every step; one yes is enough."""


def train(job: TrainingJob, worker: Worker) -> Outcome:
    """Trains to the end, or to the step after which a stop was requested.

    Raises FineTuneError: Diverged when a loss or gradient is not finite, StorageError when a checkpoint
    cannot be written, InvalidData when the rows are not those that the run began with.
    """
    numbers, total_steps = job.numbers, job.numbers.total_steps
    run = RunDirectory.open(job.run_directory)
    tokenizer = load_tokenizer(job.spec)
    share = Share(
        worker.rank, worker.num_devices, worker.device, job.dtype, pad_token_id(tokenizer), job.padded_length
    )
    model, optimizer, position = _begin(job, worker, run)
    module = _parallel(model, job.spec, worker)
    step, evaluation = position.step, position.evaluation
    saved_at = time.monotonic()

    with _scribe(job, run, worker, step) as scribe:
        if step == 0 and job.spec.eval_first and job.validation is not None:
            evaluation = _validate(model, job.validation, job, step, share)
            scribe.evaluated(step, evaluation, checkpoint=None)
        scribe.tell(step, evaluation)

        for rows in itertools.islice(_steps(job), step, None):
            set_learning_rate(optimizer, numbers.learning_rate_at(step))
            part = backward(module, job.train, rows, numbers.train_batch_size_per_device, share)
            grad_norm = clip(model, job.spec.max_grad_norm)
            loss, wish = _exchange(part, _wish(worker, saved_at), worker)
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise _diverged(
                    f"the loss of step {step + 1} is {loss} and its gradient norm {grad_norm}", job
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            scribe.step_done(step, loss=loss, grad_norm=grad_norm, tokens=_tokens(job, rows))

            checkpoint = _checkpoint_after(step, numbers)
            if checkpoint and job.validation is not None:
                evaluation = _validate(model, job.validation, job, step, share)
                scribe.evaluated(step, evaluation, checkpoint)
            if checkpoint or wish:
                state = Position(step=step, data=job.fingerprint, evaluation=evaluation)
                random = gather_random_state(worker.device, worker.num_devices)
                write = partial(
                    _write,
                    model=model,
                    tokenizer=tokenizer,
                    spec=job.spec,
                    state=state,
                    optimizer=optimizer,
                    random=random,
                )
                scribe.save(checkpoint, step, evaluation if job.validation is not None else None, write)
                saved_at = time.monotonic()
            scribe.tell(step, evaluation)
            if wish is Wish.STOP and step < total_steps:
                return Outcome.STOPPED
        scribe.finish(step, evaluation)
    return Outcome.FINISHED


def _write(
    directory: Path,
    *,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: FineTuneJobSpec,
    state: Position,
    optimizer: torch.optim.Optimizer,
    random: list[RandomState],
) -> None:
    """Writes a checkpoint: what was trained, ready to use, and `state/` to go on from."""
    save_weights(model, directory, spec)
    tokenizer.save_pretrained(directory)
    save_state(directory, state, optimizer, random)


def _begin(
    job: TrainingJob, worker: Worker, run: RunDirectory
) -> tuple[PreTrainedModel | PeftModel, torch.optim.Optimizer, Position]:
    """Model, optimizer and position at the start of the run, or as they were when the checkpoint to go on from was saved."""
    on_gpu = worker.device.type == "cuda"
    start = Position(step=0, data=job.fingerprint, evaluation=None)
    with run.local_copy(job.resume_from) if job.resume_from else nullcontext() as resumed:
        model = load_model(job.spec, dtype=job.dtype, on_gpu=on_gpu, resumed=resumed)
        torch.nn.Module.to(model, worker.device)
        optimizer = adamw(model, job.spec, fused=on_gpu)
        torch.manual_seed(job.spec.seed + worker.rank)
        if resumed is None:
            return model, optimizer, start
        return (
            model,
            optimizer,
            restore_state(resumed, optimizer, data=job.fingerprint, rank=worker.rank, device=worker.device),
        )


def _parallel(model: torch.nn.Module, spec: FineTuneJobSpec, worker: Worker) -> torch.nn.Module:
    """The model as it is called in training: over several devices with DDP, and compiled where the spec asks for it."""
    if worker.num_devices > 1:
        model = DistributedDataParallel(
            model, device_ids=[worker.device] if worker.device.type == "cuda" else None
        )
    if spec.torch_compile is not None and spec.torch_compile.enabled:
        model.compile(**spec.torch_compile.model_dump(exclude={"enabled"}, exclude_none=True))
    return model


@contextmanager
def _scribe(job: TrainingJob, run: RunDirectory, worker: Worker, step: int) -> Iterator[Scribe]:
    """Rank 0 writes and reports, first without the lines of steps that were lost and come again; the others do not."""
    if worker.rank > 0:
        yield Follower()
        return
    run.truncate_metrics(step if job.resume_from else -1)
    with open_tracker(job.spec, job.name) as tracker:
        yield Lead(
            job.plan,
            job.numbers,
            run,
            to_keep=job.spec.num_checkpoints_to_keep,
            tokens_trained=sum(_tokens(job, rows) for rows in itertools.islice(_steps(job), step)),
            tracker=tracker,
            report=worker.report,
        )


def _steps(job: TrainingJob) -> Iterator[Indices]:
    """The rows of every optimizer step of the run, in order."""
    for epoch in range(job.numbers.total_epochs):
        order = row_order(job.spec.seed, epoch, len(job.train))
        for step_in_epoch in range(job.numbers.steps_per_epoch):
            yield step_rows(order, step_in_epoch, job.numbers.effective_batch_size)


def _tokens(job: TrainingJob, rows: Indices) -> int:
    return int(job.train.lengths[rows].sum())


def _checkpoint_after(step: int, numbers: Numbers) -> str | None:
    """The name of the checkpoint that is due after so many steps, if one is."""
    epochs, rest = divmod(step, numbers.steps_per_epoch)
    return checkpoint_name(epochs - 1) if rest == 0 and epochs - 1 in numbers.checkpoint_epochs else None


def _wish(worker: Worker, saved_at: float) -> Wish:
    if worker.stop_requested():
        return Wish.STOP
    return (
        Wish.SNAPSHOT if worker.rank == 0 and time.monotonic() - saved_at > SNAPSHOT_SECONDS else Wish.NOTHING
    )


def _exchange(part: torch.Tensor, wish: Wish, worker: Worker) -> tuple[float, Wish]:
    """The loss over all devices, and the largest wish of all workers."""
    if worker.num_devices == 1:
        return float(part), wish
    # A column for each rank: one sum gives everybody's numbers.
    table = torch.zeros(2, worker.num_devices, dtype=torch.float64, device=worker.device)
    table[0, worker.rank] = part
    table[1, worker.rank] = float(wish)
    dist.all_reduce(table)
    return float(table[0].sum()), Wish(int(table[1].max()))


def _validate(
    model: torch.nn.Module, validation: TokenizedRows, job: TrainingJob, step: int, share: Share
) -> Evaluation:
    loss = mean_loss(model, validation, job.numbers.eval_batch_size_per_device, share)
    if not math.isfinite(loss):
        raise _diverged(f"the validation loss after step {step} is {loss}", job)
    return Evaluation(
        epoch=round(step / job.numbers.steps_per_epoch, 4), loss=loss, perplexity=perplexity(loss)
    )


def _diverged(what: str, job: TrainingJob) -> FineTuneError:
    rate, warmup = job.numbers.learning_rate, job.numbers.num_warmup_steps
    advice = f"lower spec.learning_rate (it is {rate:g}) or raise spec.num_warmup_steps (it is {warmup})"
    return FineTuneError(FailureClass.DIVERGED, f"{what}; {advice}")
