from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.status import Evaluation
from finetune_trainer.checkpoint.state import (
    STATE,
    Collected,
    Position,
    RandomState,
    random_state,
    read_state,
    restore_state,
    save_state,
)
from finetune_trainer.parallel.ddp import DataParallel
from finetune_trainer.parallel.one_device import OneDevice

CPU = torch.device("cpu")
POSITION = Position(step=7, data="these rows", evaluation=Evaluation(epoch=1.0, loss=2.5, perplexity=12.18))


def optimizer_after(steps: int) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    for _ in range(steps):
        parameter.grad = torch.rand(3)
        optimizer.step()
    return parameter, optimizer


def random_states(count: int) -> list[RandomState]:
    states = []
    for seed in range(count):
        torch.manual_seed(seed)
        states.append(random_state(CPU))
    return states


def save(directory: Path, optimizer: torch.optim.Optimizer, random: list[RandomState]) -> None:
    save_state(directory, POSITION, Collected({}, optimizer.state_dict(), random), None)


def restore(directory: Path, optimizer: torch.optim.Optimizer, *, data: str, rank: int) -> Position:
    parallel = OneDevice(CPU) if rank == 0 else DataParallel(rank, rank + 1, CPU)
    return restore_state(read_state(directory), optimizer, parallel, data=data)


def test_what_was_saved_is_put_back(tmp_path: Path) -> None:
    _, optimizer = optimizer_after(5)
    save(tmp_path, optimizer, [random_state(CPU)])
    drawn = torch.rand(4)
    torch.manual_seed(99)
    _, restored = optimizer_after(0)
    assert restore(tmp_path, restored, data="these rows", rank=0) == POSITION
    assert torch.equal(torch.rand(4), drawn)
    for before, after in zip(optimizer.state.values(), restored.state.values(), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_every_rank_gets_its_own_random_state(tmp_path: Path) -> None:
    _, optimizer = optimizer_after(0)
    save(tmp_path, optimizer, random_states(2))
    for rank in range(2):
        restore(tmp_path, optimizer, data="these rows", rank=rank)
        restored = torch.rand(4)
        torch.manual_seed(rank)
        assert torch.equal(restored, torch.rand(4))


def test_a_rank_that_was_not_there_keeps_its_own_random_state(tmp_path: Path) -> None:
    _, optimizer = optimizer_after(0)
    save(tmp_path, optimizer, random_states(2))
    torch.manual_seed(5)
    restore(tmp_path, optimizer, data="these rows", rank=2)
    drawn = torch.rand(4)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(4))


def test_other_rows_are_refused_before_anything_is_put_back(tmp_path: Path) -> None:
    _, optimizer = optimizer_after(5)
    save(tmp_path, optimizer, random_states(1))
    _, untouched = optimizer_after(0)
    with pytest.raises(FineTuneError, match="the rows are not those that this run began with") as raised:
        restore(tmp_path, untouched, data="other rows", rank=0)
    assert raised.value.failure_class is FailureClass.INVALID_DATA
    assert not untouched.state


def test_the_position_can_be_read_without_torch(tmp_path: Path) -> None:
    _, optimizer = optimizer_after(0)
    save(tmp_path, optimizer, random_states(1))
    position = json.loads((tmp_path / STATE / "position.json").read_text())
    assert (position["step"], position["data"]) == (7, "these rows")


def test_a_state_is_no_way_to_run_code(tmp_path: Path) -> None:
    _, optimizer = optimizer_after(0)
    save(tmp_path, optimizer, random_states(1))
    mark = tmp_path / "was-run"
    torch.save(Planted(mark), tmp_path / STATE / "optimizer.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        restore(tmp_path, optimizer, data="these rows", rank=0)
    assert not mark.exists()


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = str(mark)

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path(self._mark).write_text, ("",)
