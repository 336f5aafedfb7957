"""How the devices of a job share the model: a copy on each, or a part on each."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Sharding(BaseModel):
    """How several devices hold the model, its gradients and the optimizer's state.

    The stages of Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
    Models": a copy on every device is no stage at all, `fsdp` without `reshard` is stage 2, with it stage 3.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["ddp", "fsdp"] = "ddp"
    """A whole copy on each device, or a part of everything on each."""
    reshard: bool = True
    """With `fsdp`: give the gathered weights of a layer back after its forward pass."""
    cpu_offload: bool = False
    """With `fsdp`: keep weights, gradients and optimizer state in the host's memory."""
    within_nodes: bool = False
    """With `fsdp`: share within each node only, and copy between nodes (DeepSpeed's hpZ)."""


COPIES = Sharding()
"""A whole copy of the model on each device."""
