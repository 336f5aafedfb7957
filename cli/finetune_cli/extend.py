"""`finetune extend`: goes on from a finished run, in a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finetune_api.changed_fields import ChangedField
from finetune_api.manifest import Manifest
from finetune_api.paths import storage_of
from finetune_api.status import FineTuneJobStatus
from finetune_cli.run import run_here


def extend_run(
    path: str,
    *,
    epochs: int,
    changes: Sequence[ChangedField],
    storage: str | None,
    devices: int | None,
    form: Callable[[Manifest, FineTuneJobStatus], str] | None,
) -> int:
    """Trains the run at this path for so many epochs more, and returns the exit code.

    `form` is as in `run_here`. The new run is written beside it by default. Raises FineTuneError, with
    nothing written, for what is wrong before training.
    """
    from finetune_trainer.local import extended
    from finetune_trainer.storage.run_directory import RunDirectory

    return run_here(
        extended(path, epochs, changes),
        storage=storage or storage_of(RunDirectory.open(path).path),
        devices=devices,
        form=form,
    )
