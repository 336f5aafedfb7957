"""The run that a job goes on from, with `resume_from`: found, compared with the job, and taken over."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.fields import HubRepository
from finetune_api.manifest import parse_manifest
from finetune_api.numbers import Numbers
from finetune_api.paths import parent
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Checkpoint
from finetune_trainer.checkpoint.state import POSITION, STATE, Position, read_position
from finetune_trainer.model.source import source_name, source_revision
from finetune_trainer.plan.prepare import Prepared
from finetune_trainer.storage.run_directory import COMPLETE, SAVED, RunDirectory

_FIELD = "spec.resume_from"
_SAID = "a run goes on with the model, the parameters and the order of rows that it began with"


@dataclass(frozen=True)
class EarlierRun:
    """A checkpoint or snapshot of another run, to begin with."""

    run: RunDirectory
    name: str
    checkpoint: Checkpoint | None
    """None for a snapshot."""
    position: Position
    trained: int
    """Steps that the run has trained in all, as far as it says; not fewer than those of the position."""

    @property
    def path(self) -> str:
        """The path of the checkpoint."""
        return self.run.checkpoint_path(self.name)

    def check(self, prepared: Prepared) -> None:
        """Checks what is known once the rows are read.

        Raises FineTuneError: InvalidData for other rows, InvalidSpec where steps have other sizes, or none is
        left to train.
        """
        numbers, position = prepared.numbers, self.position
        if position.data != prepared.fingerprint:
            raise FineTuneError(
                FailureClass.INVALID_DATA,
                f"spec.train_path: the rows are not those that {self.path} was trained on; give the same"
                " rows, or leave spec.resume_from out",
            )
        rows = position.effective_batch_size
        if rows is not None and rows != numbers.effective_batch_size:
            raise FineTuneError(
                FailureClass.INVALID_SPEC,
                f"spec.train_batch_size_per_device: a step is of {numbers.effective_batch_size} rows, and of"
                f" {rows} in {self.path}; rows x num_devices x gradient_accumulation_steps must be the same",
            )
        if position.step >= numbers.total_steps:
            field = "num_epochs" if prepared.spec.max_steps is None else "max_steps"
            raise FineTuneError(
                FailureClass.INVALID_SPEC,
                f"spec.{field}: {self.path} was trained for {position.step} steps already, and this run has"
                f" {numbers.total_steps} in all; give more",
            )

    def words(self, numbers: Numbers) -> str:
        """From where the run goes on, and with which learning rate, in words."""
        step = self.position.step
        where = f"step {step}"
        if self.trained > step:
            where += f" of {self.trained}, so that what came after is trained again"
        return (
            f"going on from {self.path}, after {where}: the learning rate is"
            f" {numbers.learning_rate_at(step):.4g} now, as in a run of {numbers.total_steps} steps"
            f" ({numbers.lr_scheduler_type})"
        )

    def begin(self, run: RunDirectory, numbers: Numbers) -> None:
        """Makes a copy of the checkpoint, and of the lines of metrics.jsonl up to it, the beginning of a run.

        What stands in the middle of an epoch becomes a snapshot: a checkpoint is still to come there. The
        earlier run is not changed.
        """
        whole = self.checkpoint if self.position.step % numbers.steps_per_epoch == 0 else None
        run.begin_metrics(self._metrics(kept=whole is not None))
        name = self.name if whole is not None else run.snapshot_name(self.position.step)
        with self.run.local_copy(self.name) as files, run.staging(name) as staging:
            shutil.copytree(files, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns(COMPLETE))
            (staging / STATE / POSITION).write_text(self.position.model_dump_json())
            if whole is not None:
                run.commit(name, staging, whole)
            else:
                run.commit_snapshot(self.position.step, staging)

    def _metrics(self, *, kept: bool) -> str:
        """The lines; the last validation names no checkpoint that is not `kept` in the new run."""
        lines = self.run.metrics().splitlines(keepends=True)
        return "".join(line if kept else _without_checkpoint(line, self.name) for line in lines)


def earlier_run(spec: FineTuneJobSpec) -> EarlierRun | None:
    """The run that a job goes on from; None where it begins anew.

    Of its complete checkpoints and snapshots it is the newest, or the one that the path names. Raises
    FineTuneError: InvalidSpec when nothing is there to go on from, or another model or other parameters were
    trained, with a problem for each field; StorageError and AccessDenied when storage fails.
    """
    if spec.resume_from is None:
        return None
    with _of_field():
        run, name = _found(RunDirectory.open(spec.resume_from))
        text, completion = run.job() or "", run.completion(name)
        before = parse_manifest(text, run.checkpoint_path("job.yaml"), name="run").spec
        problems = [f"{field}: {difference}" for field, difference in _differences(spec, before, run.path)]
        position = _position(run, name)
        result = run.result()
    if problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    # Whoever goes on wants more, whether or not the last checkpoints were better.
    position = position.model_copy(update={"checkpoints_since": 0})
    progress = result.progress if result is not None else None
    trained = max(position.step, progress.step if progress is not None else 0)
    return EarlierRun(run, name, completion.checkpoint if completion else None, position, trained)


@contextmanager
def _of_field() -> Iterator[None]:
    try:
        yield
    except FineTuneError as error:
        raise FineTuneError(error.failure_class, *(f"{_FIELD}: {each}" for each in error.problems)) from error


def _found(there: RunDirectory) -> tuple[RunDirectory, str]:
    """The run directory at a path and its newest checkpoint, or the checkpoint at a path and its run."""
    if there.job() is not None:
        newest = there.newest()
        if newest is None:
            raise FineTuneError(FailureClass.INVALID_SPEC, f"{there.path} has no complete checkpoint")
        return there, newest
    name = there.path.partition("?")[0].rstrip("/").rpartition("/")[2]
    if SAVED.fullmatch(name):
        run = RunDirectory.open(parent(there.path, name))
        if run.job() is not None and run.completion(name) is not None:
            return run, name
    raise FineTuneError(
        FailureClass.INVALID_SPEC,
        f"{there.path} is neither a run's directory, with its job.yaml, nor a complete checkpoint in one",
    )


def _position(run: RunDirectory, name: str) -> Position:
    try:
        return read_position(run.read_saved(name, f"{STATE}/{POSITION}") or "")
    except ValidationError as error:
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"{run.checkpoint_path(name)} has no {STATE}/{POSITION} to go on from"
        ) from error


def _differences(spec: FineTuneJobSpec, before: FineTuneJobSpec, path: str) -> Iterator[tuple[str, str]]:
    """Fields in which a job differs from the run that it goes on from, where they must be the same."""

    def both(field: str, read: Callable[[FineTuneJobSpec], object]) -> tuple[str, object, object]:
        return field, read(spec), read(before)

    pairs = [
        both("task", lambda each: each.trained_task),
        both("quantization", lambda each: each.quantization),
        both("seed", lambda each: each.seed),
        both("preference_tuning_config.beta", lambda each: each.preferences.beta),
        both("classifier_config.label_tokens", _labels),
    ]
    if spec.lora_config is None or before.lora_config is None:
        pairs.append(both("lora_config", lambda each: None if each.lora_config is None else "a map"))
    else:
        now, then = (each.model_dump(mode="json") for each in (spec.lora_config, before.lora_config))
        pairs += [
            (f"lora_config.{field}", value, then[field])
            for field, value in now.items()
            if field != "lora_dropout"
        ]
    bases = (spec.initial_base_model_ckpt_path, before.initial_base_model_ckpt_path)
    for field, source, earlier in (
        ("model_id", spec.model_id, before.model_id),
        ("initial_base_model_ckpt_path", *bases),
    ):
        if _named(source) != _named(earlier):
            pairs.append((field, _shown(source), _shown(earlier)))
    for field, ours, theirs in pairs:
        if ours != theirs:
            shown = ["absent" if each is None else json.dumps(each).strip('"') for each in (ours, theirs)]
            yield f"spec.{field}", f"is {shown[0]}, and {shown[1]} in {path}; {_SAID}"


def _labels(spec: FineTuneJobSpec) -> object:
    return None if spec.classifier_config is None else spec.classifier_config.label_tokens


def _named(source: str | HubRepository | None) -> tuple[str, str | None] | None:
    return None if source is None else (source_name(source), source_revision(source))


def _shown(source: str | HubRepository | None) -> str | None:
    return source.repo_id if isinstance(source, HubRepository) else source


def _without_checkpoint(line: str, name: str) -> str:
    if f'"checkpoint":"{name}"' not in re.sub(r"\s", "", line):
        return line
    return json.dumps(json.loads(line) | {"checkpoint": None}, separators=(",", ":")) + "\n"
