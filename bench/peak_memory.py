"""What a training step takes of a device's memory, beside what `finetune plan` estimates.

    python -m bench.peak_memory [--only NAME...] [--device cuda|cpu] [--small] [--json FILE]

Run it from the project's folder, with `examples` on PYTHONPATH, on a machine with a GPU. For each case a
model with random weights is made on the device, and two optimizer steps are trained on rows of real text by
the trainer's own objective, step, clipping and optimizer. The peak is the most that PyTorch had allocated at
any time, by its allocator's count on a GPU and by its profiler on a CPU, over what it had before the model
was made. A table shows both in GiB and the peak as a part of the estimate.

Nothing is downloaded. `--small` tries the same cases with the sizes of a model of five million parameters.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import cast

import torch
from bench.model_shapes import write_description
from pydantic import JsonValue
from torch.profiler import ProfilerActivity, profile

from finetune_api.manifest import read_spec
from finetune_api.numbers import ResolvedPrecision, resolved_dtype
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.checkpoint.inference import inference
from finetune_trainer.data.batches import row_order, step_rows
from finetune_trainer.model.adapters import with_adapters
from finetune_trainer.model.liger import put_kernels
from finetune_trainer.model.load import load_config, load_generation_config, load_tokenizer
from finetune_trainer.parallel.one_device import OneDevice
from finetune_trainer.plan.memory import MemoryEstimate, estimate
from finetune_trainer.plan.prepare import Prepared, prepare
from finetune_trainer.tasks.objective import Loss, Model
from finetune_trainer.tasks.task import task_of
from finetune_trainer.training.forward import Forward
from finetune_trainer.training.job import Start, TrainingJob
from finetune_trainer.training.optimizer import set_learning_rate
from finetune_trainer.training.setup import Loaded, set_up
from finetune_trainer.training.step import backward

GIB = 2**30
STEPS = 2
"""In the second one the optimizer's state is there from the start."""
CHARACTERS_PER_TOKEN = 5
"""More than the tokenizer needs for its tokens, so that rows are truncated to the context length."""

Fields = dict[str, JsonValue]
LORA: Fields = {"lora_config": {"r": 8, "lora_alpha": 16}}
FULL: Fields = {}
KEPT: Fields = {"gradient_checkpointing": False}
PADDED: Fields = {"padding": "max_length"}


@dataclass(frozen=True)
class Case:
    """A job of one device."""

    model: str
    rows: int
    """Of a micro-batch."""
    length: int
    """Tokens of a row."""
    way: Fields
    fields: Fields = field(default_factory=dict)
    sizes: Fields = field(default_factory=dict)
    """What differs from the published configuration."""
    uneven: bool = False
    """Whether every second row is shorter than the others."""


CASES = {
    "8b lora": Case("llama-3-8b", 1, 4096, LORA),
    "8b lora, 4 rows": Case("llama-3-8b", 4, 4096, LORA),
    "8b lora, kept": Case("llama-3-8b", 1, 4096, LORA, KEPT),
    "8b lora, dropout, kept": Case(
        "llama-3-8b", 1, 2048, {"lora_config": {"r": 64, "lora_dropout": 0.05}}, KEPT
    ),
    "mistral lora, padded": Case("mistral-7b", 4, 2048, LORA, PADDED, uneven=True),
    "mistral lora, padded, kept": Case("mistral-7b", 4, 1024, LORA, KEPT | PADDED, uneven=True),
    "mistral lora, uneven": Case("mistral-7b", 4, 2048, LORA, uneven=True),
    "1b full": Case("llama-3.2-1b", 4, 2048, FULL),
    "1b full, kept": Case("llama-3.2-1b", 4, 2048, FULL, KEPT),
    "1b full, one short row": Case("llama-3.2-1b", 1, 512, FULL),
    "1b full, accumulated": Case("llama-3.2-1b", 2, 2048, FULL, {"gradient_accumulation_steps": 2}),
    "1b full, fp32": Case("llama-3.2-1b", 2, 2048, FULL, {"dtype": "fp32"}),
    "1b lora, fp32, kept": Case("llama-3.2-1b", 2, 2048, LORA, {"dtype": "fp32", **KEPT}),
    "2b full, 2 layers of llama-3-8b": Case("llama-3-8b", 2, 4096, FULL, KEPT, {"num_hidden_layers": 2}),
    "3b full, 2 layers of mixtral": Case("mixtral-8x7b", 2, 2048, FULL, {}, {"num_hidden_layers": 2}),
    "3b lora, 2 layers of mixtral, kept": Case("mixtral-8x7b", 2, 2048, LORA, KEPT, {"num_hidden_layers": 2}),
}

SMALL: Fields = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
SHORTER = 16
"""By which `--small` divides the length of the rows."""


@dataclass
class Peak:
    """A measurement, in bytes."""

    start: int = 0
    """What was allocated when it began."""
    most: int = 0
    """The most that was allocated at any time, without that."""


@dataclass(frozen=True)
class Result:
    """A case that was measured."""

    estimated: MemoryEstimate
    loaded: int
    """Bytes that are allocated when the model is there."""
    between: int
    """Bytes that are allocated after the last step."""
    peak: int | None
    """None where the device's memory did not do."""
    seconds: float


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description="Measures the peak of a training step's memory.")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="of the cases that name none")
    parser.add_argument("--small", action="store_true", help="the same cases with a tiny model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()

    results = {}
    print(f"{machine(arguments.device)}, torch {torch.__version__}, GiB\n")
    print(f"{'':36}  {'loaded':>8} {'between':>8} {'peak':>8} {'estimate':>8} {'ratio':>6} {'seconds':>8}")
    for name in arguments.only or CASES:
        case = CASES[name]
        if arguments.dtype:
            case = replace(case, fields={"dtype": arguments.dtype, **case.fields})
        if arguments.small:
            case = replace(case, length=case.length // SHORTER, sizes={**SMALL, **case.sizes})
        with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
            result = measured(case, Path(scratch), torch.device(arguments.device))
        results[name] = result
        print(f"{name:36}  {line(result)}", flush=True)
    if arguments.json:
        document = {
            name: {
                "estimated": result.estimated.model_dump(),
                "loaded": result.loaded,
                "between": result.between,
                "peak": result.peak,
            }
            for name, result in results.items()
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def machine(device: str) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else "CPU"


def line(result: Result) -> str:
    """A row of the table."""
    of_estimate = "" if result.peak is None else f"{result.peak / result.estimated.total:.2f}"
    figures = (result.loaded, result.between, result.peak, result.estimated.total)
    shown = [" too much" if each is None else f"{each / GIB:8.3f}" for each in figures]
    return f"{' '.join(shown)} {of_estimate:>6} {result.seconds:8.1f}"


def measured(case: Case, scratch: Path, device: torch.device) -> Result:
    """Trains the case's steps, and measures."""
    began = time.monotonic()
    prepared = prepared_case(case, scratch)
    dtype = resolved_dtype(prepared.spec, on_gpu=device.type == "cuda")
    marks: list[int] = []
    with peak_on(device) as (peak, allocated):
        try:
            model = random_model(prepared.spec, dtype, device)
            marks.append(allocated())
            train(prepared, model, dtype, device)
            marks.append(allocated())
            del model
        except torch.OutOfMemoryError:
            pass
    loaded, between = (mark - peak.start for mark in (*marks, *[peak.start] * (2 - len(marks))))
    return Result(
        estimated=estimate(prepared, dtype, on_gpu=device.type == "cuda"),
        loaded=loaded,
        between=between,
        peak=peak.most if len(marks) > 1 else None,
        seconds=time.monotonic() - began,
    )


def prepared_case(case: Case, scratch: Path, steps: int = STEPS) -> Prepared:
    """The job on as many rows as its steps take."""
    model = write_description(case.model, scratch / "model", **case.sizes)
    text = " ".join(topics.values())
    accumulated = int(str(case.fields.get("gradient_accumulation_steps", 1)))
    count = case.rows * accumulated * steps
    characters = case.length * CHARACTERS_PER_TOKEN
    assert len(text) > characters
    lines = []
    for index in range(count):
        start = index * 1009 % (len(text) - characters)
        words = text[start : start + characters]
        if case.uneven and index % 2:
            words = words[: case.length]
        turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": words}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    (scratch / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    spec = read_spec(
        {
            "model_id": str(model),
            "train_path": str(scratch / "train.jsonl"),
            "context_length": case.length,
            "train_batch_size_per_device": case.rows,
            "num_epochs": 1,
            "num_warmup_steps": 0,
            **case.way,
            **case.fields,
        }
    )
    return prepare(spec, planning=True)


def random_model(spec: FineTuneJobSpec, dtype: ResolvedPrecision, device: torch.device) -> Model:
    """The model that `load_model` would load, with random weights, made on the device."""
    held = torch.bfloat16 if dtype == "bf16" and spec.lora_config is not None else torch.float32
    with device:
        model = task_of(spec).model_class.from_config(load_config(spec), dtype=held)  # type: ignore[no-untyped-call]
    if spec.recomputes_activations:
        model.activation_checkpointing_enable()
    put_kernels(model, spec, on_gpu=device.type == "cuda")
    if spec.lora_config is not None:
        model = with_adapters(model, spec.lora_config)
    return cast("Model", model.train())


def train(prepared: Prepared, model: Model, dtype: ResolvedPrecision, device: torch.device) -> None:
    """Trains all steps of the first epoch as the loop does, without validation and checkpoints."""
    for _ in steps(prepared, *ready(prepared, model, dtype, device)):
        pass


def ready(
    prepared: Prepared, model: Model, dtype: ResolvedPrecision, device: torch.device
) -> tuple[Forward, torch.optim.Optimizer]:
    """What the loop trains with."""
    spec = prepared.spec
    tokenizer = load_tokenizer(spec)
    described, _ = inference(tokenizer, task_of(spec).chat(tokenizer), load_generation_config(spec))
    job = TrainingJob("bench", Start(spec, dtype, "", None), prepared)
    loaded = Loaded(model, torch.float32, described, "sdpa", None)
    forward, optimizer, *_ = set_up(job, loaded, OneDevice(device))
    return forward, optimizer


def steps(prepared: Prepared, forward: Forward, optimizer: torch.optim.Optimizer) -> Iterator[Loss]:
    """Trains the steps of the first epoch; each loss comes when the device was given all of its step."""
    spec, numbers = prepared.spec, prepared.numbers
    order = row_order(spec.seed, 0, len(prepared.train))
    for step in range(numbers.steps_per_epoch):
        set_learning_rate(optimizer, numbers.learning_rate_at(step))
        rows = step_rows(order, step, numbers.effective_batch_size)
        loss = backward(forward, prepared.train, rows, numbers.train_batch_size_per_device)
        forward.parallel.clip(spec.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss


def step_tokens(prepared: Prepared) -> list[int]:
    """The tokens of each step of the first epoch, without padding."""
    rows, numbers = prepared.train, prepared.numbers
    order = row_order(prepared.spec.seed, 0, len(rows))
    return [
        sum(len(rows.row(int(index))[0]) for index in step_rows(order, step, numbers.effective_batch_size))
        for step in range(numbers.steps_per_epoch)
    ]


@contextmanager
def peak_on(device: torch.device) -> Iterator[tuple[Peak, Callable[[], int]]]:
    """Measures the `with` block; the function tells what is allocated (0 on a CPU, where nobody counts)."""
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        peak.start = torch.cuda.memory_allocated()
        yield peak, torch.cuda.memory_allocated
        peak.most = torch.cuda.max_memory_allocated() - peak.start
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        yield peak, lambda: 0
    allocated = 0
    result = profiled.profiler and profiled.profiler.kineto_results
    assert result is not None
    for event in sorted(result.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak.most = max(peak.most, allocated)


if __name__ == "__main__":
    main()
