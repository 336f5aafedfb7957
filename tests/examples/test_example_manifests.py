from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.manifest import Manifest, read_manifest
from finetune_api.numbers import numbers
from finetune_trainer.local import DEFAULT_STORAGE, local_run_directory
from make_inputs import (
    MODEL,
    PAIRS_TRAIN,
    PAIRS_VALIDATION,
    TOPICS_TRAIN,
    TOPICS_TRAIN_ROWS,
    TOPICS_VALIDATION,
    TRAIN,
    TRAIN_LARGE,
    VALIDATION,
)
from make_stdlib_topics import LABELS

EXAMPLES = Path(__file__).parents[2] / "examples"
MADE = {
    f"examples/inputs/{name}"
    for name in (
        MODEL,
        TRAIN,
        TRAIN_LARGE,
        VALIDATION,
        PAIRS_TRAIN,
        PAIRS_VALIDATION,
        TOPICS_TRAIN,
        TOPICS_VALIDATION,
    )
}


def _read(name: str) -> Manifest:
    return read_manifest(EXAMPLES / name)


def test_the_quickstart_needs_no_hub_and_no_bucket_and_nothing_about_it_is_remarkable() -> None:
    quickstart = _read("quickstart.yaml")

    assert {quickstart.spec.model_id, quickstart.spec.train_path, quickstart.spec.valid_path} < MADE
    assert quickstart.warnings == ()


def test_the_quickstart_is_three_epochs_of_twenty_steps_each_validated(stdlib_train: Path) -> None:
    rows = len(stdlib_train.read_text(encoding="utf-8").splitlines())
    run = numbers(_read("quickstart.yaml").spec, rows=rows, longest_row=80, model_context_length=8192)

    assert (run.steps_per_epoch, run.total_steps, run.checkpoint_epochs) == (20, 60, (0, 1, 2))


def test_the_example_for_a_cluster_trains_what_the_quickstart_trains(stdlib_train: Path) -> None:
    ours, theirs = _read("finetunejob.yaml"), _read("quickstart.yaml")
    rows = len(stdlib_train.read_text(encoding="utf-8").splitlines())
    cluster, laptop = (
        numbers(each.spec, rows=rows, longest_row=80, model_context_length=8192) for each in (ours, theirs)
    )

    assert ours.warnings == ()
    assert (cluster.effective_batch_size, cluster.total_steps) == (
        laptop.effective_batch_size,
        laptop.total_steps,
    )
    for field in (
        "lora_config",
        "learning_rate",
        "num_warmup_steps",
        "num_epochs",
        "task",
        "num_checkpoints_to_keep",
    ):
        assert getattr(ours.spec, field) == getattr(theirs.spec, field)


def test_the_example_of_preferences_is_two_epochs_of_twenty_steps_and_needs_no_hub(
    stdlib_pairs: Path,
) -> None:
    preference = _read("preference.yaml")
    rows = len(stdlib_pairs.read_text(encoding="utf-8").splitlines())
    run = numbers(preference.spec, rows=rows, longest_row=80, model_context_length=8192)

    assert {preference.spec.model_id, preference.spec.train_path, preference.spec.valid_path} < MADE
    assert preference.warnings == ()
    assert (run.steps_per_epoch, run.checkpoint_epochs) == (20, (0, 1))


def test_the_example_of_a_classifier_is_an_epoch_of_sixty_steps_and_has_every_label() -> None:
    classification = _read("classification.yaml")
    spec = classification.spec
    run = numbers(spec, rows=TOPICS_TRAIN_ROWS, longest_row=120, model_context_length=8192)

    assert {spec.model_id, spec.train_path, spec.valid_path} < MADE
    assert spec.classifier_config is not None
    assert spec.classifier_config.label_tokens == list(LABELS)
    assert classification.warnings == ()
    assert (run.total_steps, run.checkpoint_epochs) == (60, (0,))


def test_with_the_line_that_is_commented_out_it_begins_with_the_last_checkpoint_of_the_quickstart(
    tmp_path: Path,
) -> None:
    text = (EXAMPLES / "preference.yaml").read_text(encoding="utf-8")
    file = tmp_path / "preference.yaml"
    file.write_text(text.replace("# initial_adapter", "initial_adapter"), encoding="utf-8")
    continued, quickstart = read_manifest(file), _read("quickstart.yaml")
    run = local_run_directory(quickstart, DEFAULT_STORAGE, None)

    adapter = continued.spec.initial_adapter_model_ckpt_path
    assert isinstance(adapter, str)
    assert Path(adapter).absolute() == Path(run.path) / "epoch-2"
    assert continued.spec.lora_config == quickstart.spec.lora_config


@pytest.mark.parametrize(
    ("name", "is_lora"), [("llama-3.1-8b-lora.yaml", True), ("qwen3-0.6b-full.yaml", False)]
)
def test_a_manifest_for_a_public_model_takes_data_that_is_made_here(name: str, is_lora: bool) -> None:
    spec = _read(name).spec

    assert {spec.train_path, spec.valid_path} < MADE
    assert (spec.lora_config is not None) is is_lora


@pytest.mark.parametrize(
    ("name", "remarks"),
    [
        ("hyperparameters.yaml", ["min_update_steps"]),
        ("llama-3-8b-lora-4xA10.yaml", ["liger_kernel", "deepspeed"]),
        ("mistral-7b-prompt-format.yaml", ["deepspeed"]),
        ("gemma-2-27b-lora-8xH100.yaml", ["num_data_blocks_per_device", "deepspeed"]),
        (
            "llm-router-classifier.yaml",
            ["output_dir", "deepspeed", "every parameter of the model is trained"],
        ),
        (
            "preference-lora-dpo.yaml",
            [
                "num_data_blocks_per_device",
                "dataset_size_scaling_factor",
                "preference_tuning_config.logprob_processor_scaling_config",
            ],
        ),
        (
            "llama-3-70b-full-32xA10.yaml",
            [
                "given twice",
                "output_dir",
                "dataset_size_scaling_factor",
                "deepspeed",
                "every parameter of the model is trained",
            ],
        ),
    ],
)
def test_an_llmforge_file_is_read_as_it_is_and_says_what_has_no_effect(name: str, remarks: list[str]) -> None:
    warnings = _read(f"llmforge/{name}").warnings

    assert len(warnings) == len(remarks)
    assert all(remark in warning for remark, warning in zip(remarks, warnings, strict=True))


def test_underscored_integers_and_exponents_without_a_point_are_numbers() -> None:
    spec = _read("llmforge/llama-3-70b-full-32xA10.yaml").spec

    assert (spec.trainer_resources, spec.learning_rate) == ({"memory": 150_323_855_360}, 5e-6)
