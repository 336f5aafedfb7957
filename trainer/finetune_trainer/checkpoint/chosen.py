"""Which checkpoint is meant where a person names a run."""

from __future__ import annotations

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.model.contents import ADAPTER_CONFIG, CONFIG
from finetune_trainer.storage.open import Storage, open_storage
from finetune_trainer.storage.run_directory import JOB, RunDirectory


def chosen(run: str, checkpoint: str | None = None) -> Storage:
    """The directory of the checkpoint that is meant by `run`, here or in object storage.

    `run` is a run's directory, of which the checkpoint called `checkpoint` is taken, by default the best; or
    the directory of a checkpoint or of a merged model itself.

    Raises FineTuneError: ModelNotFound when there is no such run or checkpoint, InvalidSpec when a checkpoint
    is named and `run` is one itself.
    """
    storage = open_storage(run)
    if is_adapter(storage) or is_model(storage):
        if checkpoint is None:
            return storage
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            f"{storage.path}: is a checkpoint itself, so {checkpoint} cannot be taken of it; leave one out",
        )
    saved = RunDirectory(storage).checkpoints()
    if not saved:
        what = (
            "has no complete checkpoint yet; one is saved after an epoch"
            if storage.read_text(JOB) is not None
            else "is neither a run nor a checkpoint; give a run's directory, which holds job.yaml and"
            " epoch-0, or the directory of a checkpoint"
        )
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, f"{storage.path}: {what}")
    wanted = next(each.name for each in saved if each.best) if checkpoint is None else checkpoint
    if wanted not in {each.name for each in saved}:
        names = ", ".join(each.name for each in saved)
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND, f"{storage.path}: has no checkpoint {wanted}; there are {names}"
        )
    return storage.child(wanted)


def is_adapter(checkpoint: Storage) -> bool:
    """Whether a directory holds an adapter."""
    return checkpoint.read_text(ADAPTER_CONFIG) is not None


def is_model(checkpoint: Storage) -> bool:
    """Whether a directory holds a whole model."""
    return checkpoint.read_text(CONFIG) is not None
