"""AdamW and one update of the weights, normalised by the trained tokens of the whole step."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch.nn.parallel import DistributedDataParallel

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.batches import Indices, deal, lay_out
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.training.evaluate import Share, arithmetic, loss_sum

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def adamw(model: torch.nn.Module, spec: FineTuneJobSpec, *, fused: bool) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over what is trained; biases and norms, which are vectors, do not decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in trainable if parameter.ndim >= 2],
            "weight_decay": spec.weight_decay,
        },
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=0.0, betas=BETAS, eps=EPSILON, fused=fused
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip(model: torch.nn.Module, max_norm: float) -> float:
    """Scales the gradient down to an L2 norm of at most `max_norm`, and returns the norm it had."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return float(torch.nn.utils.clip_grad_norm_(trainable, max_norm))


def backward(
    module: torch.nn.Module, train: TokenizedRows, rows: Indices, batch_size: int, share: Share
) -> torch.Tensor:
    """Gradients of one optimizer step over `rows`, and this device's part of its loss, a scalar.

    The loss is the sum over the step's trained tokens on all devices and in all micro-batches, divided by
    their number: a mean of micro-batch means would weigh tokens by the company they keep. Gradients are
    complete on every device when this returns.
    """
    trained = sum(int(train.row(int(row))[1][1:].sum()) for row in rows)
    micro_batches = deal(rows, rank=share.rank, num_devices=share.num_devices, batch_size=batch_size)
    total = torch.zeros((), device=share.device)
    for index, indices in enumerate(micro_batches):
        batch = lay_out(train, indices, pad_token_id=share.pad_token_id, length=share.length)
        last = index == len(micro_batches) - 1
        # Both passes belong inside no_sync: wrapping the backward pass alone saves nothing.
        with module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext():
            with arithmetic(share):
                loss = loss_sum(module, batch, share.device) / trained
            # DDP averages gradients over the devices, but the loss is a sum over them.
            (loss * share.num_devices).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total
