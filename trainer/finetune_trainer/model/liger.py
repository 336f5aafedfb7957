"""Liger's kernels in place of what a model computes itself, on GPUs."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import cast

from transformers import PreTrainedModel

from finetune_api.consistency import LIGER_LOSSES
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.model.files import one_line

NO_KERNELS = "spec.liger_kernel has no effect: Liger's kernels are for GPUs; PyTorch's own are used"

_ACTIVATIONS = {"swiglu": ("silu", "swish"), "geglu": ("gelu_pytorch_tanh",)}
"""What the kernel computes between the projections, whatever the model's configuration says."""


def put_kernels(model: PreTrainedModel, spec: FineTuneJobSpec, *, on_gpu: bool) -> list[str]:
    """Has Liger's kernels compute the parts of this model that the spec names, or Liger by default.

    Other models of its kind stay as they are, and so does the forward pass of the model itself. It may be on
    the meta device, and adapters come after: what PEFT wraps or copies keeps its kernel. Returns remarks.
    Raises FineTuneError (InvalidSpec) where the package is missing, where it has no such switch for the
    architecture, and where it cannot do what is asked.
    """
    if spec.liger_switches is None:
        return []
    if not on_gpu:
        return [NO_KERNELS]
    kind = model.config.model_type
    function = _functions().get(kind)
    if function is None:
        return [f"spec.liger_kernel has no effect: Liger has no kernels for {kind}; PyTorch's own are used"]
    switches, remarks = _switches(function, model, spec.liger_switches)
    before = {name: dict(vars(sys.modules[name])) for name in _sources(model)}
    forwards = _forwards(model)
    try:
        function(model=model, **switches)
    except Exception as error:  # whatever Liger has to say against a model
        what = f"Liger's kernels for {kind} cannot be used: {one_line(error)}"
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.liger_kernel: {what}") from error
    finally:
        functions = {name: _restore(name, attributes) for name, attributes in before.items()}
    _call_instead(model, functions)
    if _forwards(model) == forwards:
        remarks.append(f"spec.liger_kernel has no effect: none of the kernels asked for is for a {kind}")
    return remarks


def _functions() -> Mapping[str, Callable[..., None]]:
    """Liger's function for each architecture, by transformers' name of it."""
    if find_spec("liger_kernel") is None:
        raise FineTuneError(
            FailureClass.INVALID_SPEC,
            "spec.liger_kernel: liger-kernel is not installed; pip install 'finetune-operator[liger]', or"
            " leave spec.liger_kernel out",
        )
    try:
        patches = import_module("liger_kernel.transformers.monkey_patch")
    except ImportError as error:
        what = f"liger-kernel cannot be imported: {one_line(error)}"
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.liger_kernel: {what}") from error
    # It remarks at its first step which makers' own kernels are not there.
    logging.getLogger("liger_kernel.backends.registry").setLevel(logging.ERROR)
    return cast("Mapping[str, Callable[..., None]]", patches.MODEL_TYPE_TO_APPLY_LIGER_FN)


def _switches(
    function: Callable[..., None], model: PreTrainedModel, asked: Mapping[str, bool]
) -> tuple[dict[str, bool], list[str]]:
    """The arguments of Liger's function, and remarks about those that are not as they were asked for.

    Raises FineTuneError with a problem for each that it does not have.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "model" and parameter.kind is not parameter.VAR_KEYWORD
    }
    kind, known = model.config.model_type, sorted(parameters.keys() - LIGER_LOSSES)
    unknown = sorted(asked.keys() - known - set(LIGER_LOSSES))
    if unknown:
        what = f"Liger has no such switch for {kind}; it has {', '.join(known) or 'none'}"
        raise FineTuneError(
            FailureClass.INVALID_SPEC, *(f"spec.liger_kernel.kwargs.{name}: {what}" for name in unknown)
        )
    switches = {name: False for name in LIGER_LOSSES if name in parameters}
    switches |= {name: value for name, value in asked.items() if name in known}
    remarks = []
    text = model.config.get_text_config()
    activation = getattr(text, "hidden_activation", None) or getattr(text, "hidden_act", None)
    for name, computed in _ACTIVATIONS.items():
        if name in known and switches.get(name, parameters[name].default) and activation not in computed:
            switches[name] = False
            remarks.append(
                f"spec.liger_kernel.kwargs.{name} has no effect: the model's activation is {activation}, and"
                f" Liger's kernel computes {computed[0]}"
            )
    return switches, remarks


def _sources(model: PreTrainedModel) -> set[str]:
    """The modules of transformers that define the model's modules."""
    bases = {base.__module__ for module in model.modules() for base in type(module).__mro__}
    return {name for name in bases if name.startswith("transformers.models.")}


def _forwards(model: PreTrainedModel) -> dict[str, object]:
    """The forward methods that modules of the model have of their own, by the module's name."""
    own = {name: vars(module).get("forward") for name, module in model.named_modules()}
    return {name: forward for name, forward in own.items() if forward is not None}


def _restore(module: str, before: Mapping[str, object]) -> dict[str, FunctionType]:
    """Takes back what was assigned to names of a module of Python; returns the functions among that."""
    now = vars(sys.modules[module])
    assigned = {name: value for name, value in now.items() if before.get(name) is not value}
    for name in assigned:
        if name in before:
            now[name] = before[name]
        else:
            del now[name]
    return {name: value for name, value in assigned.items() if isinstance(value, FunctionType)}


def _call_instead(model: PreTrainedModel, functions: Mapping[str, Mapping[str, FunctionType]]) -> None:
    """Has the forward methods of this model's modules call these functions by the names of others.

    `functions` are those of each module of Python. Liger replaces the function that rotates queries and keys
    where all models of the kind find it.
    """
    for module in model.modules():
        forward = type(module).forward
        if not isinstance(forward, FunctionType) or "forward" in vars(module):
            continue
        instead = functions.get(forward.__module__, {})
        if not instead.keys().isdisjoint(forward.__code__.co_names):
            called = FunctionType(
                forward.__code__,
                {**forward.__globals__, **instead},
                forward.__name__,
                forward.__defaults__,
                forward.__closure__,
            )
            called.__kwdefaults__ = forward.__kwdefaults__
            module.__dict__["forward"] = MethodType(called, module)
