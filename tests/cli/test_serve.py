from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.cli.command_line import Command
from tests.trainer.export.serving import adapter_in, job_in, model_in


def test_the_command_of_vllm_is_all_that_is_on_standard_output(finetune: Command, tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "epoch-1")
    job_in(tmp_path)

    ended = finetune("serve", adapter, "--as", "vllm", "--name", "mine")

    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("vllm serve org/base \\\n    --enable-lora \\\n")
    assert f"mine={adapter}" in ended.out


@pytest.mark.parametrize(("kind", "made"), [("kserve", "InferenceService"), ("rayservice", "RayService")])
def test_a_manifest_is_all_that_is_on_standard_output(
    finetune: Command, tmp_path: Path, kind: str, made: str
) -> None:
    merged = model_in(tmp_path / "merged")

    ended = finetune("serve", merged, "--as", kind, "--at", "hf://org/tuned")

    assert (ended.code, ended.err) == (0, "")
    assert yaml.safe_load(ended.out)["kind"] == made


def test_what_requests_are_to_ask_for_is_said_beside_the_manifest(finetune: Command, tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "epoch-1")
    job_in(tmp_path)

    ended = finetune(
        "serve", adapter, "--as", "rayservice", "--at", "s3://b/run/epoch-1", "--image", "mine:1"
    )

    assert ended.code == 0
    assert ended.err == "warning: requests ask for the adapter as the model my-job:epoch-1\n"
    assert "image: mine:1" in ended.out


def test_what_cannot_be_served_so_is_one_error_and_nothing_else(finetune: Command, tmp_path: Path) -> None:
    merged = model_in(tmp_path / "merged")

    ended = finetune("serve", merged, "--as", "kserve")

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"error: {merged}: is on this machine, where no cluster sees it; upload it")
    assert ended.err.count("\n") == 1


def test_a_server_that_is_none_of_these_is_refused(finetune: Command, tmp_path: Path) -> None:
    ended = finetune("serve", tmp_path, "--as", "sglang")

    assert ended.code == 2
    assert "'vllm', 'kserve', 'rayservice'" in " ".join(ended.err.replace("│", " ").split())
