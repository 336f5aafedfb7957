"""Chunks of positions must give the loss and the gradients of all scores at once, by PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import peft
import pytest
import torch
from torch.nn import functional

from finetune_trainer.tasks.head import Scores, cross_entropy, positions_at_once

WIDTH, VOCABULARY, POSITIONS = 6, 11, 10


class Holder(torch.nn.Module):
    """For PEFT, which puts adapters into a module's children."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.head = head


def trained() -> torch.nn.Module:
    return torch.nn.Linear(WIDTH, VOCABULARY)


def frozen() -> torch.nn.Module:
    return trained().requires_grad_(False)


def adapted() -> torch.nn.Module:
    holder = Holder(torch.nn.Linear(WIDTH, VOCABULARY, bias=False))
    config = peft.LoraConfig(r=2, target_modules=["head"], init_lora_weights=False)
    head = peft.inject_adapter_in_model(config, holder).head
    assert isinstance(head, torch.nn.Module)
    return head


def results(
    head: torch.nn.Module, loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], count: int
) -> list[torch.Tensor]:
    """The loss, and the gradients of hidden states and of all trained parameters."""
    torch.manual_seed(1)
    hidden = torch.randn(count, WIDTH, requires_grad=True)
    labels = torch.randint(VOCABULARY, (count,))
    loss = loss_of(hidden, labels)
    # What a sum is divided by, as a step is.
    wanted = [hidden, *(each for each in head.parameters() if each.requires_grad)]
    return [loss.detach(), *torch.autograd.grad(loss / 7, wanted)]


@pytest.mark.parametrize("count", [POSITIONS, 1, 0])
@pytest.mark.parametrize("scores", [Scores(), Scores(0.5, 2.0)], ids=["plain", "scaled and bounded"])
@pytest.mark.parametrize("made", [trained, frozen, adapted])
def test_loss_and_gradients_are_those_of_all_scores_at_once(
    made: Callable[[], torch.nn.Module], scores: Scores, count: int
) -> None:
    torch.manual_seed(0)
    head = made()

    def whole(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        predicted = head(hidden) * scores.scale
        if scores.cap is not None:
            predicted = scores.cap * torch.tanh(predicted / scores.cap)
        return functional.cross_entropy(predicted, labels, reduction="sum")

    expected = results(head, whole, count)
    for positions in (3, POSITIONS):
        found = results(head, partial(cross_entropy, head, scores, positions=positions), count)
        assert len(found) == len(expected)
        for mine, its in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, its, atol=1e-6, rtol=1e-5)


def test_without_gradients_it_is_the_same_loss() -> None:
    torch.manual_seed(0)
    head, hidden, labels = trained(), torch.randn(5, WIDTH), torch.randint(VOCABULARY, (5,))
    with torch.no_grad():
        loss = cross_entropy(head, Scores(), hidden, labels, 2)
    expected = functional.cross_entropy(head(hidden), labels, reduction="sum")
    torch.testing.assert_close(loss, expected.detach())


def test_no_more_scores_are_made_at_once_than_is_asked_for() -> None:
    made: list[torch.Size] = []
    head = trained()
    head.register_forward_hook(lambda _module, _inputs, out: made.append(out.shape))
    cross_entropy(head, Scores(), torch.randn(5, WIDTH), torch.zeros(5, dtype=torch.long), 2)
    assert made == [(2, VOCABULARY), (2, VOCABULARY), (1, VOCABULARY)]


def test_a_large_vocabulary_takes_no_more_memory_than_a_small_one() -> None:
    assert positions_at_once(128_000) * 128_000 <= positions_at_once(32_000) * 32_000 <= 2**26
