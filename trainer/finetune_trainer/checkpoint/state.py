"""What a run needs besides its weights to resume exactly: optimizer, position, random state.

Saved in a checkpoint's `state/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from pydantic import BaseModel, ConfigDict

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.status import Evaluation

if TYPE_CHECKING:
    from finetune_trainer.parallel.parallel import Parallel

STATE = "state"
_POSITION = "position.json"
_OPTIMIZER = "optimizer.pt"
_RANDOM = "random.pt"


class RandomState(TypedDict):
    """The generators that dropout draws from, of one rank."""

    cpu: torch.Tensor
    device: torch.Tensor | None


class Position(BaseModel):
    """Where in the run a state was taken."""

    model_config = ConfigDict(frozen=True)

    step: int
    """Optimizer steps done."""
    data: str
    """Fingerprint of the training rows as tokens: resuming with other rows would be another run."""
    evaluation: Evaluation | None
    """The last validation."""


@dataclass(frozen=True)
class Collected:
    """What the devices know of a run at one moment, complete on rank 0."""

    weights: dict[str, torch.Tensor]
    """The model's, by name, frozen ones included."""
    optimizer: dict[str, Any]
    random: list[RandomState]
    """Of every rank, in their order."""


@dataclass(frozen=True)
class SavedState:
    """What a checkpoint's `state/` holds; tensors are on the CPU."""

    position: Position
    optimizer: dict[str, Any]
    random: list[RandomState]
    """Of every rank that there was, in their order."""


def random_state(device: torch.device) -> RandomState:
    """This process's random state."""
    on_gpu = device.type == "cuda"
    return RandomState(cpu=torch.get_rng_state(), device=torch.cuda.get_rng_state(device) if on_gpu else None)


def save_state(directory: Path, position: Position, collected: Collected) -> None:
    """Writes `state/` into a checkpoint's directory."""
    state = directory / STATE
    state.mkdir()
    (state / _POSITION).write_text(position.model_dump_json())
    for name, content in ((_OPTIMIZER, collected.optimizer), (_RANDOM, collected.random)):
        # Given a path, torch.save would not say why it cannot write.
        with (state / name).open("wb") as file:
            torch.save(content, file)


def read_position(text: str) -> Position:
    """The position in a checkpoint, from the text of its `state/position.json`."""
    return Position.model_validate_json(text)


def read_state(directory: Path) -> SavedState:
    """What `save_state` wrote into a checkpoint's directory."""
    state = directory / STATE
    return SavedState(
        position=read_position((state / _POSITION).read_text()),
        optimizer=torch.load(state / _OPTIMIZER, map_location="cpu", weights_only=True),
        random=torch.load(state / _RANDOM, map_location="cpu", weights_only=True),
    )


def restore_state(
    saved: SavedState, optimizer: torch.optim.Optimizer, parallel: Parallel, *, data: str
) -> Position:
    """Puts optimizer and this rank's random state back, and returns where the run was.

    With more devices than before, the new ranks keep the random state of their seed. Raises FineTuneError
    (InvalidData) when the training rows, whose fingerprint `data` is, are not those that the run began with.
    """
    if saved.position.data != data:
        raise FineTuneError(
            FailureClass.INVALID_DATA,
            "spec.train_path: the rows are not those that this run began with; put them back, or begin anew in"
            " another storage directory",
        )
    parallel.restore(optimizer, saved.optimizer)
    if parallel.rank < len(saved.random):
        mine = saved.random[parallel.rank]
        torch.set_rng_state(mine["cpu"])
        if mine["device"] is not None and parallel.device.type == "cuda":
            torch.cuda.set_rng_state(mine["device"], parallel.device)
    return saved.position
