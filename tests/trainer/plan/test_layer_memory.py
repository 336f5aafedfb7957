"""What a layer keeps for each token, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.trainer.training_jobs import spec_of

from finetune_trainer.model.load import load_config
from finetune_trainer.plan.layer_memory import layer_memory


@pytest.mark.parametrize(("on_gpu", "mask"), [(False, 4), (True, 1)], ids=["CPU", "GPU"])
def test_dropout_keeps_a_value_for_each_that_it_may_drop_on_a_cpu_and_a_byte_on_a_gpu(
    tiny_model: Path, *, on_gpu: bool, mask: int
) -> None:
    def kept(dropout: float) -> float:
        adapters: JsonValue = {"r": 4, "target_modules": ["q_proj", "down_proj"], "lora_dropout": dropout}
        spec = spec_of(tiny_model, {"lora_config": adapters})
        return layer_memory(spec, load_config(spec), "fp32", on_gpu=on_gpu).kept

    text = load_config(spec_of(tiny_model, {})).get_text_config()
    dropped = text.hidden_size + text.intermediate_size
    # What it gives is kept in place of what it got: adapters' gradients need the one or the other.
    assert kept(0.1) - kept(0.0) == pytest.approx(mask * dropped)
