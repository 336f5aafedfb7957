"""A run for TensorBoard: event files in a directory, by PyTorch's writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.fields import scheme
from finetune_api.spec import FineTuneJobSpec, LoggerConfig
from finetune_trainer.report.metrics import Answer, EvaluationLine, NumberLine, SampleLine, numbers_of
from finetune_trainer.report.trackers.published_fields import published_fields
from finetune_trainer.storage.failure import explained
from finetune_trainer.storage.mounts import mounted_here
from finetune_trainer.storage.open import local_path
from finetune_trainer.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
"""In the run directory."""


class TensorboardRun:
    """Event files of a run, which begin with its first line.

    A run that is resumed adds a file, at whose first step TensorBoard forgets what earlier files have of
    later ones.
    """

    def __init__(self, directory: Path, spec: FineTuneJobSpec) -> None:
        self._directory = directory
        self._spec = spec
        self._writer: SummaryWriter | None = None

    def send(self, lines: Sequence[NumberLine]) -> None:
        """Adds the numbers of the lines, by their names in metrics.jsonl."""
        writer = self._begun(lines[0].step)
        for line in lines:
            for name, number in numbers_of(line).items():
                if name == "epoch" and isinstance(line, EvaluationLine):
                    continue  # that of the step before, which is there
                writer.add_scalar(name, number, line.step, walltime=line.time.timestamp())
        writer.flush()

    def show(self, line: SampleLine) -> None:
        """Adds a text for each question, which has the answers to it one below the other."""
        writer = self._begun(line.step)
        for number, answer in enumerate(line.samples, start=1):
            text = _answer_text(answer)
            writer.add_text(f"samples/{number}", text, line.step, walltime=line.time.timestamp())
        writer.flush()

    def end(self, *, failed: bool) -> None:
        """Closes the file. Event files do not say how a run ended."""
        del failed
        if self._writer is not None:
            self._writer.close()

    def _begun(self, step: int) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), purge_step=step)
            fields = yaml.safe_dump(published_fields(self._spec), sort_keys=False, allow_unicode=True)
            self._writer.add_text("spec", _as_it_is(fields), step)
        return self._writer


def _answer_text(answer: Answer) -> str:
    said = {"asked": answer.prompt, "answered": answer.answer, "expected": answer.expected}
    return "\n".join(f"**{what}**\n\n{_as_it_is(text)}" for what, text in said.items() if text is not None)


def _as_it_is(text: str) -> str:
    """A text for the text plugin, which reads Markdown: there indented lines are shown as they are."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def start_tensorboard_run(
    spec: FineTuneJobSpec, config: LoggerConfig, run: RunDirectory | None
) -> TensorboardRun:
    """Makes the directory of a run's event files.

    Raises FineTuneError as `event_directory` does, and StorageError or AccessDenied when it cannot be made.
    """
    directory = event_directory(config, run)
    with explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return TensorboardRun(directory, spec)


def event_directory(config: LoggerConfig, run: RunDirectory | None) -> Path:
    """Where the event files of a run go: `tensorboard` in its directory, or a folder for it in `log_dir`.

    Raises FineTuneError (InvalidSpec) when that is no directory that this machine sees.
    """
    if config.log_dir is None:
        here = None if run is None else run.here
        if here is None:
            where = "where a run is in object storage" if run is not None else "here"
            raise FineTuneError(
                FailureClass.INVALID_SPEC,
                f"spec.logger.provider_config.log_dir: must be set {where}: TensorBoard's files are"
                " written to a directory; give one that stays when the job ends",
            )
        return here / FOLDER
    if scheme(config.log_dir) in ("", "file"):
        directory: Path | None = local_path(config.log_dir).absolute()
    else:
        directory = mounted_here(config.log_dir)
    if directory is None:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"spec.logger.provider_config.log_dir: {config.log_dir} is no directory that this machine"
            " sees; give a path, or pvc://CLAIM/path of a claim that the job mounts",
        )
    return directory if run is None else directory / run.path.partition("?")[0].rstrip("/").rpartition("/")[2]
