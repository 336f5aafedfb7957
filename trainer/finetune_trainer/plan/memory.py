"""Estimates the memory that training takes, on each device and on its host.

What decides is `memory`, a pure function of sizes. A step takes the most at one of few moments, which are
looked at one by one: when the loss is computed, at the start and at the end of the backward pass, when the
weights change, and in validation. The allocator's overhead and what a process and its libraries take come on
top.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune_api.numbers import ResolvedPrecision, chosen_context_length, default_batch_size
from finetune_api.sharding import COPIES, Sharding
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import StatusModel
from finetune_trainer.data.batches import row_order, to_and_fro
from finetune_trainer.data.pairs import PairRows
from finetune_trainer.model.load import Shape, load_config
from finetune_trainer.model.quantization import quantized_bytes
from finetune_trainer.model.sizes import Parameters, Sizes
from finetune_trainer.plan.layer_memory import LayerMemory, layer_memory
from finetune_trainer.plan.prepare import Prepared
from finetune_trainer.tasks.head import positions_at_once

_BYTES = {"bf16": 2, "fp32": 4}
_TRAINED = 4
"""Bytes of a trained weight, and of its gradient: they are held in fp32, see `load_model`."""
_MOMENTS = 8
"""Bytes of AdamW's two moments of a weight."""
_LOSS = 12
"""Bytes of each score over the vocabulary when the loss's gradient is computed: the log-probabilities, their
gradient and that of the scores, in fp32."""
_PROCESS = 3 * 2**30
"""What a worker's process takes of its host: Python, torch, transformers, the driver of its device."""

Moment = Literal["loss", "backward", "gradients", "validation"]


class MemoryEstimate(StatusModel):
    """The memory of one device at the moment of a step that takes the most, and that of its host; bytes."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's two moments."""
    copies: int
    """Weights gathered from other devices, copies of weights in bf16, and buffers to exchange gradients."""
    activations: int
    """The values that the layers keep for the backward pass, and those of the layer that is computed."""
    logits: int
    """The scores over the vocabulary, and their gradients."""
    total: int
    moment: Moment
    """`loss`: the loss is computed; `backward`: the backward pass begins; `gradients`: it ends. The
    optimizer, which makes no temporary values, takes no more than that."""
    host: int
    """Of the host's memory for this device's process, weights and optimizer that are kept there included."""


@dataclass(frozen=True)
class Step:
    """What a step of a job is, as far as memory depends on it."""

    sizes: Sizes
    layer: LayerMemory
    vocabulary: int
    hidden_size: int
    dtype: ResolvedPrecision
    sharding: Sharding
    devices: int
    """That share the work."""
    sharers: int
    """Devices that share one model with fsdp: all, or those of a node."""
    rows: int
    """Of a micro-batch."""
    length: int
    """Tokens of the longest row."""
    counted: int
    """Tokens of a micro-batch that count in the loss, at most."""
    accumulates: bool
    """Whether a step has several micro-batches."""
    recomputes: bool
    """Whether activations are computed again in the backward pass."""
    evaluated_rows: int = 0
    """Of a micro-batch of validation; 0 without one."""
    evaluated_length: int = 0
    end_to_end: int = 0
    """Tokens of a micro-batch, at most, where rows are laid end to end; 0 where they are not."""
    evaluated_end_to_end: int = 0
    """The same of a micro-batch of validation."""
    padded: bool = False
    """Whether attention gets a mask, since rows of a micro-batch differ in length."""
    in_chunks: bool = False
    """Whether scores over the vocabulary are made for positions that count alone, some at a time."""
    on_gpu: bool = True
    """There attention in fp32 copies keys and values that several heads share."""
    quantized: bool = False
    """Whether the frozen weights of linear layers are held in 4 bits."""

    @property
    def tokens(self) -> int:
        """Of a micro-batch, padding included."""
        return self.end_to_end or self.rows * self.length

    @property
    def evaluated_tokens(self) -> int:
        """Of a micro-batch of validation, padding included."""
        return self.evaluated_end_to_end or self.evaluated_rows * self.evaluated_length


@dataclass(frozen=True)
class _Parts:
    """Bytes of a device at one moment."""

    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.copies + self.activations + self.logits


def memory(step: Step) -> MemoryEstimate:
    """The memory of a training step."""
    moments = _moments(step)
    moment = max(moments, key=lambda name: moments[name].total)
    parts = {name: round(value) for name, value in vars(moments[moment]).items()}
    return MemoryEstimate(**parts, total=sum(parts.values()), moment=moment, host=round(_host(step)))


def _moments(step: Step) -> dict[Moment, _Parts]:
    sizes, sharding, value = step.sizes, step.sharding, _BYTES[step.dtype]
    whole, shared = sizes.whole, sharding.kind == "fsdp"
    share = step.sharers if shared else 1
    on_device = 0.0 if sharding.cpu_offload else 1.0 / share
    tokens = step.tokens
    layers = sizes.layers

    # Of a gradient that is complete on each device between micro-batches, or exchanged at once.
    gradient = _TRAINED * whole.trained
    kept_whole = shared and step.accumulates and whole.trained <= 0.1 * (whole.trained + whole.frozen)
    gradients = gradient if kept_whole else gradient * on_device
    held = _Parts(
        weights=_held(whole, step) * on_device,
        gradients=gradients if step.accumulates else 0.0,
        optimizer=_MOMENTS * whole.trained * on_device,
        copies=0.0 if shared or step.devices == 1 else gradient,
        activations=0.0,
        logits=0.0,
    )

    bf16 = step.dtype == "bf16"
    head = 2 * sizes.rest.matrices if bf16 else 0
    # Where activations are kept, so are these copies.
    layer_in_bf16 = 2 * sizes.layer.matrices if bf16 and step.recomputes else 0
    all_in_bf16 = 2 * (whole.matrices - sizes.rest.matrices) if bf16 else 0
    kept_in_bf16 = 0.0 if step.recomputes else step.layer.kept_whatever * layers
    # Autocast keeps its copies to the end of the forward pass, but for shared models.
    cached = head + (kept_in_bf16 if shared else max(kept_in_bf16, all_in_bf16))
    unpacked = value * sizes.largest_frozen if step.quantized else 0

    rest, layer = _held(sizes.rest, step), _held(sizes.layer, step)
    gathered, computed, first_layer = 0.0, 0.0, 0.0
    if shared:
        gathered = rest if sharding.reshard else rest + _held(sizes.embedding + sizes.all_layers, step)
        # One layer computes while the next one comes.
        computed = 2 * layer if sharding.reshard else 0.0
        # While the first layer computes, the embedding comes, though none of it may be trained.
        first_layer = max(0.0, _held(sizes.embedding, step) - layer) if sharding.reshard else 0.0
    # Gradients before they are exchanged: of a layer, and of the rest, which comes last.
    of_layer = _TRAINED * sizes.layer.trained if shared else 0
    of_rest = _TRAINED * sizes.rest.trained if shared else 0

    of_mask = step.rows * step.length**2 if step.padded else 0
    expanded = step.layer.expanded if step.padded or (step.on_gpu and not bf16) else 0
    kept = step.layer.kept + expanded
    if step.recomputes:
        stack = tokens * step.layer.entered * layers + of_mask
        work = tokens * (step.layer.working_again + expanded)
        work += value * of_mask + step.layer.working_whatever
    else:
        stack = (tokens * kept + value * of_mask) * layers + of_mask
        work = tokens * step.layer.working
    stack += tokens * step.layer.ends

    scores = step.vocabulary
    of_head = _TRAINED * sizes.rest.matrices if step.in_chunks else 0
    forward, back = _of_scores(step, head)
    largest = sizes.largest * (2 if bf16 else 0)
    # An embedding's gradient comes as a whole, and is copied once more to be exchanged.
    embedded = 2 * _TRAINED * sizes.embedding.trained if shared else 0
    # The gradient of an embedding that the output shares is held until both are there.
    tied = _TRAINED * step.vocabulary * step.hidden_size if _is_tied(sizes) else 0
    own = 0 if shared else _TRAINED * (sizes.layer.trained + sizes.embedding.trained)
    whole_layer = layer_in_bf16 + unpacked + gathered + computed + of_layer + of_rest + largest
    first = 0 if step.accumulates or shared else _TRAINED * sizes.rest.trained

    moments: dict[Moment, _Parts] = {
        "loss": _plus(held, gradients=of_head, copies=cached + gathered, activations=stack, logits=forward),
        "backward": max(
            _plus(
                held,
                gradients=of_head,
                copies=head + kept_in_bf16 + gathered + computed / 2,
                activations=stack,
                logits=back,
            ),
            _plus(
                held,
                gradients=first,
                copies=kept_in_bf16
                + layer_in_bf16
                + unpacked
                + gathered
                + computed
                + of_layer
                + of_rest
                + largest,
                activations=stack + work,
            ),
            key=lambda parts: parts.total,
        ),
        "gradients": max(
            _plus(
                held,
                gradients=0.0 if step.accumulates else gradients - own,
                copies=whole_layer + first_layer,
                activations=work + tokens * (step.layer.entered if step.recomputes else kept),
            ),
            _plus(
                held,
                gradients=0.0 if step.accumulates else gradients,
                copies=gathered + of_rest + of_layer + embedded + tied,
                activations=tokens * step.layer.ends,
            ),
            key=lambda parts: parts.total,
        ),
    }
    if step.evaluated_rows:
        evaluated = step.evaluated_tokens
        at_once = min(evaluated, positions_at_once(scores)) if step.in_chunks else evaluated
        moments["validation"] = _plus(
            replace(held, gradients=0.0),
            copies=cached + gathered + computed,
            activations=evaluated * max(step.layer.evaluated, value * step.hidden_size),
            logits=scores * (value + 8) * at_once,
        )
    return moments


def _of_scores(step: Step, head: int) -> tuple[int, int]:
    """The scores when the loss is computed, and when the backward pass begins; `head` as in `_moments`."""
    scores, value = step.vocabulary, _BYTES[step.dtype]
    if not step.in_chunks:
        # The gradient of the weights that make the scores comes while that of the scores is there.
        back = max(scores * _LOSS * step.counted, scores * value * (step.tokens + step.counted) + head)
        return scores * (value * step.tokens + 8 * step.counted), back
    at_once = min(step.counted, positions_at_once(scores))
    # Hidden states of positions that count, and their gradient, in fp32 where the model is trained in full.
    hidden = (4 if step.sizes.whole.frozen == 0 else value) * step.hidden_size * step.counted
    # Of a chunk after the first one, the gradient of the head's weights is added to what is there.
    again = _TRAINED * step.sizes.rest.matrices if step.counted > at_once else 0
    of_weights = scores * value * at_once + head + again
    return 2 * hidden + max(scores * _LOSS * at_once, of_weights), hidden


def _plus(
    parts: _Parts,
    *,
    gradients: float = 0.0,
    copies: float = 0.0,
    activations: float = 0.0,
    logits: float = 0.0,
) -> _Parts:
    return replace(
        parts,
        gradients=parts.gradients + gradients,
        copies=parts.copies + copies,
        activations=parts.activations + activations,
        logits=parts.logits + logits,
    )


def _held(parameters: Parameters, step: Step) -> float:
    """Bytes of weights as they are held: trained ones in fp32, frozen ones in the precision of the job."""
    quantized = parameters.quantizable if step.quantized else 0
    frozen = (parameters.frozen - quantized) * _BYTES[step.dtype] + quantized_bytes(quantized)
    return frozen + parameters.trained * _TRAINED


def _is_tied(sizes: Sizes) -> bool:
    return sizes.embedding == Parameters() and sizes.rest.trained > 0


def _host(step: Step) -> float:
    """Of the host for one device: its process, the weights while they are loaded, and what is offloaded."""
    whole = step.sizes.whole
    share = step.sharers if step.sharding.kind == "fsdp" else 1
    weights = _held(whole, step) / share
    if step.sharding.cpu_offload:
        weights += (_TRAINED + _MOMENTS) * whole.trained / share
    return _PROCESS + weights


MOST_ROWS_LOOKED_AT = 2**22
"""Of all epochs. Where there are more, the longest rows are taken to come together."""


class RowLengths:
    """The tokens of the rows of a job, of which micro-batches are made."""

    def __init__(
        self,
        train: NDArray[np.int64],
        counted: NDArray[np.int64],
        validation: NDArray[np.int64] | None,
        *,
        seed: int,
        epochs: int,
    ) -> None:
        """The tokens of each row, how many of them count in the loss, and those of each validation row."""
        self._tokens = np.stack([train, counted])
        self._validation = None if validation is None else np.sort(validation)[::-1]
        self._seed, self._epochs = seed, epochs
        self._known: dict[tuple[int, int, int], tuple[int, int]] = {}

    def most(self, batch_size: int, num_devices: int, accumulation: int) -> tuple[int, int]:
        """The tokens of the largest micro-batch of training, and the most that count in one.

        A step has `accumulation` micro-batches on each device.
        """
        key = (batch_size, num_devices, accumulation)
        if key not in self._known:
            self._known[key] = self._most(*key)
        return self._known[key]

    def most_validated(self, batch_size: int, num_devices: int) -> int:
        """The tokens of the largest micro-batch of validation; see `evaluation_batches`."""
        if self._validation is None:
            return 0
        return int(self._validation[::num_devices][:batch_size].sum())

    def _most(self, batch_size: int, num_devices: int, accumulation: int) -> tuple[int, int]:
        rows = self._tokens.shape[1]
        if rows * self._epochs > MOST_ROWS_LOOKED_AT:
            most = np.sort(self._tokens, axis=1)[:, ::-1][:, :batch_size].sum(axis=1)
            return int(most[0]), int(most[1])
        at_once = batch_size * num_devices
        step = at_once * accumulation
        largest = np.zeros(2, dtype=np.int64)
        for epoch in range(self._epochs):
            order = self._tokens[:, row_order(self._seed, epoch, rows)]
            whole, last = np.split(order, [rows - rows % step], axis=1)
            for steps in (whole.reshape(2, -1, step), last[:, np.newaxis]):
                micro_batches = -(-steps.shape[2] // at_once) * num_devices
                if steps.size:
                    largest = np.maximum(largest, _largest(steps, micro_batches))
        return int(largest[0]), int(largest[1])


def _largest(steps: NDArray[np.int64], micro_batches: int) -> NDArray[np.int64]:
    """The most of each kind of tokens in a micro-batch, as `deal_evenly` makes them; shape (kinds,).

    `steps`, shape (kinds, steps, rows), are the tokens of the rows, of which the first kind decides.
    """
    longest_first = np.argsort(-steps[0], axis=1, kind="stable")
    ordered = np.take_along_axis(steps, longest_first[np.newaxis], axis=2)
    shares = np.eye(micro_batches)[to_and_fro(steps.shape[2], micro_batches)]
    sums: NDArray[np.float64] = ordered.astype(np.float64) @ shares
    largest: NDArray[np.int64] = sums.max(axis=(1, 2)).astype(np.int64)
    return largest


@dataclass(frozen=True)
class Lengths:
    """The rows of a job as far as memory depends on them, in tokens."""

    longest: int
    """Of a training row, padding included."""
    counted: int
    """That count in the loss, at most, of a row."""
    padded: bool
    """Whether rows of a micro-batch are padded."""
    longest_validated: int
    """Of a validation row; 0 without any."""
    end_to_end: RowLengths | None = None
    """All of them, where they were read and rows are laid end to end."""
    documents: int = 1
    """How many of that length a row has: two conversations where they are compared."""


def lengths_of(prepared: Prepared) -> Lengths:
    """The lengths of rows that were read."""
    train, validation, numbers = prepared.train, prepared.validation, prepared.numbers
    to_the_full = prepared.spec.padding == "max_length"
    end_to_end = prepared.shape.end_to_end and not to_the_full
    each = train.documents.lengths if isinstance(train, PairRows) else train.lengths
    documents = len(each) // len(train) if isinstance(train, PairRows) else 1
    of_validation = np.zeros(1, dtype=np.int64)
    if validation is not None:
        of_validation = (
            validation.documents.lengths if isinstance(validation, PairRows) else validation.lengths
        )
    longest = numbers.context_length if to_the_full else min(numbers.context_length, int(each.max()))
    together = numbers.train_batch_size_per_device * documents > 1 or to_the_full
    return Lengths(
        longest=longest,
        counted=int(train.predicted.max()),
        padded=together and int(each.min()) < longest and not end_to_end,
        longest_validated=int(of_validation.max()),
        end_to_end=RowLengths(
            train.lengths,
            train.predicted,
            None if validation is None else validation.lengths,
            seed=prepared.spec.seed,
            epochs=numbers.total_epochs,
        )
        if end_to_end
        else None,
        documents=documents,
    )


def step_of(
    spec: FineTuneJobSpec,
    shape: Shape,
    layer: LayerMemory,
    lengths: Lengths,
    *,
    dtype: ResolvedPrecision,
    sharding: Sharding,
    on_gpu: bool,
    devices_of_a_node: int | None = None,
) -> Step:
    """What a step of a job is.

    `devices_of_a_node` is needed for sharing within nodes; without it all devices are taken to be one's.
    """
    node = min(spec.num_devices, devices_of_a_node or spec.num_devices)
    context = chosen_context_length(spec, lengths.longest, shape.context_length)
    validated = spec.eval_batch_size_per_device or default_batch_size(context)
    rows = rows_of_micro_batch(spec, context)
    tokens, counted, evaluated = 0, rows * lengths.counted, 0
    if lengths.end_to_end is not None:
        tokens, counted = lengths.end_to_end.most(rows, spec.num_devices, spec.gradient_accumulation_steps)
        evaluated = lengths.end_to_end.most_validated(validated, spec.num_devices)
    return Step(
        sizes=shape.sizes,
        layer=layer,
        vocabulary=shape.vocabulary,
        hidden_size=shape.hidden_size,
        dtype=dtype,
        sharding=sharding,
        devices=spec.num_devices,
        sharers=node if sharding.within_nodes else spec.num_devices,
        rows=rows * lengths.documents,
        length=lengths.longest,
        counted=counted,
        accumulates=spec.gradient_accumulation_steps > 1,
        recomputes=spec.recomputes_activations is not False,
        evaluated_rows=validated * lengths.documents if lengths.longest_validated else 0,
        evaluated_length=lengths.longest_validated,
        end_to_end=tokens,
        evaluated_end_to_end=evaluated,
        padded=lengths.padded,
        in_chunks=shape.scores_in_chunks,
        on_gpu=on_gpu,
        quantized=spec.quantization is not None,
    )


def rows_of_micro_batch(spec: FineTuneJobSpec, context_length: int) -> int:
    """The rows that a device computes at once."""
    return spec.train_batch_size_per_device or default_batch_size(context_length)


def estimate(
    prepared: Prepared,
    dtype: ResolvedPrecision,
    sharding: Sharding = COPIES,
    *,
    on_gpu: bool | None = None,
) -> MemoryEstimate:
    """Estimates the memory of a training step of a job whose rows were read; on a GPU where it is in bf16."""
    on_gpu = dtype == "bf16" if on_gpu is None else on_gpu
    layer = layer_memory(prepared.spec, load_config(prepared.spec), dtype, on_gpu=on_gpu)
    return memory(
        step_of(
            prepared.spec,
            prepared.shape,
            layer,
            lengths_of(prepared),
            dtype=dtype,
            sharding=sharding,
            on_gpu=on_gpu,
        )
    )
