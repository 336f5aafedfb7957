"""How large the parts of a model are: its layers, its embeddings, the rest. Known without weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import peft
import torch
from transformers import PreTrainedModel

from finetune_trainer.model.quantization import quantized_layers
from finetune_trainer.tasks.objective import base_of


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; one that is used in several places counts once."""

    frozen: int = 0
    trained: int = 0
    quantizable: int = 0
    """Those of `frozen` that NF4 can hold in 4 bits: of linear layers but the output."""
    matrices: int = 0
    """Those of `trained` that are multiplied with, of which autocast makes copies in bf16."""

    def __add__(self, other: Parameters) -> Parameters:
        return Parameters(
            self.frozen + other.frozen,
            self.trained + other.trained,
            self.quantizable + other.quantizable,
            self.matrices + other.matrices,
        )


@dataclass(frozen=True)
class Sizes:
    """The parts of a model. FSDP gathers each layer by itself, the embedding too, and the rest together."""

    layers: int = 0
    layer: Parameters = Parameters()
    """The largest layer."""
    all_layers: Parameters = Parameters()
    embedding: Parameters = Parameters()
    """Of the input; none where the output shares it."""
    rest: Parameters = Parameters()
    largest: int = 0
    """Elements of the largest weight that is trained."""
    largest_frozen: int = 0
    """Elements of the largest frozen weight of a layer."""

    @property
    def whole(self) -> Parameters:
        """The whole model."""
        return self.all_layers + self.embedding + self.rest


NO_SIZES = Sizes()
"""Of no model."""


def sizes_of(model: PreTrainedModel | peft.PeftModel) -> Sizes:
    """The sizes of a model, which may be on the meta device."""
    base = base_of(model)
    embeddings = base.get_input_embeddings()
    gathered = layers_of(model)
    linear = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and isinstance(module.weight, torch.nn.Parameter)
    }
    quantizable = {id(layer.weight) for layer in quantized_layers(base).values()}
    in_layers = {id(each) for module in gathered if module is not embeddings for each in module.parameters()}

    def count(parameters: Iterable[torch.nn.Parameter]) -> Parameters:
        total = Parameters()
        for parameter in parameters:
            size = parameter.numel()
            key = id(parameter)
            matrix = key in linear or (parameter.ndim == 3 and key in in_layers)
            total += Parameters(
                frozen=0 if parameter.requires_grad else size,
                trained=size if parameter.requires_grad else 0,
                quantizable=size if key in quantizable and not parameter.requires_grad else 0,
                matrices=size if parameter.requires_grad and matrix else 0,
            )
        return total

    layers = [module for module in gathered if module is not embeddings]
    parts = [count(module.parameters()) for module in layers]
    embedding = count(embeddings.parameters()) if embeddings in gathered else Parameters()
    inside = {id(each) for module in gathered for each in module.parameters()}
    rest = count(each for each in model.parameters() if id(each) not in inside)
    everything = Parameters()
    for part in parts:
        everything += part
    return Sizes(
        layers=len(layers),
        layer=max(parts, key=lambda part: part.frozen + part.trained, default=Parameters()),
        all_layers=everything,
        embedding=embedding,
        rest=rest,
        largest=max((each.numel() for each in model.parameters() if each.requires_grad), default=0),
        largest_frozen=max(
            (each.numel() for module in layers for each in module.parameters() if not each.requires_grad),
            default=0,
        ),
    )


def layers_of(model: PreTrainedModel | peft.PeftModel) -> list[torch.nn.Module]:
    """The modules that FSDP gathers by themselves: the layers and the embedding, outer ones only.

    One that shares a parameter with the rest of the model is none of them.
    """
    base = base_of(model)
    classes = set(base._no_split_modules or ())
    listed = {id(child) for each in base.modules() if isinstance(each, torch.nn.ModuleList) for child in each}
    embeddings = base.get_input_embeddings()
    found: list[torch.nn.Module] = []
    inside: set[int] = set()
    for module in base.modules():
        layer = type(module).__name__ in classes if classes else id(module) in listed
        if (layer or module is embeddings) and id(module) not in inside:
            found.append(module)
            inside.update(id(each) for each in module.modules())
    places = Counter(_slots(model))

    def apart(module: torch.nn.Module) -> bool:
        own = Counter(_slots(module))
        return bool(own) and all(places[key] == count for key, count in own.items())

    return [module for module in found if apart(module)]


def _slots(module: torch.nn.Module) -> Iterator[int]:
    """Every place in which a parameter is registered, by its identity."""
    for owner in module.modules():
        for parameter in owner._parameters.values():
            if parameter is not None:
                yield id(parameter)
