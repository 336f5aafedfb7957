"""The numbers of a run: sequence length, batches, steps, epochs, learning rate, checkpoints.

Computed here and nowhere else.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec, Scheduler
from finetune_api.status import MOST_EPOCHS

DEFAULT_MINIMUM_STEPS = 100
"""LLMForge: a run without `num_epochs` has at least so many optimizer steps."""
DEFAULT_WARMUP_STEPS = 10
"""LLMForge's default."""
DEFAULT_LORA_LEARNING_RATE = 1e-4
DEFAULT_FULL_LEARNING_RATE = 1e-5
"""LLMForge's advice: about 1e-4 for LoRA and 1e-5 for full-parameter training."""
SHORTEST_CONTEXT = 512
TOKENS_PER_MICRO_BATCH = 8192
"""Default batch size times context length; 512 tokens give 16 rows, LLMForge's advice for 7B on an A10."""
LARGEST_DEFAULT_BATCH = 16


class Numbers(BaseModel):
    """The numbers of a run, computed from the spec, the data and the model.

    A row is a conversation (with `packing`, a sequence of several), a micro-batch what one device computes at
    once, a step an optimizer update.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    context_length: int
    """Tokens."""
    num_devices: int
    train_batch_size_per_device: int
    eval_batch_size_per_device: int
    gradient_accumulation_steps: int
    effective_batch_size: int
    """Rows of a step: train_batch_size_per_device x num_devices x gradient_accumulation_steps."""
    micro_batches_per_epoch: int
    """Of one device: ceil(ceil(rows / num_devices) / train_batch_size_per_device)."""
    steps_per_epoch: int
    """ceil(micro_batches_per_epoch / gradient_accumulation_steps); the last, partial one counts."""
    total_epochs: int
    """Epochs that the run has begun when it ends; with max_steps the last one may be partial."""
    total_steps: int
    learning_rate: float
    """The peak."""
    lr_scheduler_type: Scheduler
    num_warmup_steps: int
    checkpoint_epochs: tuple[int, ...]
    """0-based indices of the epochs after which validation and checkpoint come; after the last, partial or
    not, they always do."""
    eval_steps: int | None = None
    """Validation comes after every so many steps too."""
    warnings: tuple[str, ...] = ()

    def checkpoint_after(self, step: int) -> str | None:
        """The name of the checkpoint to save after so many steps; None when none is due."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        if step == self.total_steps:
            return checkpoint_name(self.total_epochs - 1)
        return checkpoint_name(epochs - 1) if rest == 0 and epochs - 1 in self.checkpoint_epochs else None

    def validates_after(self, step: int) -> bool:
        """Whether validation comes after so many steps, where there are rows for it."""
        every = self.eval_steps is not None and step % self.eval_steps == 0
        return every or self.checkpoint_after(step) is not None

    def learning_rate_at(self, update: int) -> float:
        """The learning rate of update `update` (0-based).

        Equals transformers' `get_scheduler` after `update` steps (`constant_with_warmup` for `constant`):
        linear from 0 over the warm-up, then half a cosine or a line to 0 at the end of the run, or constant.
        """
        return self.learning_rate * learning_rate_factor(
            self.lr_scheduler_type, update, self.num_warmup_steps, self.total_steps
        )


def learning_rate_factor(scheduler: Scheduler, update: int, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of a 0-based update as a part of the peak, as in `transformers.optimization`."""
    if update < warmup_steps:
        return update / max(1, warmup_steps)
    if scheduler == "constant":
        return 1.0
    if scheduler == "linear":
        return max(0.0, (total_steps - update) / max(1, total_steps - warmup_steps))
    progress = (update - warmup_steps) / max(1, total_steps - warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))


def numbers(
    spec: FineTuneJobSpec, *, rows: int, longest_row: int, model_context_length: int | None
) -> Numbers:
    """The numbers of a run on `rows` training rows.

    `longest_row` is the token count of the longest training or validation row, `model_context_length` the
    most tokens the model takes (None when it does not say). Raises FineTuneError (InvalidSpec) where the spec
    asks for more than there is.
    """
    problems: list[str] = []
    warnings: list[str] = []
    if spec.context_length and model_context_length and spec.context_length > model_context_length:
        problems.append(
            f"spec.context_length: {spec.context_length} is more than the model takes; at most"
            f" {model_context_length} is possible"
        )

    context_length = chosen_context_length(spec, longest_row, model_context_length)
    batch = spec.train_batch_size_per_device or default_batch_size(context_length)
    micro_batches = math.ceil(math.ceil(rows / spec.num_devices) / batch)
    steps_per_epoch = math.ceil(micro_batches / spec.gradient_accumulation_steps)
    asked_steps = spec.max_steps or spec.minimum_steps or DEFAULT_MINIMUM_STEPS
    # As in transformers, max_steps goes before epochs.
    by_epochs = spec.num_epochs if spec.max_steps is None else None
    epochs = by_epochs or math.ceil(asked_steps / steps_per_epoch)
    if epochs > MOST_EPOCHS:
        field = "min_update_steps" if spec.max_steps is None else "max_steps"
        problems.append(
            f"spec.{field}: {asked_steps} steps are {epochs} epochs of {steps_per_epoch}; "
            f"at most {MOST_EPOCHS} epochs are possible"
        )
    total_steps = spec.max_steps or steps_per_epoch * epochs
    if spec.num_devices > rows:
        warnings.append(
            f"spec.num_devices is {spec.num_devices}, and there are {rows} rows: some devices have nothing"
            " to do"
        )

    warmup = DEFAULT_WARMUP_STEPS if spec.num_warmup_steps is None else spec.num_warmup_steps
    if warmup >= total_steps:
        shortfall = f"{warmup} warm-up steps leave none of the run's {total_steps} for the full learning rate"
        if spec.num_warmup_steps is None:
            warnings.append(
                f"spec.num_warmup_steps is left out, and its default of {shortfall};"
                " set it lower, or train longer"
            )
        else:
            problems.append(f"spec.num_warmup_steps: {shortfall}; at most {total_steps - 1} are possible")
    if problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)

    default_rate = DEFAULT_FULL_LEARNING_RATE if spec.lora_config is None else DEFAULT_LORA_LEARNING_RATE
    return Numbers(
        rows=rows,
        context_length=context_length,
        num_devices=spec.num_devices,
        train_batch_size_per_device=batch,
        eval_batch_size_per_device=spec.eval_batch_size_per_device or default_batch_size(context_length),
        gradient_accumulation_steps=spec.gradient_accumulation_steps,
        effective_batch_size=batch * spec.num_devices * spec.gradient_accumulation_steps,
        micro_batches_per_epoch=micro_batches,
        steps_per_epoch=steps_per_epoch,
        total_epochs=epochs,
        total_steps=total_steps,
        learning_rate=spec.learning_rate or default_rate,
        lr_scheduler_type=spec.lr_scheduler_type,
        num_warmup_steps=warmup,
        checkpoint_epochs=checkpoint_epochs(epochs, spec.checkpoint_interval, spec.max_num_checkpoints),
        eval_steps=spec.eval_steps,
        warnings=tuple(warnings),
    )


def chosen_context_length(spec: FineTuneJobSpec, longest_row: int, model_context_length: int | None) -> int:
    """The tokens of the longest sequence that is trained on: what the spec says, or the default."""
    return spec.context_length or default_context_length(longest_row, model_context_length)


def default_context_length(longest_row: int, model_context_length: int | None) -> int:
    """The smallest power of two that holds the longest row, from 512 to what the model takes. Tokens."""
    needed = max(SHORTEST_CONTEXT, 1 << (longest_row - 1).bit_length())
    return needed if model_context_length is None else min(needed, model_context_length)


def default_batch_size(context_length: int) -> int:
    """8192 tokens' worth of rows, between 1 and 16."""
    return max(1, min(LARGEST_DEFAULT_BATCH, TOKENS_PER_MICRO_BATCH // context_length))


def checkpoint_epochs(total_epochs: int, every: int | None, at_most: int | None) -> tuple[int, ...]:
    """0-based indices of the epochs that end with validation and checkpoint: every n-th and the last.

    n is `every` (1 by default); `at_most` m raises it to ceil(epochs / m) where more than m would come.
    """
    interval = max(every or 1, math.ceil(total_epochs / at_most) if at_most else 1)
    return tuple(sorted({*range(interval - 1, total_epochs, interval), total_epochs - 1}))


def checkpoint_name(epoch_index: int) -> str:
    """LLMForge's name for the checkpoint after the epoch with this 0-based index, or in it: `epoch-4`."""
    return f"epoch-{epoch_index}"


ResolvedPrecision = Literal["bf16", "fp32"]


def resolved_dtype(spec: FineTuneJobSpec, *, on_gpu: bool) -> ResolvedPrecision:
    """The precision of the arithmetic: what the spec says, else bf16 on GPUs and fp32 on CPUs."""
    if spec.dtype == "auto":
        return "bf16" if on_gpu else "fp32"
    return spec.dtype
