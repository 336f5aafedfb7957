"""For each way to initialise an adapter, loading it with peft alone must give the model that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from pydantic import JsonValue
from tests.trainer.training_jobs import VALIDATION_ROWS, column, forward_of, job_of, spec_of, train_here
from transformers import AutoModelForCausalLM

from finetune_api.failure import FineTuneError
from finetune_trainer.training.evaluate import evaluate


@pytest.mark.parametrize("initialisation", [True, False, "gaussian", "olora", "pissa", "orthogonal", "mica"])
def test_an_adapter_loads_with_peft_alone_however_it_was_begun(
    initialisation: JsonValue, tiny_model: Path, tmp_path: Path
) -> None:
    lora: JsonValue = {"init_lora_weights": initialisation}
    train_here(job_of(tiny_model, tmp_path / "run", {"lora_config": lora}, num_epochs=1, learning_rate=1e-2))

    torch.manual_seed(1)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), str(tmp_path / "run/epoch-0")
    )

    assert evaluate(forward_of(adapted), VALIDATION_ROWS, 4).loss == pytest.approx(
        column(tmp_path / "run", "evalLoss")[-1], abs=1e-5
    )


def test_an_initialisation_that_cannot_be_repeated_is_refused(tiny_model: Path) -> None:
    lora: JsonValue = {"init_lora_weights": "pissa_niter_4"}

    with pytest.raises(FineTuneError) as raised:
        spec_of(tiny_model, {"lora_config": lora})

    assert (
        str(raised.value)
        == "spec.lora_config.init_lora_weights: starts from a random approximation that nobody who loads the"
        " adapter can repeat; pissa can be repeated; leave it out"
    )
