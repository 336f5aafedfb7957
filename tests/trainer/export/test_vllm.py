from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.trainer.export.serving import adapter_in, job_in, model_in
from tests.trainer.export.test_served import FORMAT, some_model

from finetune_api.failure import FineTuneError
from finetune_trainer.export.served import Served, served
from finetune_trainer.export.vllm import vllm_command


def words_of(model: Served) -> list[str]:
    """The arguments with which a shell would call `vllm`."""
    script = f"vllm() {{ printf '%s\\0' \"$@\"; }}\n{vllm_command(model)}"
    ended = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    return ended.stdout.split("\0")[:-1]


def test_an_adapter_is_served_on_its_base_with_what_the_job_implies(tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "epoch-1", r=12)
    job_in(tmp_path, dtype="bf16", context_length=2048, generation_config=FORMAT)

    command = vllm_command(served(str(adapter)))

    assert command == (
        "vllm serve org/base \\\n"
        "    --enable-lora \\\n"
        f"    --lora-modules my-job={adapter} \\\n"
        "    --max-lora-rank 16 \\\n"
        f"    --generation-config {adapter} \\\n"
        f"    --chat-template {adapter}/chat_template.jinja \\\n"
        "    --dtype bfloat16 \\\n"
        "    --max-model-len 2048\n"
    )


def test_a_whole_model_is_served_by_its_name(tmp_path: Path) -> None:
    merged = model_in(tmp_path / "merged model")

    words = words_of(served(str(merged), name="mine"))

    assert words == ["serve", str(merged), "--served-model-name", "mine"]


def test_an_adapter_on_a_hub_is_named_as_there(tmp_path: Path) -> None:
    words = words_of(served(str(adapter_in(tmp_path / "a")), at="hf://org/tuned"))

    assert words[words.index("--lora-modules") + 1] == "a=org/tuned"


def test_a_path_that_would_be_read_as_another_pair_is_written_as_json(tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "r=8,lr=1")

    words = words_of(served(str(adapter), name="mine"))

    assert json.loads(words[words.index("--lora-modules") + 1]) == {"name": "mine", "path": str(adapter)}


@pytest.mark.parametrize("fields", [{"path": "s3://b/m"}, {"path": "/a", "base": "pvc://c/m", "max_rank": 8}])
def test_what_vllm_does_not_read_is_told(fields: dict[str, object]) -> None:
    with pytest.raises(FineTuneError, match=r"^(s3://b/m|pvc://c/m): vLLM's command serves a directory"):
        vllm_command(some_model(**fields))
