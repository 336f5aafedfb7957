"""What a run needs besides its weights to go on exactly: optimizer, position, random state.

Saved in a checkpoint's `state/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.status import Evaluation

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
    """Fingerprint of the training rows as tokens: going on with other rows would be another run."""
    evaluation: Evaluation | None
    """The last validation."""


def gather_random_state(device: torch.device, num_devices: int) -> list[RandomState]:
    """The random state of every rank, in their order; all ranks must call it."""
    mine = RandomState(
        cpu=torch.get_rng_state(), device=torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    )
    if num_devices == 1:
        return [mine]
    everyone: list[RandomState] = [mine] * num_devices
    dist.all_gather_object(everyone, mine)
    return everyone


def save_state(
    directory: Path, position: Position, optimizer: torch.optim.Optimizer, random: list[RandomState]
) -> None:
    """Writes `state/` into a checkpoint's directory."""
    state = directory / STATE
    state.mkdir()
    (state / _POSITION).write_text(position.model_dump_json())
    for name, content in ((_OPTIMIZER, optimizer.state_dict()), (_RANDOM, random)):
        # Given a path, torch.save would not say why it cannot write.
        with (state / name).open("wb") as file:
            torch.save(content, file)


def read_position(text: str) -> Position:
    """The position in a checkpoint, from the text of its `state/position.json`."""
    return Position.model_validate_json(text)


def restore_state(
    directory: Path, optimizer: torch.optim.Optimizer, *, data: str, rank: int, device: torch.device
) -> Position:
    """Puts optimizer and this rank's random state back, and returns where the run was.

    With other numbers of devices than before, the ranks that are new keep the random state of their seed.
    Raises FineTuneError (InvalidData) when the training rows are not those that the run began with.
    """
    state = directory / STATE
    position = read_position((state / _POSITION).read_text())
    if position.data != data:
        raise FineTuneError(
            FailureClass.INVALID_DATA,
            "spec.train_path: the rows are not those that this run began with; put them back, or begin anew"
            " in another storage directory",
        )
    optimizer.load_state_dict(torch.load(state / _OPTIMIZER, map_location=device, weights_only=True))
    random: list[RandomState] = torch.load(state / _RANDOM, weights_only=True)
    if rank < len(random):
        torch.set_rng_state(random[rank]["cpu"])
        of_device = random[rank]["device"]
        if of_device is not None and device.type == "cuda":
            torch.cuda.set_rng_state(of_device, device)
    return position
