"""`finetune run` on a machine with a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import yaml
from tests.trainer.training_jobs import LORA, Fields, spec_of

NO_FLASH_ATTENTION = "warning: spec.flash_attention_2 needs a GPU and the package flash-attn"


def test_it_says_that_it_trains_on_the_gpu_and_whether_flash_attention_is_missing(
    tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    fields: Fields = {"train_path": str(tiny_rows), "valid_path": str(tiny_rows), "num_epochs": 1}
    spec = spec_of(tiny_model, LORA, flash_attention_2=True, **fields)
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))

    command = Path(sys.executable).with_name("finetune")
    arguments = ["run", str(job), "--storage", str(tmp_path / "runs"), "-o", "json"]
    ran = subprocess.run([str(command), *arguments], capture_output=True, text=True, check=False)

    said = " ".join(ran.stderr.split())
    assert ran.returncode == 0, ran.stderr
    assert f"training on {torch.cuda.device_count()} {torch.cuda.get_device_name(0)}" in said
    assert (NO_FLASH_ATTENTION in said) is (find_spec("flash_attn") is None)
    assert json.loads(ran.stdout)["status"]["phase"] == "Succeeded"
