"""Two ranks, each with a part of the rows, must give the results of one device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
import torch
from tests.trainer.training_jobs import in_processes, largest_difference, some_rows
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.checkpoint.state import RandomState
from finetune_trainer.data.batches import deal
from finetune_trainer.data.layout import Padded
from finetune_trainer.parallel.parallel import parallel_of
from finetune_trainer.tasks.language import LanguageObjective
from finetune_trainer.training.forward import Forward

ROWS = {"8 rows": some_rows(8, seed=4), "1 row": some_rows(1, seed=5)}
"""Of 8 rows, each of two devices gets two micro-batches of 2 rows. Of 1 row, the second device gets none."""
ROWS_OF_A_MICRO_BATCH = 4
"""Of all devices together."""
MAX_NORM = 0.1
VALUES = [1 + 1e-12, 1 / 3]
"""Numbers that fp32 does not hold."""

Tensors = dict[str, torch.Tensor]


class Observed(TypedDict):
    """What one rank sees of an optimizer step."""

    sums: list[float]
    """Of VALUES times rank + 1."""
    first_gradient: Tensors
    """After the first micro-batch."""
    gradient: Tensors
    """After the last one."""
    grad_norm: float
    clipped: Tensors
    weights: Tensors
    """After the step, as `collect` gives them."""
    momentum: Tensors
    """Of the optimizer's state, as `collect` gives it."""
    restored: Tensors
    """The momentum of another optimizer into which the collected state was put."""
    random: list[RandomState]
    my_random: torch.Tensor


def step(model: Path, name: str, rank: int, num_devices: int) -> Observed:
    """A step of gradient descent with momentum, whose update is as large as its gradient."""
    rows = ROWS[name]
    parallel = parallel_of(rank, num_devices, torch.device("cpu"))
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model)
    objective = LanguageObjective(loaded)
    forward = Forward(parallel.place(objective), parallel, Padded(pad_token_id=3), "fp32")
    optimizer, other = (
        torch.optim.SGD(objective.parameters(), lr=learning_rate, momentum=0.9)
        for learning_rate in (1.0, 0.5)
    )
    torch.manual_seed(rank)

    gradients: list[Tensors] = []
    micro_batches = deal(
        np.arange(len(rows)),
        rank=rank,
        num_devices=num_devices,
        batch_size=ROWS_OF_A_MICRO_BATCH // num_devices,
    )
    for index, indices in enumerate(micro_batches):
        with parallel.accumulate(last=index == len(micro_batches) - 1):
            parallel.backward(forward(rows, indices).total / int(rows.predicted.sum()))
        gradients.append(gradient_of(loaded))
    norm = parallel.clip(MAX_NORM)
    clipped = gradient_of(loaded)
    one, third = (value * (rank + 1) for value in VALUES)
    *sums, grad_norm = parallel.sum([one, torch.tensor(third, dtype=torch.float64)], [norm])
    optimizer.step()

    collected = parallel.collect(optimizer)
    parallel.restore(other, collected.optimizer)
    return Observed(
        sums=sums,
        first_gradient=gradients[0],
        gradient=gradients[-1],
        grad_norm=grad_norm,
        clipped=clipped,
        weights=collected.weights,
        momentum=momentum_of(optimizer),
        restored=momentum_of(other),
        random=collected.random,
        my_random=torch.get_rng_state(),
    )


def gradient_of(model: PreTrainedModel) -> Tensors:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def momentum_of(optimizer: torch.optim.Optimizer) -> Tensors:
    return {str(index): state["momentum_buffer"] for index, state in optimizer.state_dict()["state"].items()}


def save_steps(model: Path, directory: Path, rank: int, num_devices: int) -> None:
    """Every step, into a file of its own."""
    for name in ROWS:
        torch.save(step(model, name, rank, num_devices), directory / f"{name} on rank {rank}")


@pytest.fixture(scope="module")
def two_ranks(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Observed]]:
    """What both ranks see of each step."""
    directory = tmp_path_factory.mktemp("two-ranks")
    assert in_processes(2, partial(save_steps, tiny_model, directory)) == [0, 0]
    return {name: [torch.load(directory / f"{name} on rank {rank}") for rank in (0, 1)] for name in ROWS}


@pytest.fixture(scope="module")
def one_device(tiny_model: Path) -> dict[str, Observed]:
    """What one device sees of each step."""
    return {name: step(tiny_model, name, 0, 1) for name in ROWS}


@pytest.fixture(params=ROWS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_all_ranks_get_the_same_sums_in_fp64(
    two_ranks: dict[str, list[Observed]], one_device: dict[str, Observed], name: str
) -> None:
    assert one_device[name]["sums"] == VALUES
    for rank in two_ranks[name]:
        assert rank["sums"] == [value + 2 * value for value in VALUES]


def test_gradients_after_the_last_micro_batch_are_those_of_one_device(
    two_ranks: dict[str, list[Observed]], one_device: dict[str, Observed], name: str
) -> None:
    expected = one_device[name]["gradient"]
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2
    for rank in two_ranks[name]:
        assert largest_difference(rank["gradient"], expected) < 1e-6


def test_gradients_are_not_exchanged_before_the_last_micro_batch(
    two_ranks: dict[str, list[Observed]],
) -> None:
    first, second = (rank["first_gradient"] for rank in two_ranks["8 rows"])
    assert largest_difference(first, second) > 1e-3


def test_every_rank_clips_by_the_norm_of_the_whole_gradient(
    two_ranks: dict[str, list[Observed]], one_device: dict[str, Observed], name: str
) -> None:
    assert one_device[name]["grad_norm"] > MAX_NORM
    for rank in two_ranks[name]:
        assert rank["grad_norm"] == pytest.approx(one_device[name]["grad_norm"], rel=1e-5)
        norm = torch.cat([gradient.flatten() for gradient in rank["clipped"].values()]).norm()
        assert float(norm) == pytest.approx(MAX_NORM, rel=1e-4)


def test_what_is_collected_on_rank_0_is_what_one_device_has(
    two_ranks: dict[str, list[Observed]], one_device: dict[str, Observed], tiny_model: Path, name: str
) -> None:
    collected, expected = two_ranks[name][0], one_device[name]
    untrained: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert collected["weights"].keys() == untrained.state_dict().keys()
    assert largest_difference(collected["weights"], expected["weights"]) < 1e-6
    assert largest_difference(expected["weights"], untrained.state_dict()) > 1e-3
    assert largest_difference(collected["momentum"], expected["momentum"]) < 1e-6


def test_what_is_collected_has_the_random_state_of_every_rank(
    two_ranks: dict[str, list[Observed]], one_device: dict[str, Observed], name: str
) -> None:
    own = [rank["my_random"] for rank in two_ranks[name]]
    assert not torch.equal(own[0], own[1])
    for rank in two_ranks[name]:
        assert all(torch.equal(state["cpu"], mine) for state, mine in zip(rank["random"], own, strict=True))
    (alone,) = one_device[name]["random"]
    assert torch.equal(alone["cpu"], one_device[name]["my_random"])


def test_an_optimizer_state_that_was_collected_can_be_restored(
    two_ranks: dict[str, list[Observed]], one_device: dict[str, Observed], name: str
) -> None:
    for rank in (*two_ranks[name], one_device[name]):
        assert largest_difference(rank["restored"], rank["momentum"]) == 0
