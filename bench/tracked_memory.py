"""The estimate of `finetune plan` beside PyTorch's own tracker of memory, for models of 7B to 70B.

    python -m bench.tracked_memory [--only NAME...] [--json FILE]

Run it from the project's folder, with `examples` on PYTHONPATH; it needs no GPU and little memory. A forward
and a backward pass run on tensors that have shapes and no data (FakeTensorMode), in a process group of ranks
that are not there (`fake`), and `torch.distributed._tools.fsdp2_mem_tracker.FSDPMemTracker` counts what a
rank allocates. AdamW's two moments, which it would count together with temporary values that a GPU does not
need, are added by arithmetic: 8 bytes for each trained parameter of the rank; and DDP's buckets, 4.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from bench.model_shapes import Fields, config_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedConfig, PreTrainedModel

from finetune_api.manifest import read_spec
from finetune_api.numbers import ResolvedPrecision
from finetune_api.sharding import Sharding
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.layout import Batch
from finetune_trainer.model.adapters import with_adapters
from finetune_trainer.model.load import Shape
from finetune_trainer.model.sizes import layers_of, sizes_of
from finetune_trainer.model.trial import findings
from finetune_trainer.plan.layer_memory import layer_memory
from finetune_trainer.plan.memory import Lengths, MemoryEstimate, memory, step_of
from finetune_trainer.tasks.language import LanguageObjective
from finetune_trainer.tasks.objective import Model, base_of
from finetune_trainer.tasks.task import task_of

GIB = 2**30
ROWS, LENGTH = 2, 2048
LORA: Fields = {"lora_config": {"r": 8}}
FULL: Fields = {}
MODELS = ("llama-2-7b", "llama-2-70b", "llama-3-8b", "llama-3-70b", "mistral-7b", "mixtral-8x7b")
COPIES = Sharding()
PARTS = Sharding(kind="fsdp")
GATHERED = Sharding(kind="fsdp", reshard=False)


@dataclass(frozen=True)
class Case:
    """A job of several devices."""

    model: str
    way: Fields
    sharding: Sharding
    dtype: ResolvedPrecision = "bf16"
    recomputes: bool = True
    devices: int = 8

    @property
    def name(self) -> str:
        """`llama-2-7b lora fsdp`."""
        words = [
            self.model,
            "lora" if self.way else "full",
            self.sharding.kind,
            "" if self.sharding.reshard else "gathered",
            "" if self.dtype == "bf16" else self.dtype,
            "" if self.recomputes else "kept",
        ]
        return " ".join(word for word in words if word)


CASES = {
    case.name: case
    for case in (
        *(
            Case(model, way, sharding)
            for model in MODELS
            for way in (LORA, FULL)
            for sharding in (COPIES, PARTS)
        ),
        Case("llama-2-7b", LORA, PARTS, recomputes=False),
        Case("llama-2-7b", FULL, PARTS, recomputes=False),
        Case("llama-2-7b", FULL, COPIES, recomputes=False),
        Case("llama-2-7b", FULL, GATHERED),
        Case("llama-2-7b", FULL, PARTS, "fp32"),
        Case("llama-2-7b", LORA, COPIES, "fp32", recomputes=False),
        Case("llama-3.2-1b", FULL, PARTS),
    )
}


def main() -> None:
    """Compares what the command line asks for."""
    parser = argparse.ArgumentParser(description="Compares the estimate of memory with PyTorch's tracker.")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    figures = {}
    print(f"torch {torch.__version__}, {ROWS} rows of {LENGTH} tokens, 8 devices, GiB a device\n")
    print(f"{'':30} {'tracked':>8} {'estimate':>8} {'ratio':>6}  at its most{'':4} {'seconds':>8}")
    for name in arguments.only or CASES:
        began = time.monotonic()
        case = CASES[name]
        peak, estimated = tracked(case), estimated_for(case)
        seconds = time.monotonic() - began
        print(
            f"{name:30} {peak / GIB:8.2f} {estimated.total / GIB:8.2f} {estimated.total / peak:6.2f}"
            f"  {estimated.moment:15} {seconds:8.1f}",
            flush=True,
        )
        figures[name] = {"tracked": peak, "estimated": estimated.model_dump()}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def spec_for(case: Case) -> FineTuneJobSpec:
    """The job."""
    return read_spec(
        {
            "model_id": case.model,
            "train_path": "train.jsonl",
            "context_length": LENGTH,
            "train_batch_size_per_device": ROWS,
            "num_devices": case.devices,
            "gradient_checkpointing": case.recomputes,
            "parallelism": case.sharding.kind,
            **case.way,
        }
    )


def estimated_for(case: Case) -> MemoryEstimate:
    """What the plan says."""
    spec, config = spec_for(case), config_of(case.model)
    model = model_for(spec, config, case.dtype)
    step = step_of(
        spec,
        replace(shape_of(model, config), scores_in_chunks=True),
        layer_memory(spec, config, case.dtype, on_gpu=True),
        Lengths(LENGTH, LENGTH, padded=False, longest_validated=0),
        dtype=case.dtype,
        sharding=case.sharding,
        on_gpu=True,
    )
    return memory(step)


def shape_of(model: Model, config: PreTrainedConfig) -> Shape:
    """The shape of a model that is on the meta device."""
    sizes = sizes_of(model)
    text = config.get_text_config()
    return Shape(
        total_parameters=sizes.whole.frozen + sizes.whole.trained,
        trainable_parameters=sizes.whole.trained,
        layers=sizes.layers,
        hidden_size=text.hidden_size,
        vocabulary=text.vocab_size,
        context_length=text.max_position_embeddings,
        warnings=(),
        sizes=sizes,
    )


def model_for(spec: FineTuneJobSpec, config: PreTrainedConfig, dtype: ResolvedPrecision) -> Model:
    """The model that `load_model` would load, on the meta device."""
    held = torch.bfloat16 if dtype == "bf16" and spec.lora_config is not None else torch.float32
    with torch.device("meta"):
        model: PreTrainedModel = task_of(spec).model_class.from_config(config, dtype=held)  # type: ignore[no-untyped-call]
    if spec.recomputes_activations:
        model.activation_checkpointing_enable()
    if spec.lora_config is None:
        return cast("Model", model.train())
    return cast("Model", with_adapters(model, spec.lora_config, on_meta=True).train())


class _Totals:
    """A tracker that does not tell gradients from other values, since it cannot where weights are frozen."""

    def _update_peak_stats(self, peak_state: object) -> None:
        """As PyTorch's, which besides goes through all modules at every operation, for the most of each."""
        del peak_state
        for device, now in self._curr_mem_snap.items():  # type: ignore[attr-defined]
            if self._peak_mem.get(device, 0) < now["Total"]:  # type: ignore[attr-defined]
                self._peak_mem[device] = now["Total"]  # type: ignore[attr-defined]
                self._peak_mem_snap[device] = dict(now)  # type: ignore[attr-defined]

    def _track_module_params_and_buffers(
        self, module: torch.nn.Module, install_grad_hooks: bool = True
    ) -> tuple[int, int]:
        del install_grad_hooks
        tracked: tuple[int, int] = super()._track_module_params_and_buffers(module, False)  # type: ignore[misc]
        return tracked


class PartsTracker(_Totals, FSDPMemTracker):  # type: ignore[no-untyped-call]
    """Of a rank that has a part of the model."""


class CopyTracker(_Totals, MemTracker):  # type: ignore[no-untyped-call]
    """Of a rank that has a copy of the model."""


def tracked(case: Case) -> int:
    """The most that a rank allocates in a step, in bytes."""
    spec, shared = spec_for(case), case.sharding.kind == "fsdp"
    config = config_of(case.model)
    found = findings(task_of(spec).model_class, config)
    loss = LanguageObjective(model_for(spec, config, case.dtype), found.scores)
    trained = sum(each.numel() for each in loss.parameters() if each.requires_grad)
    if shared:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=case.devices)
        mesh = init_device_mesh("cpu", (case.devices,))
    try:
        with FakeTensorMode():
            on_cpu(loss)
            if shared:
                for layer in layers_of(loss.model):
                    fully_shard(layer, mesh=mesh, reshard_after_forward=case.sharding.reshard)
                fully_shard(loss, mesh=mesh)
            tracker = PartsTracker(loss) if shared else CopyTracker()
            if not shared:
                tracker.track_external(loss)
            pass_over(tracker, base_of(loss.model).get_output_embeddings())  # type: ignore[no-untyped-call]
            with tracker:
                ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
                # Which positions count no tensor without data can say, but how many: all.
                batch = Batch(
                    ids,
                    labels=ids,
                    counted=torch.zeros(ROWS * LENGTH, dtype=torch.long),
                    predicted=torch.full((ROWS,), LENGTH),
                )
                with torch.autocast(
                    "cpu", torch.bfloat16, enabled=case.dtype == "bf16", cache_enabled=not shared
                ):
                    value = loss(batch).total
                value.backward()
            [peak] = tracker.get_tracker_snapshot("peak").values()
    finally:
        if shared:
            dist.destroy_process_group()
    moments = 8 * trained // (case.devices if shared else 1)
    buckets = 0 if shared else 4 * trained
    return int(peak["Total"]) + moments + buckets


def pass_over(tracker: PartsTracker | CopyTracker, module: torch.nn.Module) -> None:
    """Keeps the tracker from following a module: of the head it takes each chunk to be another step.

    What the module allocates is counted all the same.
    """
    modules = tracker._mod_tracker
    for name in ("_fw_pre_hook", "_fw_post_hook"):
        setattr(modules, name, partial(_unless, module, getattr(modules, name)))


def _unless(
    module: torch.nn.Module, hook: Callable[..., None], called: torch.nn.Module, *values: object
) -> None:
    if called is not module:
        hook(called, *values)


def on_cpu(module: torch.nn.Module) -> None:
    """Puts tensors of the CPU in the place of those on the meta device; here they have no data either."""
    new: dict[int, torch.nn.Parameter] = {}
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                if id(parameter) not in new:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    new[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
                each._parameters[name] = new[id(parameter)]
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


if __name__ == "__main__":
    main()
