"""Losses and gradients of small models with Liger's kernels beside those of the same models without.

`TRITON_INTERPRET=1 python -m tests.long.interpreted_liger NAME...`, with names of `architectures`. A
line of JSON for each: the loss without and with them, and the largest difference of a gradient as a part of
the largest gradient. Triton reads the variable when it is imported, so this is a process of its own.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

import numpy as np
import torch
from tests.trainer.model.architectures import model_of
from tests.trainer.training_jobs import rows_of
from transformers import AutoModelForCausalLM

from finetune_api.lora import LoraConfig
from finetune_api.manifest import read_spec
from finetune_trainer.data.layout import EndToEnd
from finetune_trainer.model.adapters import with_adapters
from finetune_trainer.model.attention import attend_within_rows
from finetune_trainer.model.liger import put_kernels
from finetune_trainer.model.trial import findings
from finetune_trainer.tasks.language import LanguageObjective
from finetune_trainer.tasks.objective import Model

ROWS = rows_of([9, 1, 14], vocabulary=97)
SPEC = read_spec({"model_id": "m", "train_path": "t", "liger_kernel": {}})
LORA = LoraConfig.model_validate({"r": 4, "init_lora_weights": False, "target_modules": "all-linear"})


def trained(name: str, *, by_liger: bool, adapters: bool) -> tuple[float, dict[str, torch.Tensor]]:
    base = model_of(name, "sdpa")
    if by_liger:
        assert put_kernels(base, SPEC, on_gpu=True) == []
    attend_within_rows(base)
    model: Model = base
    if adapters:
        torch.manual_seed(1)
        model = with_adapters(base, LORA)
    objective = LanguageObjective(model, findings(AutoModelForCausalLM, base.config).scores)
    loss = objective(EndToEnd(0).batch(ROWS, range(len(ROWS)))).total / int(ROWS.predicted.sum())
    loss.backward()
    gradients = {
        parameter_name: parameter.grad
        for parameter_name, parameter in objective.named_parameters()
        if parameter.grad is not None
    }
    return float(loss.detach()), gradients


def complete_the_interpreter() -> None:
    """Gives it what the kernels ask for: two functions of CUDA's library, and numbers that are tensors."""
    language, interpreter = (import_module(f"triton.{name}") for name in ("language", "runtime.interpreter"))
    convert = interpreter._implicit_cvt

    def rsqrt(x: object) -> object:
        return language.rsqrt(x)  # looked up when it is called: while a kernel runs it is another

    def tanh(x: Any) -> object:  # noqa: ANN401 - Triton's tensors have no types
        return 2 * language.sigmoid(2 * x) - 1

    def converted(argument: object) -> object:
        if not isinstance(argument, float):
            return convert(argument)
        number = interpreter.TensorHandle(np.array([argument], dtype=np.float32), language.float32)
        return language.tensor(number, language.float32)

    vars(import_module("liger_kernel.ops.rms_norm"))["rsqrt"] = rsqrt
    vars(import_module("liger_kernel.ops.geglu"))["tanh"] = tanh
    vars(interpreter)["_implicit_cvt"] = converted


def main() -> None:
    complete_the_interpreter()
    for name in sys.argv[1:]:
        for adapters in (True, False):
            expected, its_gradients = trained(name, by_liger=False, adapters=adapters)
            found, gradients = trained(name, by_liger=True, adapters=adapters)
            assert gradients.keys() == its_gradients.keys()
            largest = max(float(each.abs().max()) for each in its_gradients.values())
            difference = max(float((gradients[each] - its_gradients[each]).abs().max()) for each in gradients)
            line = {
                "name": name,
                "adapters": adapters,
                "gradients": len(gradients),
                "expected": expected,
                "found": found,
                "difference": difference / largest,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
