"""The checkpoint to talk to, and the job that has trained it."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.manifest import read_spec
from finetune_api.paths import parent
from finetune_api.spec import FineTuneJobSpec
from finetune_api.yaml_text import parse
from finetune_trainer.checkpoint.chosen import chosen
from finetune_trainer.model.contents import QUANTIZATION_CONFIG
from finetune_trainer.storage.open import Storage, open_storage
from finetune_trainer.storage.run_directory import JOB


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint in storage."""

    storage: Storage
    job: str | None
    """The run's job.yaml; None where only the checkpoint is there."""

    @property
    def path(self) -> str:
        """The path that users see."""
        return self.storage.path

    @property
    def in_four_bits(self) -> bool:
        """Whether the base of this adapter is held in 4 bits."""
        return self.storage.read_text(QUANTIZATION_CONFIG) is not None

    def spec(self) -> FineTuneJobSpec | None:
        """What the run trains; None where that is not known.

        Raises FineTuneError (InvalidSpec) when the job.yaml is not what a run writes.
        """
        if self.job is None:
            return None
        document, _ = parse(self.job, JOB)
        spec = document.get("spec")
        return read_spec(spec if isinstance(spec, dict) else {})


def find_checkpoint(path: str, name: str | None = None) -> FoundCheckpoint:
    """The checkpoint that is meant by `path` and `name`, see `chosen`, with its run's job.yaml.

    Raises FineTuneError as `chosen` does, and what storage raises.
    """
    storage = chosen(path, name)
    own_name = storage.path.partition("?")[0].rpartition("/")[2]
    return FoundCheckpoint(storage, open_storage(parent(storage.path, own_name)).read_text(JOB))
