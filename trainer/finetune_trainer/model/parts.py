"""Parts of a model's weights: how several devices hold one model, each a part of every weight.

A weight is cut along its first dimension (FSDP's way), and each rank holds one piece as a DTensor's local
tensor. The pieces can be read, held and saved without any rank ever holding a whole model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from peft.utils import ModulesToSaveWrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from finetune_api.sharding import Sharding

ON_GPUS = "cpu:gloo,cuda:nccl"
"""What ranks with GPUs communicate over: NCCL knows nothing of parts in the host's memory."""


def mesh_of(sharding: Sharding, device_type: str) -> DeviceMesh:
    """The ranks that share a model. All ranks must call this.

    Its last dimension is that over which parts are dealt. With `within_nodes`, where the nodes have equally
    many ranks, there is a first one, over which they are copied. Without a process group, as in a run on one
    device without Ray, one of this process alone is made.
    """
    if not dist.is_initialized():
        alone = dist.HashStore()  # type: ignore[attr-defined]
        backend = ON_GPUS if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
    ranks = dist.get_world_size()
    node = _ranks_of_a_node() if sharding.within_nodes else ranks
    if node == ranks:
        return init_device_mesh(device_type, (ranks,), mesh_dim_names=("parts",))
    return init_device_mesh(device_type, (ranks // node, node), mesh_dim_names=("copies", "parts"))


def _ranks_of_a_node() -> int:
    """The number of ranks on each node; that of all ranks where nodes differ in it, or nothing says it."""
    mine = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    everyone: list[int] = [mine] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return mine if set(everyone) == {mine} and dist.get_world_size() % mine == 0 else dist.get_world_size()


def dimension(shape: Sequence[int], pieces: int) -> int:
    """The dimension along which a weight of this shape is cut into so many pieces.

    It is the first, but the last for experts that are stacked where some rank would get none of them.
    """
    most = -(-shape[0] // pieces)
    none_left = most * (pieces - 1) >= shape[0]
    return 2 if len(shape) == 3 and none_left and shape[2] % pieces == 0 else 0


def placements(shape: Sequence[int], mesh: DeviceMesh) -> list[Placement]:
    """How a weight of this shape is dealt to the mesh: cut over its last dimension, copied over the first."""
    copies: list[Placement] = [Replicate()] * (mesh.ndim - 1)
    return [*copies, Shard(dimension(shape, mesh.size(-1)))]


def part(whole: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """A copy of this rank's part of a whole weight, which every rank has or can read."""
    cut = dimension(whole.shape, mesh.size(-1))
    length, start = _piece(whole.shape[cut], mesh)
    return whole.detach().narrow(cut, start, length).clone(memory_format=torch.contiguous_format)


def dealt(whole: torch.Tensor, mesh: DeviceMesh) -> DTensor:
    """A whole weight, which every rank has, of which each holds a copy of its part."""
    return _of_parts(part(whole, mesh), whole.shape, mesh)


def empty(
    shape: torch.Size, dtype: torch.dtype, mesh: DeviceMesh, device: torch.device | str = "cpu"
) -> DTensor:
    """A weight of this shape, of which this rank's part is allocated and not filled."""
    cut = dimension(shape, mesh.size(-1))
    length, _ = _piece(shape[cut], mesh)
    local = torch.empty([*shape[:cut], length, *shape[cut + 1 :]], dtype=dtype, device=device)
    return _of_parts(local, shape, mesh)


def _of_parts(local: torch.Tensor, shape: torch.Size, mesh: DeviceMesh) -> DTensor:
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, mesh, placements(shape, mesh), run_check=False, shape=shape, stride=stride
    )


def _piece(size: int, mesh: DeviceMesh) -> tuple[int, int]:
    """The length and the start of this rank's piece of a dimension of this size."""
    length, start = Shard.local_shard_size_and_offset(size, mesh.size(-1), mesh.get_local_rank(mesh.ndim - 1))
    return length, min(start, size)


def read_in_parts(
    model_class: type[AutoModelForCausalLM], config: PreTrainedConfig, mesh: DeviceMesh
) -> type[PreTrainedModel]:
    """The class of a model of this configuration, with a `from_pretrained` that reads only this rank's parts.

    transformers reads of each file only what a parameter that is a DTensor holds here, also where it merges
    experts or renames weights on the way. It asks for such parameters by a method that it calls between
    making a model on the meta device and reading, when it is given a `distributed_config`. What it returns is
    made an instance of the plain class by `plain`.
    """
    with torch.device("meta"):
        concrete: type[PreTrainedModel] = type(model_class.from_config(config, trust_remote_code=False))  # type: ignore[no-untyped-call]

    def distribute(
        cls: type[PreTrainedModel],  # noqa: ARG001 - a class method
        model: PreTrainedModel,
        distributed_config: DistributedConfig | None,  # noqa: ARG001 - as in transformers
        mesh_manager: object,  # noqa: ARG001 - as in transformers
    ) -> PreTrainedModel:
        _cut(model, mesh)
        return model

    # Conversions of weights are found by the name of the class.
    members = {"maybe_distribute_model": classmethod(distribute), "__module__": concrete.__module__}
    return type(concrete.__name__, (concrete,), members)


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """A model that the class of `read_in_parts` has loaded, as one of its plain class."""
    model.__class__ = type(model).__mro__[1]
    del model.config.distributed_config
    return model


@contextmanager
def whole_shapes(model: PreTrainedModel, copied: Sequence[str]) -> Iterator[None]:
    """Puts stand-ins of the whole shapes, without memory, in place of a model's parts for the `with` block.

    PEFT gives a layer whose weight is a DTensor adapters for its part alone, as tensor parallelism needs. Of
    modules of a name in `copied`, and of those in them, it makes copies, which then get parts too. Whether a
    parameter is trained is kept.
    """
    set_aside = []
    for name, module in model.named_modules():
        meta = any(f".{each}." in f".{name}." for each in copied)
        for key, parameter in module._parameters.items():
            if parameter is not None:
                set_aside.append((module, key, parameter))
                value = torch.zeros((), dtype=parameter.dtype, device="meta" if meta else "cpu")
                stand_in = torch.nn.Parameter(value.expand(parameter.shape), parameter.requires_grad)
                module.register_parameter(key, stand_in)
    yield
    for module, key, parameter in set_aside:
        parameter.requires_grad_(module.get_parameter(key).requires_grad)
        module.register_parameter(key, parameter)
    filled: dict[int, torch.nn.Parameter] = {}
    for wrapper in model.modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        for copy in wrapper.modules_to_save.values():
            for name, parameter in list(copy.named_parameters()):
                if id(parameter) not in filled:
                    original = wrapper.original_module.get_parameter(name).detach()
                    value = original.to(parameter.dtype, copy=True)
                    filled[id(parameter)] = torch.nn.Parameter(value, parameter.requires_grad)
                owner, _, key = name.rpartition(".")
                copy.get_submodule(owner).register_parameter(key, filled[id(parameter)])


def _cut(model: torch.nn.Module, mesh: DeviceMesh) -> None:
    """Makes DTensors of a model's parameters, which are on the meta device."""
    cut: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in cut:
                meta: Any = empty(parameter.shape, parameter.dtype, mesh, "meta")
                cut[id(parameter)] = torch.nn.Parameter(meta, requires_grad=parameter.requires_grad)
            module.register_parameter(name, cut[id(parameter)])
