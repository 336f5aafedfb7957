"""Which checkpoints are best, newest, and kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune_api.status import Checkpoint


def kept(checkpoints: Sequence[Checkpoint], num_to_keep: int, *, finished: bool) -> set[str]:
    """The names of the checkpoints to keep: the best `num_to_keep`.

    While the job runs also the newest, because a resumed run starts from it.
    """
    stay = sorted(checkpoints, key=_rank)[:num_to_keep]
    if not finished:
        stay += sorted(checkpoints, key=_age)[-1:]
    return {checkpoint.name for checkpoint in stay}


def best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The checkpoint with the lowest validation loss, the earlier of equals.

    Without validation losses the newest; None if there are no checkpoints.
    """
    return min(checkpoints, key=_rank, default=None)


def flagged(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints in the order they were saved, with `best` and `latest` set on the right ones."""
    top = best(checkpoints)
    ordered = sorted(checkpoints, key=_age)
    return [
        checkpoint.model_copy(update={"best": checkpoint is top, "latest": checkpoint is ordered[-1]})
        for checkpoint in ordered
    ]


def _rank(checkpoint: Checkpoint) -> tuple[float, int]:
    """Sorts the best first."""
    if checkpoint.eval_loss is None:
        return (math.inf, -checkpoint.step)
    return (checkpoint.eval_loss, checkpoint.step)


def _age(checkpoint: Checkpoint) -> int:
    """Sorts the newest last."""
    return checkpoint.step
