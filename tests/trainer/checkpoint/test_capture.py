from __future__ import annotations

import pytest
import torch

from finetune_trainer.checkpoint.capture import (
    captured,
    copy_bytes,
    fits,
    frozen_weights,
)
from finetune_trainer.checkpoint.state import Collected


class Tied(torch.nn.Module):
    """Two names for one trained weight, a frozen one, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.ones(4, 3))
        self.second = self.first
        self.frozen = torch.nn.Parameter(torch.ones(100), requires_grad=False)
        self.register_buffer("counted", torch.zeros(2))


def collected() -> tuple[Tied, torch.optim.AdamW, Collected]:
    model = Tied()
    optimizer = torch.optim.AdamW([model.first], lr=0.1)
    step(model, optimizer)
    return model, optimizer, Collected(model.state_dict(), optimizer.state_dict(), [])


def step(model: Tied, optimizer: torch.optim.AdamW) -> None:
    model.first.grad = torch.ones(4, 3)
    optimizer.step()
    model.get_buffer("counted").add_(1)


def test_what_is_captured_stays_what_it_was_when_training_goes_on() -> None:
    model, optimizer, now = collected()
    expected = {name: weight.clone() for name, weight in now.weights.items()}
    moments = now.optimizer["state"][0]["exp_avg"].clone()

    copy = captured(now, frozen_weights(model))
    step(model, optimizer)

    assert all(torch.equal(copy.weights[name], weight) for name, weight in expected.items())
    assert torch.equal(copy.optimizer["state"][0]["exp_avg"], moments)
    assert copy.optimizer["state"][0]["step"] == 1
    assert copy.optimizer["param_groups"] == now.optimizer["param_groups"]
    assert not torch.equal(now.weights["first"], expected["first"]), "training has changed the model"


def test_weights_that_are_one_stay_one_and_frozen_ones_are_not_copied() -> None:
    model, _, now = collected()

    copy = captured(now, frozen_weights(model))

    assert copy.weights["first"].data_ptr() == copy.weights["second"].data_ptr()
    assert copy.weights["frozen"] is now.weights["frozen"]


def test_the_size_of_a_copy_is_known_before() -> None:
    model, _, now = collected()
    weight, buffer, moments, steps = 4 * 3 * 4, 2 * 4, 2 * 4 * 3 * 4, 4

    assert copy_bytes(now, frozen_weights(model)) == weight + buffer + moments + steps


@pytest.mark.parametrize(
    ("size", "free", "expected"),
    [(100, 200, True), (101, 200, False), (0, 0, True), (1, None, False)],
    ids=["half of what is free", "more than that", "nothing", "nobody knows"],
)
def test_a_copy_takes_at_most_half_of_the_memory_that_is_free(
    size: int, free: int | None, expected: bool
) -> None:
    assert fits(size, free) is expected
