"""How fast a GPU trains, beside TRL's SFTTrainer, and what each switch changes.

    PYTHONPATH=.:examples python -m bench.gpu [--only NAME...] [--steps 10] [--small] [--json FILE]

Run it from the project's folder on a machine with a GPU. A model of the shape of Llama 3.1 8B with random
weights is made on the device in bf16, LoRA of rank 16 on all linear layers, and trained by the trainer's own
objective, step, clipping and optimizer on rows of real text: of 4,096 tokens each, or eight of mixed lengths.
TRL trains the same rows in the same process, with flash-attn where that is installed, else with PyTorch's
attention. The first steps are not measured. A table shows tokens a second that are not padding, the share of
the device's peak in bf16 by 4 operations a token and parameter (forward pass, and the gradient of what is
computed; weights that are frozen have none), and the most memory that PyTorch had allocated.

Nothing is downloaded. `--small` tries all of it with a tiny model, also without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from bench.peak_memory import (
    GIB,
    KEPT,
    SHORTER,
    SMALL,
    Case,
    Fields,
    machine,
    prepared_case,
    random_model,
    ready,
    step_tokens,
    steps,
)

from finetune_api.numbers import ResolvedPrecision, resolved_dtype
from finetune_trainer.data.layout import Padded
from finetune_trainer.model.load import load_tokenizer, pad_token_id
from finetune_trainer.plan.prepare import Prepared
from finetune_trainer.tasks.objective import Model, base_of

FIRST_STEPS = 3
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12}
"""Dense bf16 operations a second by a part of the device's name, from NVIDIA's data sheets."""
LORA: Fields = {"lora_config": {"r": 16, "lora_alpha": 32}}
COMPILED: Fields = {"torch_compile": {"enabled": True}}
LIGER: Fields = {"liger_kernel": {"enabled": True}}


@dataclass(frozen=True)
class Way:
    """A way to train the rows."""

    case: Case
    trl: bool = False
    padded: bool = False
    """Whether ours pads the rows of a micro-batch to the longest."""


@dataclass
class Seen:
    """What was measured."""

    tokens: int = 0
    seconds: float = 0.0
    peak: int = 0
    """Bytes."""
    losses: list[float] = field(default_factory=list)


RECOMPUTED: Fields = {"gradient_checkpointing": True}
EQUAL = Case("llama-3-8b", 1, 4096, LORA, RECOMPUTED)
MIXED = Case("llama-3-8b", 8, 2048, LORA, RECOMPUTED, uneven=True)
WAYS = {
    "4,096 tokens": Way(EQUAL),
    "4,096 tokens, kept": Way(replace(EQUAL, fields=KEPT)),
    "4,096 tokens, kept, compiled": Way(replace(EQUAL, fields=KEPT | COMPILED)),
    "4,096 tokens, kept, Liger": Way(replace(EQUAL, fields=KEPT | LIGER)),
    "4,096 tokens, TRL": Way(EQUAL, trl=True),
    "4,096 tokens, kept, TRL": Way(replace(EQUAL, fields=KEPT), trl=True),
    "mixed lengths": Way(MIXED),
    "mixed lengths, padded": Way(MIXED, padded=True),
    "mixed lengths, TRL": Way(MIXED, trl=True),
}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description="Measures training on a GPU beside TRL.")
    parser.add_argument("--only", nargs="+", choices=WAYS, metavar="NAME", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--steps", type=int, default=10, help="that are measured")
    parser.add_argument("--small", action="store_true", help="the same with a tiny model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    document: dict[str, dict[str, float | list[float]]] = {}
    print(f"{machine(device.type)}, torch {torch.__version__}, {arguments.steps} steps\n")
    print("| | tokens/s | of the peak | GiB | first losses |", "|---|---|---|---|---|", sep="\n", flush=True)
    for name in arguments.only or WAYS:
        way = WAYS[name]
        if arguments.small:
            case = way.case
            way = replace(way, case=replace(case, length=case.length // SHORTER, sizes=SMALL))
        with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
            seen, parameters = measured(way, Path(scratch), device, FIRST_STEPS + arguments.steps)
        speed = seen.tokens / seen.seconds
        share = peak_share(4 * parameters * speed, device)
        losses = ", ".join(f"{loss:.4f}" for loss in seen.losses[:3])
        print(f"| {name} | {speed:.0f} | {share} | {seen.peak / GIB:.2f} | {losses} |", flush=True)
        document[name] = {"tokens/s": speed, "peak bytes": seen.peak, "losses": seen.losses}
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def peak_share(operations: float, device: torch.device) -> str:
    """Operations a second as a part of what the device can do; empty where that is not known."""
    peak = next((most for name, most in PEAKS.items() if name in machine(device.type)), None)
    return "" if peak is None else f"{100 * operations / peak:.1f} %"


def measured(way: Way, scratch: Path, device: torch.device, count: int) -> tuple[Seen, int]:
    """Trains so many steps; what was seen in them, and how many parameters the base has."""
    prepared = prepared_case(way.case, scratch, count)
    dtype = resolved_dtype(prepared.spec, on_gpu=device.type == "cuda")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    model = random_model(prepared.spec, dtype, device)
    parameters = sum(each.numel() for each in model.parameters() if not each.requires_grad)
    times: list[float] = []

    def after_step() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    if way.trl:
        losses = by_trl(prepared, model, dtype, scratch, after_step)
    else:
        losses = by_us(prepared, model, dtype, device, after_step, is_padded=way.padded)
    seen = Seen(
        tokens=sum(step_tokens(prepared)[FIRST_STEPS:]),
        seconds=times[-1] - times[FIRST_STEPS - 1],
        peak=torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        losses=losses,
    )
    return seen, parameters


def by_us(
    prepared: Prepared,
    model: Model,
    dtype: ResolvedPrecision,
    device: torch.device,
    after_step: Callable[[], None],
    *,
    is_padded: bool,
) -> list[float]:
    """Trains as the loop does; the loss of each step."""
    forward, optimizer = ready(prepared, model, dtype, device)
    if is_padded:
        forward = replace(forward, layout=Padded(pad_token_id(load_tokenizer(prepared.spec))))
        base_of(model).set_attn_implementation("sdpa")
    losses = []
    for loss in steps(prepared, forward, optimizer):
        losses.append(loss.total.item())
        after_step()
    return losses


def by_trl(
    prepared: Prepared,
    model: Model,
    dtype: ResolvedPrecision,
    scratch: Path,
    after_step: Callable[[], None],
) -> list[float]:
    """The same by SFTTrainer."""
    from bench import others

    base_of(model).set_attn_implementation("flash_attention_2" if find_spec("flash_attn") else "sdpa")
    with redirect_stdout(sys.stderr):
        trainer = others.trl(prepared, model, dtype, scratch / "trl")
        trainer.add_callback(others.AfterStep(after_step))
        trainer.train()
    return others.losses_of(trainer)


if __name__ == "__main__":
    main()
