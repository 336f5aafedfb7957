"""What a layer of a model takes of memory for each token that it is trained on.

It is counted on a model of one and of two layers of the real widths, whose tensors have shapes and no data.
So it takes a second and no memory, whatever the model and the adapters.
"""

from __future__ import annotations

import copy
import logging
import weakref
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from finetune_api.numbers import ResolvedPrecision
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.model.adapters import with_adapters
from finetune_trainer.model.reach import freeze_unreached
from finetune_trainer.tasks.task import task_of

_FEW, _MANY = 2**17, 2**18
"""Tokens on which memory is counted: so many that what does not grow with them, as gradients, is never the
most."""
_ATTENTION = "finetune-shapes"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerMemory:
    """Bytes for each token of a micro-batch, unless a field says otherwise; in one precision."""

    kept: float
    """What a layer keeps for its backward pass."""
    entered: float
    """What it keeps where the rest is computed again."""
    working: float
    """What the backward pass of a layer takes at most, beside what the layers keep."""
    working_again: float
    """The same where it computes the layer again before."""
    evaluated: float
    """What a forward pass without a backward one takes at most."""
    ends: float
    """What is kept before the first layer and after the last one."""
    kept_whatever: float
    """Bytes that a layer keeps whatever the tokens, as copies of weights in bf16."""
    working_whatever: float
    """Bytes that the backward pass takes whatever the tokens, where only adapters have gradients: of experts,
    their adapters are multiplied out."""
    expanded: float
    """What a layer keeps besides where PyTorch's attention wants a key and a value for each head: under the
    mask of padded rows, and in fp32 on a GPU."""


def layer_memory(
    spec: FineTuneJobSpec, config: PreTrainedConfig, dtype: ResolvedPrecision, *, on_gpu: bool
) -> LayerMemory:
    """Counts what a layer takes; where a model cannot be computed without data, by a rule."""
    try:
        return _counted(spec, config, dtype, on_gpu=on_gpu)
    except Exception as error:  # noqa: BLE001 - whatever an architecture does with data
        _log.info("the memory of a layer is estimated, not counted", exc_info=error)
        return layer_by_rule(config.get_text_config().hidden_size, dtype)


def layer_by_rule(hidden_size: int, dtype: ResolvedPrecision) -> LayerMemory:
    """What a layer of GPT takes.

    Korthikanti et al. 2022, "Reducing Activation Recomputation", section 4.1: 34 bytes for each token and
    hidden unit in 16 bits, without the attention matrix, which PyTorch's attention does not keep.
    """
    unit = hidden_size * (1 if dtype == "bf16" else 2)
    return LayerMemory(34 * unit, 2 * unit, 34 * unit, 68 * unit, 34 * unit, 4 * unit, 0, 0, 0)


NO_LAYER = LayerMemory(0, 0, 0, 0, 0, 0, 0, 0, 0)
"""Of a step without tokens."""


def _counted(
    spec: FineTuneJobSpec, config: PreTrainedConfig, dtype: ResolvedPrecision, *, on_gpu: bool
) -> LayerMemory:
    runs = [
        _Run(spec, config, dtype, layers, recomputes=recomputes, on_gpu=on_gpu)
        for recomputes in (False, True)
        for layers in (1, 2)
    ]
    one, two, one_again, two_again = map(_measured, runs)
    kept, entered = two.after - one.after, two_again.after - one_again.after
    return LayerMemory(
        kept=kept,
        entered=entered,
        working=two.most - two.after,
        working_again=two_again.most - two_again.after,
        evaluated=_for_each_token(runs[0].evaluate(_FEW), runs[0].evaluate(_MANY)),
        ends=one.after - kept,
        kept_whatever=max(0.0, two.fixed_after - one.fixed_after),
        working_whatever=0.0 if spec.lora_config is None else max(0.0, two_again.fixed_most),
        expanded=_expanded(config) * (2 if dtype == "bf16" else 4),
    )


def _expanded(config: PreTrainedConfig) -> int:
    """The values of a token by which keys and values grow where each head gets its own."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)
    shared = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or text.hidden_size // max(heads, 1)
    return int(2 * (heads - shared) * size)


@dataclass(frozen=True)
class _Measured:
    """Bytes for each token, and those that are fixed."""

    after: float
    most: float
    fixed_after: float
    fixed_most: float


def _measured(run: _Run) -> _Measured:
    few, many = (run.train(tokens) for tokens in (_FEW, _MANY))
    after, most = map(_for_each_token, few, many)
    return _Measured(after, most, few[0] - after * _FEW, few[1] - most * _FEW)


def _for_each_token(few: int, many: int) -> float:
    """By what two numbers of tokens take."""
    return (many - few) / (_MANY - _FEW)


class _Run:
    """A decoder of a few layers."""

    def __init__(
        self,
        spec: FineTuneJobSpec,
        config: PreTrainedConfig,
        dtype: ResolvedPrecision,
        layers: int,
        *,
        recomputes: bool,
        on_gpu: bool,
    ) -> None:
        self._bf16 = dtype == "bf16"
        held = torch.bfloat16 if self._bf16 and spec.lora_config is not None else torch.float32
        small = copy.deepcopy(config)
        text = small.get_text_config()
        text.num_hidden_layers = layers
        if "layer_types" in vars(text) and text.layer_types:
            text.layer_types = text.layer_types[:layers]
        AttentionInterface.register(_ATTENTION, _attention)
        with torch.device("meta"):
            model: PreTrainedModel = task_of(spec).model_class.from_config(  # type: ignore[no-untyped-call]
                small, dtype=held, attn_implementation=_ATTENTION, trust_remote_code=False
            )
        freeze_unreached(model)
        if spec.lora_config is not None:
            with_adapters(model, spec.lora_config, on_meta=True)
        if recomputes:
            model.activation_checkpointing_enable()
        if on_gpu:
            _drop_out_as_on_a_gpu(model)
        self._mode = FakeTensorMode()
        with self._mode:
            _without_data(model)
            self._decoder = cast("torch.nn.Module", model.get_decoder()).train()  # type: ignore[no-untyped-call]

    def train(self, tokens: int) -> tuple[int, int]:
        """What is allocated after the forward pass, and the most that is from then to the end."""
        with self._mode, _Allocated() as allocated:
            hidden = self._forward(tokens)
            after, allocated.most = allocated.now, 0
            hidden.backward(torch.empty_like(hidden))  # type: ignore[no-untyped-call]
            most = allocated.most
        for parameter in self._decoder.parameters():
            parameter.grad = None
        return after, most

    def evaluate(self, tokens: int) -> int:
        """The most that is allocated in a forward pass without a backward one."""
        with self._mode, torch.no_grad(), _Allocated() as allocated:
            self._forward(tokens)
        return int(allocated.most)

    def _forward(self, tokens: int) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16):
            ids = torch.zeros(1, tokens, dtype=torch.long)
            hidden: torch.Tensor = self._decoder(input_ids=ids, use_cache=False).last_hidden_state
        return hidden


def _drop_out_as_on_a_gpu(model: torch.nn.Module) -> None:
    """There PyTorch keeps a byte for each value that may be dropped, and on CPUs a value."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Dropout) and child.p > 0:
                setattr(module, name, _Dropout())


class _Dropout(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", _Dropped.apply(values)) if self.training else values


class _Dropped(torch.autograd.Function):
    """Keeps what dropout keeps on a GPU, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - as in torch
        ctx.save_for_backward(torch.empty_like(values, dtype=torch.bool))
        return torch.empty_like(values)

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - as in torch
        return torch.empty_like(gradient)


def _without_data(model: torch.nn.Module) -> None:
    """Puts tensors without data, but of the CPU, in the place of those on the meta device."""
    new: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in new:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    new[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = new[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


class _Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made while it is on, and of those the ones that are gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.most = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - as in torch
        types: Any,  # noqa: ANN401 - as in torch
        args: Any = (),  # noqa: ANN401 - as in torch
        kwargs: Any = None,  # noqa: ANN401 - as in torch
    ) -> Any:  # noqa: ANN401 - as in torch
        old = {
            each.untyped_storage()._cdata
            for each in tree_leaves((args, kwargs))
            if isinstance(each, torch.Tensor)
        }
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                if storage._cdata not in old and storage not in self._known:
                    self._known.add(storage)
                    self._add(storage.nbytes())
                    weakref.finalize(storage, self._add, -storage.nbytes())
        return made

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


class _Attention(torch.autograd.Function):
    """Keeps what flash attention keeps, and computes nothing."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - as in torch
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        rows, heads, length, _ = query.shape
        out = query.new_empty(rows, length, heads, value.shape[-1])
        sums = torch.empty(rows, heads, length, dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> Any:  # noqa: ANN401
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    **_arguments: object,
) -> tuple[torch.Tensor, None]:
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (each.to(torch.bfloat16) for each in (query, key, value))
    return cast("torch.Tensor", _Attention.apply(query, key, value)), None
