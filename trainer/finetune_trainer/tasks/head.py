"""The cross-entropy of predicted tokens without the scores over the vocabulary of all of them at once.

A model's head makes a score for each token of the vocabulary, at each position. These are the largest tensors
of a training step, and only those of positions that count are needed, each for a moment: so they are made a
chunk of positions at a time, and in training the chunk's gradient is computed at once, as in Hsu et al. 2024,
"Liger Kernel", section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional

Chosen = tuple[torch.Tensor, ...]
"""The label of each position and, where not all weigh the same, its weight."""
SCORES_AT_ONCE = 2**26
"""How many scores are there at once: 512 positions of a vocabulary of 128,000."""


@dataclass(frozen=True)
class Scores:
    """What a model's forward pass does with the scores of its head, which is elementwise."""

    scale: float = 1.0
    """What they are multiplied with."""
    cap: float | None = None
    """What they are bounded by, with a hyperbolic tangent, after scaling."""

    def of(self, head: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """The scores of hidden states of shape (positions, width): (positions, vocabulary)."""
        scores = head(hidden)
        if self.scale != 1.0:
            scores = scores * self.scale
        if self.cap is not None:
            scores = torch.tanh(scores / self.cap) * self.cap
        return scores


def positions_at_once(vocabulary: int) -> int:
    """The positions of a chunk."""
    return max(1, SCORES_AT_ONCE // vocabulary)


def cross_entropy(
    head: torch.nn.Module,
    scores: Scores,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    positions: int,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum of the cross-entropy of hidden states, shape (n, width), with labels, shape (n,); in fp32.

    Each may have a weight, shape (n,). `positions` of them are computed at once. The gradient can be computed
    once only.
    """
    trained = {name: each for name, each in head.named_parameters() if each.requires_grad}

    def of_chunk(hidden: torch.Tensor, chosen: Chosen, *parameters: torch.Tensor) -> torch.Tensor:
        of_head = partial(functional_call, head, dict(zip(trained, parameters, strict=True)))
        predicted = scores.of(of_head, hidden).float()
        if len(chosen) == 1:
            return functional.cross_entropy(predicted, chosen[0], reduction="sum")
        return (functional.cross_entropy(predicted, chosen[0], reduction="none") * chosen[1]).sum()

    chosen = (labels,) if weights is None else (labels, weights)
    if not torch.is_grad_enabled():
        chunks = zip(torch.split(hidden, positions), _split(chosen, positions), strict=True)
        return torch.stack([of_chunk(*chunk, *trained.values()) for chunk in chunks]).sum()
    total: torch.Tensor = _Chunked.apply(of_chunk, positions, hidden, chosen, *trained.values())
    return total


@torch.no_grad()
def log_probabilities(
    head: torch.nn.Module, scores: Scores, hidden: torch.Tensor, labels: torch.Tensor, positions: int
) -> torch.Tensor:
    """The log-probability of each label, shape (n,), by hidden states of shape (n, width); in fp32."""
    chunks = zip(torch.split(hidden, positions), torch.split(labels, positions), strict=True)
    return torch.cat(
        [
            -functional.cross_entropy(scores.of(head, of_chunk).float(), chosen, reduction="none")
            for of_chunk, chosen in chunks
        ]
    )


def _split(chosen: Chosen, positions: int) -> list[Chosen]:
    return list(zip(*(torch.split(each, positions) for each in chosen), strict=True))


class _Chunked(torch.autograd.Function):
    """Computes the gradient with the loss, and keeps it for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - as in torch
        of_chunk: Callable[..., torch.Tensor],
        positions: int,
        hidden: torch.Tensor,
        chosen: Chosen,
        *trained: torch.nn.Parameter,
    ) -> torch.Tensor:
        wants_hidden = hidden.requires_grad
        # Stand-ins, since hooks of the weights are for the backward pass.
        weights = [weight.detach().requires_grad_() for weight in trained]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden: list[torch.Tensor] = []
        of_trained: list[torch.Tensor] = []
        for part, of_part in zip(torch.split(hidden, positions), _split(chosen, positions), strict=True):
            with torch.enable_grad():
                leaf = part.detach().requires_grad_(wants_hidden)
                # What observes modules hooks their inputs, which `grad` allows of values that were computed.
                loss = of_chunk(leaf.view_as(leaf), of_part, *weights)
            total += loss.detach()
            wanted = [leaf, *weights] if wants_hidden else weights
            if not wanted:
                continue
            gradients = list(torch.autograd.grad(loss, wanted, materialize_grads=True))
            del loss
            if wants_hidden:
                of_hidden.append(gradients.pop(0))
            if of_trained:
                for total_of_it, gradient in zip(of_trained, gradients, strict=True):
                    total_of_it.add_(gradient)
            else:
                of_trained = gradients
        ctx.gradients = (torch.cat(of_hidden) if wants_hidden else None, of_trained)
        return total

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> Any:  # noqa: ANN401 - as in torch
        of_hidden, of_trained = ctx.gradients
        del ctx.gradients
        if of_hidden is not None:
            of_hidden.mul_(factor)
        for gradient in of_trained:
            gradient.mul_(factor)
        return None, None, of_hidden, None, *of_trained
