from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.cli.command_line import Command

from finetune_api.manifest import read_manifest

LLMFORGE = sorted((Path(__file__).parents[2] / "examples/llmforge").glob("*.yaml"))


@pytest.mark.parametrize("example", LLMFORGE, ids=lambda path: path.stem)
def test_an_llmforge_file_becomes_a_finetunejob_that_says_the_same(
    finetune: Command, tmp_path: Path, example: Path
) -> None:
    ended = finetune("convert", example)
    (tmp_path / "job.yaml").write_text(ended.out)

    assert ended.code == 0
    assert read_manifest(tmp_path / "job.yaml").spec == read_manifest(example).spec


def test_numbers_become_numbers_and_the_file_gives_the_name(finetune: Command, tmp_path: Path) -> None:
    (tmp_path / "8xA100_80G.yaml").write_text(
        "model_id: m\ntrain_path: t.jsonl\nlearning_rate: 1e-4\nnum_epochs: '3'\n"
        "trainer_resources: {memory: 150_323_855_360}\nlora_config: {}\n"
    )

    ended = finetune("convert", "8xA100_80G.yaml")

    assert (ended.code, ended.err) == (0, "")
    assert yaml.safe_load(ended.out) == {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "8xa100-80g"},
        "spec": {
            "model_id": "m",
            "train_path": "t.jsonl",
            "learning_rate": 0.0001,
            "num_epochs": 3,
            "trainer_resources": {"memory": 150323855360},
            "lora_config": {},
        },
    }


def test_warnings_go_to_standard_error(finetune: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model_id: m\ntrain_path: t.jsonl\n")

    ended = finetune("convert", "job.yaml")

    assert ended.code == 0
    assert ended.err.startswith("warning: spec.lora_config is absent")
    assert "warning" not in ended.out


def test_early_names_are_converted_to_todays_and_it_is_said(finetune: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "model_id: m\nmodel_tag: mine\ntrain_path: t.jsonl\neval_path: v.jsonl\nlora_config: {}\n"
    )

    ended = finetune("convert", "job.yaml")

    assert ended.code == 0
    assert yaml.safe_load(ended.out)["spec"] == {
        "model_id": "m",
        "custom_model_tag": "mine",
        "train_path": "t.jsonl",
        "valid_path": "v.jsonl",
        "lora_config": {},
    }
    assert ended.err.splitlines() == [
        "warning: spec.eval_path is taken as valid_path, its name today; write that",
        "warning: spec.model_tag is taken as custom_model_tag, its name today; write that",
    ]


def test_a_wrong_file_converts_to_nothing(finetune: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model_id: m\n")

    ended = finetune("convert", "job.yaml")

    assert (ended.code, ended.out, ended.err) == (1, "", "error: spec.train_path: is required\n")


def test_a_converted_job_asks_for_what_the_file_does_and_it_is_said_what_that_is(
    finetune: Command, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(
        "model_id: m\ntrain_path: t.jsonl\nlora_config: {}\nnum_devices: 8\n"
        "worker_resources: {p4de.24xlarge: 0.01}\ndeepspeed: {config_path: ds/zero_3_offload_optim.json}\n"
    )

    ended = finetune("convert", "job.yaml")

    assert ended.code == 0
    spec = yaml.safe_load(ended.out)["spec"]
    assert spec["worker_resources"] == {"p4de.24xlarge": 0.01}
    assert spec["deepspeed"] == {"config_path": "ds/zero_3_offload_optim.json"}
    assert "parallelism" not in spec
    sharding, device = ended.err.splitlines()
    assert sharding.startswith("warning: spec.deepspeed: zero_3_offload_optim.json is ZeRO stage 3")
    assert device == "warning: spec.worker_resources[p4de.24xlarge] is taken as accelerator_type:A100-80G"
