"""The state that a run needs besides a checkpoint's weights to resume exactly.

That is the optimizer, the position, the random generators, and the weights in fp32 where the checkpoint has
them in less. It is saved in `state/` of every checkpoint and snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.numpy import save_file
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.status import Evaluation
from finetune_trainer.checkpoint.parts import read_parts, write_parts
from finetune_trainer.data.pairs import Reference
from finetune_trainer.model.parts import part

if TYPE_CHECKING:
    from finetune_trainer.parallel.parallel import Parallel

STATE = "state"
POSITION = "position.json"
_OPTIMIZER = "optimizer.pt"
_RANDOM = "random.pt"
_REFERENCE = "reference.safetensors"
_VALIDATED = "validation rows"
_WEIGHTS = "weights.pt"
_OPTIMIZER_PARTS = "optimizer"
_WEIGHT_PARTS = "weights"


class RandomState(TypedDict):
    """The states of one rank's random generators, from which dropout draws."""

    cpu: torch.Tensor
    device: torch.Tensor | None
    """The GPU's; None on a CPU."""


class Position(BaseModel):
    """How far the run was when a state was saved."""

    model_config = ConfigDict(frozen=True)

    step: int
    """Optimizer steps done."""
    data: str
    """Fingerprint of the tokenized training rows. A run resumes only with the same rows."""
    evaluation: Evaluation | None
    """The last validation, if there was one."""
    effective_batch_size: int | None = None
    """Rows of a step, without which `step` says nothing of the rows that were trained on."""
    lowest_loss: float | None = None
    """The lowest validation loss of a checkpoint so far."""
    checkpoints_since: int = 0
    """Checkpoints after the one that had it."""

    def after_checkpoint(self, loss: float) -> Position:
        """The same after another checkpoint with this validation loss.

        Only a lower loss is better: transformers' EarlyStoppingCallback with a threshold of 0.
        """
        if self.lowest_loss is None or loss < self.lowest_loss:
            return self.model_copy(update={"lowest_loss": loss, "checkpoints_since": 0})
        return self.model_copy(update={"checkpoints_since": self.checkpoints_since + 1})

    def stops_early(self, patience: int | None) -> bool:
        """Whether so many checkpoints had no lower validation loss."""
        return patience is not None and self.checkpoints_since >= patience


@dataclass(frozen=True)
class Collected:
    """What a checkpoint saves from all devices.

    Complete on rank 0, which writes it; or `in_parts`, and then every rank writes its own.
    """

    weights: dict[str, torch.Tensor]
    """All weights of the model by name, frozen ones included. In parts they are DTensors."""
    optimizer: dict[str, Any]
    """The optimizer's `state_dict`; in parts, the tensors of its state by name (see `by_parameter`)."""
    random: list[RandomState]
    """One for each rank, in order."""
    in_parts: bool = False


@dataclass(frozen=True)
class SavedState:
    """The content of a checkpoint's `state/`. Tensors are on the CPU."""

    position: Position
    optimizer: dict[str, Any]
    """As it was collected; what was in parts then is in the parts that this rank needs now."""
    random: list[RandomState]
    """One for each rank of the run that saved it, in order."""
    reference: Reference | None
    """What the loss compares the model with, where it does."""


def random_state(device: torch.device) -> RandomState:
    """The state of this process's random generators, on the CPU and on `device`."""
    on_gpu = device.type == "cuda"
    return RandomState(cpu=torch.get_rng_state(), device=torch.cuda.get_rng_state(device) if on_gpu else None)


def save_state(
    directory: Path,
    position: Position,
    collected: Collected,
    reference: Reference | None,
    *,
    weights: bool = False,
) -> None:
    """Writes `state/` into a checkpoint's directory.

    With `weights` it holds the weights as they are trained, in fp32: the checkpoint's own have less
    precision, and a run that resumed from those would not be the same.
    """
    state = directory / STATE
    state.mkdir(exist_ok=True)  # another rank may write its part already
    (state / POSITION).write_text(position.model_dump_json())
    contents: dict[str, object] = {_RANDOM: collected.random}
    if not collected.in_parts:
        contents[_OPTIMIZER] = collected.optimizer
        if weights:
            contents[_WEIGHTS] = collected.weights
    for name, content in contents.items():
        # Given a path, torch.save would not say why it cannot write.
        with (state / name).open("wb") as file:
            torch.save(content, file)
    if reference is not None:
        of_files = {"train": reference.train, "validation": reference.validation}
        known = {name: of for name, of in of_files.items() if of is not None}
        metadata = {} if reference.validated is None else {_VALIDATED: reference.validated}
        save_file(known, state / _REFERENCE, metadata)


def save_parts(directory: Path, collected: Collected, *, weights: bool) -> None:
    """Writes this rank's parts into `state/` of a checkpoint's directory. All ranks must call this.

    `weights` is as in `save_state`, which rank 0 calls first.
    """
    state, ranks = directory / STATE, len(collected.random)
    write_parts(state / _OPTIMIZER_PARTS, collected.optimizer, ranks)
    if weights:
        write_parts(state / _WEIGHT_PARTS, collected.weights, ranks)


def read_position(text: str) -> Position:
    """Parses the text of a checkpoint's `state/position.json`."""
    return Position.model_validate_json(text)


def read_state(directory: Path, mesh: DeviceMesh | None = None) -> SavedState:
    """Reads the `state/` of a checkpoint's directory; where it is in parts, this rank's on the mesh.

    With a mesh, a state that is whole stays in its file, and is read where it is used.
    """
    state = directory / STATE
    if (state / _OPTIMIZER_PARTS).is_dir():
        optimizer: dict[str, Any] = read_parts(state / _OPTIMIZER_PARTS, mesh)
    else:
        optimizer = torch.load(
            state / _OPTIMIZER, map_location="cpu", mmap=mesh is not None, weights_only=True
        )
    return SavedState(
        position=read_position((state / POSITION).read_text()),
        optimizer=optimizer,
        random=torch.load(state / _RANDOM, map_location="cpu", weights_only=True),
        reference=_read_reference(state / _REFERENCE),
    )


def _read_reference(file: Path) -> Reference | None:
    if not file.is_file():
        return None
    with safe_open(file, "numpy") as opened:
        of_files = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        validated = (opened.metadata() or {}).get(_VALIDATED)
    return Reference(of_files["train"], of_files.get("validation"), validated)


def restore_weights(directory: Path, model: torch.nn.Module, mesh: DeviceMesh | None = None) -> None:
    """Gives a model that was loaded from a checkpoint the weights as they were trained, if they are kept.

    With a mesh, the model has this rank's parts.
    """
    file, parts = directory / STATE / _WEIGHTS, directory / STATE / _WEIGHT_PARTS
    if parts.is_dir():
        weights = read_parts(parts, mesh)
    elif file.is_file():
        weights = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    else:
        return
    if mesh is None:
        model.load_state_dict(weights)
        return
    held = model.state_dict()
    with torch.no_grad():
        for name, weight in weights.items():
            target = held[name]
            if isinstance(target, DTensor):
                local = weight.to_local() if isinstance(weight, DTensor) else part(weight, mesh)
                target.to_local().copy_(local)
            else:
                target.copy_(weight)


def restore_state(
    saved: SavedState, optimizer: torch.optim.Optimizer, parallel: Parallel, *, data: str
) -> Position:
    """Restores the optimizer and this rank's random state, and returns the position to resume from.

    A rank that the saved run did not have keeps the random state it has from its seed. `data` is the
    fingerprint of the training rows. Raises FineTuneError (InvalidData) when the run began with other rows.
    """
    if saved.position.data != data:
        raise FineTuneError(
            FailureClass.INVALID_DATA,
            "spec.train_path: the rows are not those that this run began with; put them back, or begin anew"
            " in another storage directory",
        )
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    parallel.restore(optimizer, saved.optimizer)
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay  # that of this run, which may go on from one with another
    if parallel.rank < len(saved.random):
        mine = saved.random[parallel.rank]
        torch.set_rng_state(mine["cpu"])
        if mine["device"] is not None and parallel.device.type == "cuda":
            torch.cuda.set_rng_state(mine["device"], parallel.device)
    return saved.position
