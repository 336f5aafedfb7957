"""How a job fails: the classes of failure, and the one exception that carries them."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

SHOWN_PROBLEMS = 20
"""How many problems a message lists before it only counts the rest: a message must fit into a status."""


class FailureClass(StrEnum):
    """Why a job ended, as `status.failure.class` shows it; the class decides whether a retry makes sense."""

    INVALID_SPEC = "InvalidSpec"
    INVALID_DATA = "InvalidData"
    MODEL_NOT_FOUND = "ModelNotFound"
    ACCESS_DENIED = "AccessDenied"
    OUT_OF_MEMORY = "OutOfMemory"
    DIVERGED = "Diverged"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePull"
    NODE_LOST = "NodeLost"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    STORAGE_ERROR = "StorageError"
    UNKNOWN = "Unknown"


class FineTuneError(Exception):
    """A failure that a person can act on.

    `problems` are lines of the form `where: what is wrong, and what would be right`, where `where` is a
    field (`spec.lora_config.r`) or a line of a file (`train.jsonl:17`). All that are known are given at once.
    """

    def __init__(self, failure_class: FailureClass, *problems: str) -> None:
        super().__init__(failure_class, *problems)
        self.failure_class = failure_class
        self.problems = problems

    def __str__(self) -> str:
        shown = list(self.problems[:SHOWN_PROBLEMS])
        if len(self.problems) > SHOWN_PROBLEMS:
            shown.append(f"and {len(self.problems) - SHOWN_PROBLEMS} more")
        return "\n".join(shown)

    def __reduce__(self) -> tuple[type[Self], tuple[FailureClass | str, ...]]:
        # The exception crosses process borders in Ray, which pickles it.
        return (type(self), (self.failure_class, *self.problems))
