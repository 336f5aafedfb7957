"""Parallelism by PyTorch's FSDP2: every device has a part of the model's weights and of each step's rows.

A layer's weights are gathered before it computes, and given back afterwards. Source: Zhao et al. 2023,
"PyTorch FSDP"; `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from finetune_api.sharding import Sharding
from finetune_trainer.checkpoint.parts import by_parameter
from finetune_trainer.checkpoint.state import Collected, RandomState, random_state
from finetune_trainer.model.parts import dimension, mesh_of, part
from finetune_trainer.model.quantization import move_scales
from finetune_trainer.model.sizes import layers_of
from finetune_trainer.parallel.ranks import Ranks
from finetune_trainer.parallel.replica import norm_of
from finetune_trainer.tasks.objective import Objective

SMALL_SHARE = 0.1
"""Up to which share of trained parameters their gradients are kept whole between micro-batches.

Exchanging them only once a step saves time, and costs a whole gradient on each device: of adapters that is
little, of a model it is what FSDP is there to avoid."""


class FullySharded(Ranks):
    """Devices that share one model. Needs an initialised process group, unless there is one device only.

    Implements `finetune_trainer.parallel.parallel.Parallel`.
    """

    in_parts = True

    def __init__(self, rank: int, num_devices: int, device: torch.device, sharding: Sharding) -> None:
        super().__init__(rank, num_devices, device)
        self._sharding = sharding
        self._mesh = mesh_of(sharding, device.type)
        self._held_on = torch.device("cpu") if sharding.cpu_offload else device

    def place(self, objective: Objective) -> torch.nn.Module:
        """Deals the weights to the devices. Those that are DTensors are this rank's parts already.

        Layers are gathered one by one; embeddings that are not shared too, and all else together.
        """
        move_scales(objective, self.device)
        held = _Held(objective)
        for module in (*layers_of(objective.model), objective):
            self._shard(module, reshard=self._sharding.reshard if module is not objective else None)
        held.fill(self._held_on)
        register_fsdp_forward_method(objective, "run")
        self._objective = objective
        self._parameters = dict(objective.model.named_parameters())
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        trained = [parameter.numel() for parameter in self._trained()]
        self._exchanges_once = sum(trained) <= SMALL_SHARE * sum(sizes)
        return objective

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """Delays the exchange of gradients to the last micro-batch of a step, where they are few."""
        root = self._objective
        assert isinstance(root, FSDPModule)
        root.set_requires_gradient_sync(last or not self._exchanges_once)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Computes gradients, which are summed over the devices, as the loss is."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self, max_norm: float) -> torch.Tensor:
        """Clips the gradient by the norm of all its parts."""
        trained = self._trained()
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        norm = _norm_of_parts(gradients).float()
        torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
        return norm

    def collect(self, optimizer: torch.optim.Optimizer) -> Collected:
        """References to this rank's parts of weights and optimizer state, and the random states of all."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        state = {
            f"{names[id(parameter)]}.{key}": value
            for parameter, values in optimizer.state.items()
            for key, value in values.items()
        }
        everyone: list[RandomState] = self.gather(random_state(self.device))
        weights: dict[str, torch.Tensor] = self._objective.model.state_dict()
        return Collected(weights, state, everyone, in_parts=True)

    def restore(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Loads this rank's parts of the state, whether it was saved in parts or whole."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        by_name = {} if "param_groups" in state else by_parameter(state)
        parameters = (each for group in optimizer.param_groups for each in group["params"])
        for index, parameter in enumerate(parameters):
            name = names[id(parameter)]
            saved = by_name.get(name, {}) if by_name else state["state"].get(index, {})
            optimizer.state[parameter] = {key: _like(parameter, value) for key, value in saved.items()}

    def _shard(self, module: torch.nn.Module, *, reshard: bool | None) -> None:
        pieces = self._mesh.size(-1)
        offload = (
            CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
            if self._sharding.cpu_offload
            else OffloadPolicy()
        )
        sharded = fully_shard(
            module,
            mesh=self._mesh,
            reshard_after_forward=reshard,
            shard_placement_fn=lambda parameter: Shard(dimension(parameter.shape, pieces)),
            offload_policy=offload,
        )
        assert isinstance(sharded, FSDPModule)
        # Sums, and not means, are exchanged.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self._parameters.values() if parameter.requires_grad]


def _norm_of_parts(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The norm of gradients of which each device has parts."""
    alike: dict[tuple[DeviceMesh, tuple[Placement, ...]], list[torch.Tensor]] = {}
    for each in gradients:
        assert isinstance(each, DTensor)
        summed = tuple(Replicate() if kind.is_replicate() else Partial() for kind in each.placements)
        alike.setdefault((each.device_mesh, summed), []).append(each.to_local())
    squares = [
        DTensor.from_local(norm_of(parts).double() ** 2, mesh, summed).full_tensor()
        for (mesh, summed), parts in alike.items()
    ]
    return torch.stack(squares).sum().sqrt()


class _Held:
    """A module's weights, set aside while the module is sharded: FSDP wants whole ones, which are nowhere."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._weights: dict[int, torch.Tensor] = {}
        self._slots: list[tuple[torch.nn.Module, str, int]] = []
        shells: dict[int, torch.nn.Parameter] = {}
        slots = list(_slots(module))
        for owner, name, parameter in slots:
            key = id(parameter)
            if key not in shells:
                self._weights[key] = parameter.data
                meta = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                shells[key] = torch.nn.Parameter(meta, requires_grad=parameter.requires_grad)
            owner.register_parameter(name, shells[key])
            self._slots.append((owner, name, key))

    def fill(self, device: torch.device) -> None:
        """Puts this rank's parts into the sharded module, one after the other, and lets go of each."""
        filled: dict[int, torch.nn.Parameter] = {}
        for owner, name, key in self._slots:
            if key not in filled:
                shell = owner.get_parameter(name)
                assert isinstance(shell, DTensor)
                weight = self._weights.pop(key)
                local = weight.to_local() if isinstance(weight, DTensor) else part(weight, shell.device_mesh)
                filled[key] = torch.nn.Parameter(
                    _dealt(shell, local, device), requires_grad=shell.requires_grad
                )
            owner.register_parameter(name, filled[key])


def _slots(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Parameter]]:
    """Every place in which a parameter is registered; one that is shared has several."""
    for owner in module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                yield owner, name, parameter


def _like(parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """A value of the optimizer's state as this rank keeps it: what is of the parameter's shape in parts."""
    assert isinstance(parameter, DTensor)
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    local = value.to_local() if isinstance(value, DTensor) else part(value, parameter.device_mesh)
    return _filled(parameter, local, parameter.device)


def _dealt(like: DTensor, local: torch.Tensor, device: torch.device) -> DTensor:
    """A tensor on this device that is dealt as `like`; of it this rank has `local`, a copy where it must."""
    mesh = like.device_mesh
    if local.device != device or mesh.device_type != device.type:
        return _filled(like, local, device)
    return DTensor.from_local(
        local, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@torch.no_grad()
def _filled(like: DTensor, local: torch.Tensor, device: torch.device) -> DTensor:
    """A tensor on this device that is dealt as `like`, of which this rank has a copy of `local`."""
    new = torch.empty_like(like, device=device, dtype=local.dtype)
    assert isinstance(new, DTensor)
    new.to_local().copy_(local)
    return new
