"""One attempt at a job, on one machine and on a cluster alike: prepare it, and train it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Protocol

from finetune_api.deepspeed import DeepSpeedConfig, asked_sharding
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import Manifest
from finetune_api.numbers import resolved_dtype
from finetune_api.output import MERGE, is_about_output, is_delivered
from finetune_api.sharding import Sharding
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ProgressRecord
from finetune_trainer.export.output import check_output, deliver, lack_of_memory
from finetune_trainer.limits import usable_memory
from finetune_trainer.model.attention import NO_FLASH_ATTENTION, uses_flash_attention
from finetune_trainer.plan.deepspeed_file import deepspeed_here
from finetune_trainer.plan.sharding import Device, Resources, choose_sharding, is_open
from finetune_trainer.report.trackers.tracker import check_tracker
from finetune_trainer.report.versions import versions
from finetune_trainer.stop_signals import StopSignals, stop_signals
from finetune_trainer.storage.inputs import digest
from finetune_trainer.storage.run_directory import AttemptNote, RunDirectory
from finetune_trainer.training.job import Outcome, Start, TrainingJob
from finetune_trainer.workers.workers import Ended, Workers

if TYPE_CHECKING:
    from finetune_trainer.plan.earlier_run import EarlierRun
    from finetune_trainer.plan.prepare import Prepared


class Observer(Protocol):
    """Whoever is told how an attempt goes; all calls come in the main thread."""

    def say(self, line: str) -> None:
        """A line for people."""

    def prepared(self, prepared: Prepared) -> None:
        """The job is ready to train."""

    def progress(self, record: ProgressRecord) -> None:
        """The newest record; until the first step is asked for it has no progress."""


@dataclass(frozen=True)
class Beginning:
    """What an attempt goes on from: what its run has saved, or what an earlier run has, or nothing."""

    own: str | None
    """The name of the run's newest checkpoint or snapshot."""
    earlier: EarlierRun | None
    """Where the run has none, the one that the spec names."""

    @classmethod
    def of(cls, run: RunDirectory, spec: FineTuneJobSpec, *, restart: bool = False) -> Beginning:
        """Finds it; with `restart` nothing of the run itself counts. Raises what `earlier_run` raises."""
        own = None if restart else run.newest()
        if own is not None or spec.resume_from is None:
            return cls(own, None)
        from finetune_trainer.plan.earlier_run import earlier_run  # which imports what takes seconds

        return cls(None, earlier_run(spec))

    @property
    def name(self) -> str | None:
        """The name of the checkpoint or snapshot that the workers read; None begins anew."""
        return self.own if self.earlier is None else self.earlier.name

    @property
    def resume_in(self) -> str | None:
        """The run directory that has it, where that is another one."""
        return None if self.earlier is None else self.earlier.run.path

    def check(self, prepared: Prepared) -> None:
        """Checks an earlier run; see `EarlierRun.check`."""
        if self.earlier is not None:
            self.earlier.check(prepared)

    def take_up(
        self, run: RunDirectory, manifest: Manifest, prepared: Prepared, *, restart: bool = False
    ) -> None:
        """Makes the run directory that of this job, ready to go on; with `restart` it is emptied before.

        Raises FineTuneError (StorageError) when another process has trained there meanwhile.
        """
        claim(run, manifest)
        if restart:
            run.clear()
            claim(run, manifest)
        if run.newest() != self.own:
            changed = f"{run.path}: another process has trained there meanwhile; run again"
            raise FineTuneError(FailureClass.STORAGE_ERROR, changed)
        if self.own is None:
            spec = prepared.spec
            run.note_inputs({path: digest(path) for path in spec.data_paths})
        if self.earlier is not None:
            self.earlier.begin(run, prepared.numbers)

    def words(self, run: RunDirectory, prepared: Prepared) -> Iterator[str]:
        """What the run goes on from, in words."""
        if self.own is not None:
            yield f"resuming from {run.checkpoint_path(self.own)}"
        if self.earlier is not None:
            yield self.earlier.words(prepared.numbers)


def attempt(
    manifest: Manifest,
    spec: FineTuneJobSpec,
    run: RunDirectory,
    workers: Workers,
    observer: Observer,
    *,
    resources: Resources,
    locked: Callable[[RunDirectory], AbstractContextManager[None]] | None = None,
    sharding: Sharding | None = None,
    restart: bool = False,
) -> Ended:
    """Trains a job that has not finished, from the newest checkpoint or snapshot if there is one.

    `manifest` is kept in the run directory, `spec` is what is trained here with `resources`, and `locked`
    keeps others away from the run. `sharding` is by default what the spec asks for, and where that is left
    open what fits. With `restart` what is there, finished or not, is deleted when all is found to be right,
    and the run begins anew. When it has finished, what `output` of the spec asks for is done.

    A signal before the first step ends the attempt at once. Raises FineTuneError, with nothing written, for
    what is wrong before training; what goes wrong in training is in what is returned.
    """
    on_gpu = resources.on_gpu
    with stop_signals(observer.say) as signals:
        told = _Told(observer)

        def reported(record: ProgressRecord) -> None:
            if record.progress is not None:
                signals.begun()
            told.progress(record)

        try:
            check_tracker(spec, run)
            observer.progress(ProgressRecord(checkpoints=[] if restart else run.checkpoints()))
            beginning = Beginning.of(run, spec, restart=restart)
            file, unread = deepspeed_here(spec)
            sharding = sharding_of(spec, file, resources.device) if sharding is None else sharding
            dtype = resolved_dtype(spec, on_gpu=on_gpu)
            start = Start(spec, dtype, run.path, beginning.name, sharding, beginning.resume_in)
            with workers.started(start) as group:
                # They import what takes seconds, which the workers do meanwhile.
                from finetune_trainer.model.load import check_in_parts, check_kernels
                from finetune_trainer.plan.fit import check_prepared, with_checkpointing, with_host_memory
                from finetune_trainer.plan.kept_tokens import tokens_of
                from finetune_trainer.plan.prepare import prepare

                if sharding.kind == "fsdp":
                    check_in_parts(spec)
                of_kernels = check_kernels(spec, on_gpu=on_gpu)
                of_output = check_output(spec)
                prepared = prepare(spec, partial(tokens_of, run=run, say=observer.say))
                beginning.check(prepared)
                prepared = with_checkpointing(prepared, file, sharding, resources)
                prepared = with_host_memory(prepared, sharding, on_gpu=on_gpu)
                remarks = (
                    *manifest.warnings,
                    *asked_sharding(spec, file).remarks,
                    *unread,
                    *_remarks(spec, on_gpu=on_gpu),
                    *of_kernels,
                    *of_output,
                    *_too_large_to_merge(prepared),
                    *prepared.warnings,
                    *check_prepared(prepared, file, sharding, resources),
                )
                for remark in dict.fromkeys(remarks):
                    observer.say(f"warning: {remark}")
                with locked(run) if locked is not None else nullcontext():
                    beginning.take_up(run, manifest, prepared, restart=restart)
                    observer.prepared(prepared)
                    observer.progress(ProgressRecord(plan=prepared.plan, checkpoints=run.checkpoints()))
                    for line in beginning.words(run, prepared):
                        observer.say(line)
                    job = TrainingJob(manifest.metadata.name, start, prepared)
                    began = datetime.now(UTC)
                    note = AttemptNote(
                        plan=prepared.plan,
                        devices=spec.num_devices,
                        versions=versions(),
                        warnings=list(dict.fromkeys(remarks)),
                        began=began,
                    )
                    run.note_attempt(note)
                    ended = replace(group.train(job, reported, signals.requested), began=began)
                    told.warn(ended.record or ProgressRecord())
                    now = {"ended": datetime.now(UTC), "failure": ended.failure}
                    _reported(run, note.model_copy(update=now), observer.say)
                    return _delivered(spec, run, ended, told, signals)
        except KeyboardInterrupt:
            if signals.can_save:
                raise
            return Ended(None, Outcome.STOPPED)


def finished_before(
    spec: FineTuneJobSpec,
    run: RunDirectory,
    result: ProgressRecord,
    observer: Observer,
    *,
    locked: Callable[[RunDirectory], AbstractContextManager[None]] | None = None,
) -> Ended:
    """How a run ended that had finished before with this result.

    What `output` of the spec asks for is done, if it was not. `locked` is as in `attempt`. Raises
    FineTuneError as that does, where there is something to do.
    """
    ended = Ended(result, Outcome.FINISHED)
    if spec.output is None or is_delivered(spec.output, result):
        return ended
    with stop_signals(observer.say) as signals, locked(run) if locked is not None else nullcontext():
        heard = [each for each in result.warnings if not is_about_output(each)]
        return _delivered(spec, run, ended, _Told(observer, heard), signals)


def _delivered(
    spec: FineTuneJobSpec, run: RunDirectory, ended: Ended, told: _Told, signals: StopSignals
) -> Ended:
    """A run that has finished, after what `output` of the spec asks for; else it is as it was."""
    result = ended.record
    if spec.output is None or result is None or ended.outcome is not Outcome.FINISHED:
        return ended
    try:
        signals.saved()
        result = deliver(run, spec.output, result, told.progress)
        told.progress(result)
        _reported(run, None, told.observer.say)
    except KeyboardInterrupt:
        return replace(ended, outcome=Outcome.STOPPED, trained=True)
    return replace(ended, record=result)


class _Told:
    """Records on their way to an observer, who hears each warning once; `heard` were told before."""

    def __init__(self, observer: Observer, heard: Iterable[str] = ()) -> None:
        self.observer = observer
        self._warned = {_about(warning) for warning in heard}

    def progress(self, record: ProgressRecord) -> None:
        self.observer.progress(record)
        self.warn(record)

    def warn(self, record: ProgressRecord) -> None:
        for warning in record.warnings:
            if _about(warning) not in self._warned:
                self._warned.add(_about(warning))
                self.observer.say(f"warning: {warning}")


def _about(warning: str) -> str:
    """What a warning is about; how much of it is missing may change with every step."""
    return warning.partition(" ")[0]


def sharding_of(spec: FineTuneJobSpec, file: DeepSpeedConfig | None, device: Device | None) -> Sharding:
    """How the devices hold the model: as the spec or its DeepSpeed file says, else as it fits `device`.

    That is a GPU, where its memory is known. Raises FineTuneError as reading the model's configuration does.
    """
    asked = asked_sharding(spec, file)
    if device is None or not is_open(asked, spec.num_devices):
        return choose_sharding(asked, spec.num_devices, lambda _: 0, None)
    from finetune_trainer.plan.fit import job_without_rows

    return job_without_rows(spec, on_gpu=True, file=file).sharding(device)


def claim(run: RunDirectory, manifest: Manifest) -> None:
    """Makes the run directory that of this job; see `RunDirectory.claim`."""
    run.claim(manifest.to_yaml(), run.path.rpartition("/")[2])


def _remarks(spec: FineTuneJobSpec, *, on_gpu: bool) -> list[str]:
    unmet = spec.flash_attention_2 and not uses_flash_attention(spec, on_gpu=on_gpu)
    return [NO_FLASH_ATTENTION] if unmet else []


def _too_large_to_merge(prepared: Prepared) -> list[str]:
    """What is known before training of an adapter that is to be merged when it is over."""
    lack = lack_of_memory(prepared.spec.output, prepared.plan.total_parameters, usable_memory())
    return [] if lack is None else [f"{MERGE}: the adapter is going to be pushed without it: {lack}"]


def _reported(run: RunDirectory, note: AttemptNote | None, say: Callable[[str], None]) -> None:
    """Keeps what is known of the attempt at its end, and writes the run's page.

    What goes wrong there is only told.
    """
    try:
        from finetune_trainer.report.page import page_of

        if note is not None:
            run.note_attempt(note)
        run.write_report(page_of(run))
    except Exception as error:  # noqa: BLE001 - the run is over, and what it has made is there
        say(f"warning: the report of the run is not written: {error}")
