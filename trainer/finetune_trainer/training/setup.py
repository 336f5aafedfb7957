"""Loads and sets up model, optimizer and position, for a new run or for one that is resumed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from finetune_api.spec import TorchCompile
from finetune_trainer.checkpoint.inference import Inference, inference
from finetune_trainer.checkpoint.state import (
    Position,
    SavedState,
    read_state,
    restore_state,
    restore_weights,
)
from finetune_trainer.data.layout import EndToEnd, Layout, Padded
from finetune_trainer.data.pairs import Reference
from finetune_trainer.model.attention import attend_within_rows
from finetune_trainer.model.files import reading
from finetune_trainer.model.load import load_model, load_tokenizer, pad_token_id, saved_dtype
from finetune_trainer.model.parts import mesh_of
from finetune_trainer.model.sizes import layers_of
from finetune_trainer.model.trial import findings
from finetune_trainer.parallel.parallel import Parallel
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.tasks.objective import Model, base_of
from finetune_trainer.tasks.task import task_of
from finetune_trainer.training.forward import Forward
from finetune_trainer.training.job import Start, TrainingJob
from finetune_trainer.training.optimizer import adamw


@dataclass
class Loaded:
    """The model, and the state of the checkpoint to resume from, if any; on the CPU."""

    model: Model
    dtype: torch.dtype
    """The precision of the weights in a full model's checkpoints."""
    inference: Inference
    attention: str
    """The implementation with which the model was loaded; that of training may be another."""
    saved: SavedState | None
    """None once it was restored: it may be twice as large as the model, and is of no more use."""


def load(start: Start, device: torch.device) -> Loaded:
    """Loads all that a worker needs besides the rows, on the CPU; `device` is the one that will train.

    Where devices share a model each worker gets its parts, and all must call this. Raises FineTuneError as
    `load_model` and `load_tokenizer` do, and where the checkpoint is damaged.
    """
    mesh = mesh_of(start.sharding, "cpu") if start.sharding.kind == "fsdp" else None
    run, name = RunDirectory.open(start.resume_in or start.run_directory), start.resume_from
    with (
        run.local_copy(name) if name is not None else nullcontext() as resumed,
        reading(resumed, "the checkpoint to resume from") if resumed is not None else nullcontext(),
    ):
        model = load_model(
            start.spec, dtype=start.dtype, on_gpu=device.type == "cuda", resumed=resumed, mesh=mesh
        )
        saved = read_state(resumed, mesh) if resumed is not None else None
        if resumed is not None:
            restore_weights(resumed, model, mesh)
    tokenizer = load_tokenizer(start.spec)
    chat = task_of(start.spec).chat(tokenizer)
    ready, _ = inference(tokenizer, chat, model.generation_config)
    model.generation_config = ready.generation
    attention = str(base_of(model).config._attn_implementation)
    return Loaded(model, saved_dtype(start.spec), ready, attention, saved)


def _compile_layers(model: Model, asked: TorchCompile) -> None:
    """Compiles each layer by itself. They are alike, so that what was compiled of the first serves all.

    Source: PyTorch, "Reducing torch.compile cold start compilation time with regional compilation".
    """
    embeddings = base_of(model).get_input_embeddings()
    for layer in layers_of(model):
        if layer is not embeddings:
            layer.compile(**asked.model_dump(exclude={"enabled"}, exclude_none=True))


def set_up(
    job: TrainingJob, loaded: Loaded, parallel: Parallel
) -> tuple[Forward, torch.optim.Optimizer, Position, Reference | None]:
    """Puts the loaded model and state on the devices, ready for the next step.

    What the loss compares the model with is that of the checkpoint; None for a new run.

    Raises FineTuneError (InvalidData) when the run began with other training rows.
    """
    spec, data = job.prepared.spec, job.prepared.fingerprint
    task = task_of(spec)
    model = base_of(loaded.model)
    if spec.recomputes_activations is not False:
        model.activation_checkpointing_enable()
    found = findings(task.model_class, model.config)
    objective = task.objective(loaded.model, found.scores, loaded.inference.tokenizer)
    if spec.torch_compile is not None and spec.torch_compile.enabled:
        _compile_layers(loaded.model, spec.torch_compile)
    pad = pad_token_id(loaded.inference.tokenizer)
    layout: Layout = Padded(pad, job.padded_length)
    if found.end_to_end and job.padded_length is None:
        layout = EndToEnd(pad)
        attend_within_rows(model)
    forward = Forward(
        module=parallel.place(objective),
        parallel=parallel,
        layout=layout,
        dtype=job.start.dtype,
    )
    optimizer = adamw(objective, spec)
    torch.manual_seed(spec.seed + parallel.rank)
    saved, loaded.saved = loaded.saved, None
    if saved is None:
        rows = job.prepared.numbers.effective_batch_size
        begin = Position(step=0, data=data, evaluation=None, effective_batch_size=rows)
        return forward, optimizer, begin, None
    position = restore_state(saved, optimizer, parallel, data=data)
    if job.start.resume_in is not None:
        position = position.model_copy(update={"checkpoints_since": 0})
    return forward, optimizer, position, saved.reference
