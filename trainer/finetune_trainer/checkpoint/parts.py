"""Writes and reads what ranks hold in parts, each rank its own, in files of safetensors.

By PyTorch's distributed checkpoint: a state that so many ranks wrote can be read by another number of them,
or by one that wants all of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh

from finetune_trainer.model.parts import empty

FILE_BYTES = 5 * 10**9
"""About how much of a rank's part one file holds: as much is copied to be written."""


def write_parts(directory: Path, tensors: Mapping[str, torch.Tensor], ranks: int) -> None:
    """Writes this rank's parts of the tensors into files of its own. All `ranks` must call this together."""
    with _own_errors():
        save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(
                str(directory), fqn_to_index_mapping=_files(tensors, ranks), save_distributed=True
            ),
        )


def read_parts(directory: Path, mesh: DeviceMesh | None) -> dict[str, torch.Tensor]:
    """Reads what `write_parts` wrote, by name; of each tensor that is no scalar this rank's part on the mesh.

    Without a mesh, all of it. Ranks need not call this together.
    """
    reader = HuggingFaceStorageReader(str(directory))
    found: dict[str, torch.Tensor] = {}
    for name, metadata in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(metadata, TensorStorageMetadata)
        dtype = metadata.properties.dtype
        if mesh is not None and metadata.size:
            found[name] = empty(metadata.size, dtype, mesh)
        else:
            found[name] = torch.empty(metadata.size, dtype=dtype)
    with _own_errors(), warnings.catch_warnings(action="ignore"):
        load(found, storage_reader=reader, no_dist=True)
    return found


def by_parameter(state: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """An optimizer's state of names such as `lm_head.weight.exp_avg`, as a table for each parameter."""
    tables: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        parameter, _, key = name.rpartition(".")
        tables.setdefault(parameter, {})[key] = value
    return tables


def _files(tensors: Mapping[str, torch.Tensor], ranks: int) -> dict[str, int]:
    """In which of a rank's files, counted from 1, each tensor is."""
    files, size, index = {}, 0, 1
    for name, tensor in tensors.items():
        size += tensor.numel() * tensor.itemsize // ranks
        if size > FILE_BYTES:
            size, index = 0, index + 1
        files[name] = index
    return files


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raises what went wrong on a rank itself, which PyTorch wraps in what is no Exception."""
    try:
        yield
    except CheckpointException as error:
        first, _ = next(iter(error.failures.values()))
        raise first from error
