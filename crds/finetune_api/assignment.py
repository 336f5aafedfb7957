"""What the operator passes to the trainer for one attempt, besides the job itself.

The operator sets it as an environment variable of the head; the trainer writes its progress record to the
config map that it names.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ASSIGNMENT = "FINETUNE_ASSIGNMENT"
"""The environment variable of the head that holds an `Assignment` as JSON."""
RECORD_KEY = "record.json"
"""The key of the record's config map whose value is a `ProgressRecord` as JSON."""
LARGEST_RECORD = 900_000
"""Bytes; a config map holds a mebibyte."""


class Assignment(BaseModel):
    """One attempt at a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uid: str
    """The FineTuneJob's; with its namespace and name it names the run directory."""
    attempt: Annotated[int, Field(ge=1)]
    """Counted from 1; the record repeats it."""
    storage: str
    """Where runs go, as users write it: `s3://`, `gs://`, `pvc://CLAIM/dir` or a path that all pods share."""
    config_map: str
    """The config map for the progress record, in the job's namespace; the head may get and patch it."""
    on_gpu: bool
    """Whether each worker has a GPU, of Ray's resource `GPU`."""
    worker_resources: dict[str, float]
    """What Ray must set aside for a worker besides its GPU: `{"CPU": 1, "accelerator_type:A10G": 0.001}`."""
    worker_threads: Annotated[int, Field(ge=1)]
    """Threads of a worker's arithmetic: the processors that it has."""
    device_memory: Annotated[int, Field(ge=0)] | None = None
    """Bytes of memory of a worker's device; None where it is not known, or there is no device."""
