"""Rows for new tokens in a model's embeddings.

A new token begins as the mean of the tokens that it was written with before, in the input's embeddings as
in the output's. Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from finetune_trainer.data.label_tokens import NewToken
from finetune_trainer.model.parts import dealt


@torch.no_grad()
def grow(model: PreTrainedModel, size: int, new: Sequence[NewToken], mesh: DeviceMesh | None) -> None:
    """Gives a model's embeddings rows for at least `size` tokens, and the new tokens their first values.

    Other rows that are added, for tokens that the tokenizer had and the model had not, begin as the mean of
    all. With `mesh`, where ranks hold parts of the weights, all must call this; each holds the embeddings
    whole for a moment.
    """
    known = len(_embeddings(model)[0].weight)
    if mesh is not None:
        _change(model, lambda weight: weight.full_tensor() if isinstance(weight, DTensor) else weight)
    if size > known:
        model.resize_token_embeddings(size, mean_resizing=False)
    begun: set[int] = set()
    for _, _, rows in _rows(model):
        if id(rows) not in begun:
            begun.add(id(rows))
            if size > known:
                rows[known:] = rows[:known].mean(dim=0, dtype=torch.float64).to(rows.dtype)
            for each in new:
                rows[each.token] = rows[list(each.written)].mean(dim=0, dtype=torch.float64).to(rows.dtype)
    if mesh is not None:
        _change(model, lambda weight: dealt(weight, mesh))


def _change(model: PreTrainedModel, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replaces the embeddings' parameters; what modules share they share afterwards."""
    changed: dict[int, torch.nn.Parameter] = {}
    for module, name, rows in list(_rows(model)):
        if id(rows) not in changed:
            changed[id(rows)] = torch.nn.Parameter(change(rows.detach()), rows.requires_grad)
        module.register_parameter(name, changed[id(rows)])


def _rows(model: PreTrainedModel) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Parameter]]:
    """Every parameter with a row for each token: of the module of the input and of that of the output."""
    for module in _embeddings(model):
        for name, parameter in module.named_parameters(recurse=False):
            yield module, name, parameter


def _embeddings(model: PreTrainedModel) -> list[torch.nn.Embedding | torch.nn.Linear]:
    found = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    return cast("list[torch.nn.Embedding | torch.nn.Linear]", found)


def embedding_names(model: PreTrainedModel) -> list[str]:
    """The names of these modules in the model: the input's and, unless it is tied to that, the output's."""
    modules = _embeddings(model)
    untied = [*modules[:1], *(each for each in modules[1:] if each.weight is not modules[0].weight)]
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(module)] for module in untied]
